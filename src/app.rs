//! The composition root: [`Config`] → bound listeners and workers.
//!
//! [`App::build`] binds every listener and opens the ledger, so that a taken port or a broken file is an error at start;
//! [`App::run`] starts the tasks and runs until the stop.

mod billing;
mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use crate::access_log::server::LogServer;
use crate::access_log::{self, AccessLog};
use crate::admin::console::Console;
use crate::admin::history::History;
use crate::admin::{self, Admin, Gauges};
use crate::authz::last::LastCheck;
use crate::authz::response::Stamp;
use crate::authz::server::CheckServer;
use crate::authz::{self, Authz};
use crate::config::Config;
use crate::guard::Guard;
use crate::identity::Identity;
use crate::ledger::books::Books;
use crate::ledger::opened::{Opened, Own};
use crate::ledger::postgres::Replica;
use crate::ledger::unrecorded::Unrecorded;
use crate::lifecycle::{Failure, Lifecycle, Stopping, TaskError};
use crate::listen::{Bound, Services};
use crate::reflection;
use crate::secrets::Secrets;
use crate::settlement::emails::Awaited;
use crate::supplier::Suppliers;
use crate::telemetry::{Logs, Metrics, Traces};
use crate::tls::Certificates;
use crate::upstream::flowmesh::FlowMesh;
use crate::upstream::runmesh::Runmesh;
pub use upstreams::Upstreams;

/// How long a stop waits for the ledger's connections to end.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// How long a replica that starts waits for the others to know of it. A database that is away for longer keeps nobody from being served.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// Tollgate, bound and not yet running.
pub struct App {
    config: Config,
    upstreams: Upstreams,
    grpc: Bound,
    grpc_address: String,
    admin: TcpListener,
    admin_address: SocketAddr,
    ledger: Option<Opened>,
}

impl App {
    /// Binds the listeners and opens the ledger.
    ///
    /// # Errors
    /// One line that names the setting that cannot be used.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let upstreams = Upstreams::new(&config)?;
        let certificates = config.tls.as_ref().map(Certificates::load).transpose()?;
        // Before the socket: it keeps a second process out, which would else take the first one's socket away.
        let ledger = match config.billing {
            Some(_) => Some(Opened::open(&config.ledger, Timestamp::now()).await.context("TOLLGATE_LEDGER")?),
            None => None,
        };
        let grpc = Bound::bind(&config.grpc_listen, certificates)
            .await
            .with_context(|| format!("TOLLGATE_GRPC_LISTEN: cannot listen on {}", config.grpc_listen))?;
        let admin = TcpListener::bind(config.admin_listen)
            .await
            .with_context(|| format!("TOLLGATE_ADMIN_LISTEN: cannot listen on {}", config.admin_listen))?;
        let (grpc_address, admin_address) = (grpc.address()?, admin.local_addr()?);
        Ok(Self { config, upstreams, grpc, grpc_address, admin, admin_address, ledger })
    }

    /// Where Envoy reaches it: `host:port` or `unix:/path`.
    #[must_use]
    pub fn grpc_address(&self) -> &str {
        &self.grpc_address
    }

    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Runs until SIGINT, SIGTERM or the failure of a part.
    ///
    /// # Errors
    /// When a part failed, or did not stop in time.
    pub async fn run(self, logs: &Logs, traces: Option<&Traces>) -> anyhow::Result<()> {
        let stopping = Stopping::default();
        let mut lifecycle = Lifecycle::new(stopping.clone())?;
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let gauges = Gauges::register(&mut registry, self.ledger.is_some());
        if let Some(traces) = traces {
            traces.register(&mut registry);
        }
        let Self {
            config,
            upstreams: Upstreams { lum_id, flowmesh, runmesh, times },
            grpc,
            admin,
            admin_address,
            ledger: opened,
            ..
        } = self;
        times.register(&mut registry);
        let limits = &config.limits;

        let secrets = Secrets::new(&config, logs.filter(), metrics.secret_reloads.clone()).map_err(Failure::Signals)?;
        lifecycle.spawn("secrets", secrets.keep(limits.secret_refresh, stopping.stop.clone()));

        let last_check = LastCheck::default();
        let books = opened.as_ref().map(|opened| opened.books.clone());
        let console = console(&config, &metrics, &flowmesh, runmesh.as_ref(), books, last_check.clone());
        let certificate_end = console.certificate_end.clone();
        lifecycle.spawn("history", console.history.clone().keep(stopping.stop.clone()));

        let identity = Identity::new(&config, lum_id, metrics.clone());
        let suppliers = Suppliers::new(flowmesh.clone(), limits, metrics.clone());
        lifecycle.spawn("worker directory", suppliers.clone().keep(stopping.stop.clone()));

        let ledger = opened.as_ref().map(|opened| opened.ledger.clone());
        let own = opened.as_ref().map(|opened| opened.own(limits, &metrics, &mut registry));
        let replica = spawn_replica(&mut lifecycle, &stopping, own.as_ref(), &identity).await;
        let requests = TaskTracker::new();
        let mut guard = None;
        let awaited = Awaited::default();
        let unrecorded = own.as_ref().map(|own| own.unrecorded.clone()).unwrap_or_default();
        let (access_log, events) = match (runmesh, &ledger, own) {
            (Some(runmesh), Some(ledger), Some(own)) => {
                guard = config.balance_guard.then(|| Guard::new(runmesh.clone(), limits, metrics.clone()));
                lifecycle.spawn("gaps", unrecorded.clone().keep(ledger.clone(), stopping.stop.clone()));
                let (suppliers, metrics) = (&suppliers, &metrics);
                let parts = billing::Parts { config: &config, ledger, own, flowmesh, suppliers, metrics };
                lifecycle.spawn("awaited e-mails", awaited.clone().keep(ledger.clone(), stopping.stop.clone()));
                let events = billing::spawn(&mut lifecycle, &stopping, runmesh, parts);
                (AccessLog::new(Some(events.log.downgrade()), &stopping, &requests, metrics.clone()), Some(events))
            }
            _ => (AccessLog::new(None, &stopping, &requests, metrics.clone()), None),
        };
        let authz = Authz {
            identity: identity.clone(),
            guard: guard.clone(),
            suppliers: suppliers.clone(),
            ledger: ledger.clone(),
            events: events.as_ref().map(|events| events.checks.downgrade()),
            awaited,
            unrecorded: unrecorded.clone(),
            submission_timeout: limits.submission_timeout,
            stamp: Stamp::new(config.org_id.clone(), config.forward_authorization),
            requests: requests.clone(),
            last_check,
            metrics: metrics.clone(),
        };

        let (health, health_service) = tonic_health::server::health_reporter();
        announce(&health, ServingStatus::Serving, true).await;
        let server = grpc_services(&config, health_service, authz, access_log)?;
        let connections = grpc.accept(&mut lifecycle, &stopping, limits, &mut registry, certificate_end);
        let serving = connections.serve(server, stopping.stop.clone());
        let stop = stopping.stop.clone();
        lifecycle.spawn("grpc", async move {
            tokio::select! {
                result = serving => result?,
                () = async { stop.cancelled().await; requests.close(); requests.wait().await; linger().await } => {}
            }
            // The last ways in for events that no stream holds: with them the intake ends.
            drop(events);
            Ok(())
        });
        lifecycle.spawn("health", report_health(health, stopping.clone()));

        let router = admin::router(Admin {
            address: admin_address,
            hosts: config.admin_hosts.clone(),
            registry,
            gauges,
            metrics,
            settings: config.describe(),
            log: config.log.clone(),
            dropped_log_lines: logs.dropped(),
            identity,
            guard,
            suppliers,
            ledger,
            replica: replica.clone(),
            stopping: stopping.clone(),
            console,
        });
        lifecycle.spawn("admin", serve_admin(admin, router, stopping.stop.clone()));

        let result: Result<(), Failure> = lifecycle.run(limits.drain_delay, limits.shutdown_deadline).await;
        close(opened, replica, &unrecorded).await;
        Ok(result?)
    }
}

/// Serves the pages until the stop, and then until those under way are sent.
async fn serve_admin(listener: TcpListener, router: axum::Router, stop: CancellationToken) -> Result<(), TaskError> {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::select! {
        result = axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned()) => result?,
        () = async { stop.cancelled().await; linger().await } => {}
    }
    Ok(())
}

/// What the console shows beside what the other pages do.
fn console(
    config: &Config,
    metrics: &Metrics,
    flowmesh: &FlowMesh,
    runmesh: Option<&Runmesh>,
    books: Option<Arc<dyn Books>>,
    last_check: LastCheck,
) -> Console {
    let now = Timestamp::now();
    Console {
        history: History::new(metrics, now),
        books,
        started: now,
        last_check,
        flowmesh: flowmesh.health(),
        runmesh: runmesh.map(Runmesh::health),
        secret: config.billing.as_ref().map(|billing| billing.secret.clone()),
        warnings: config.warnings.clone(),
        certificate_end: Gauge::default(),
    }
}

/// SQLite folds its write-ahead log into the file, which the next start would do as well; a replica tells the others.
async fn close(ledger: Option<Opened>, replica: Option<Replica>, unrecorded: &Unrecorded) {
    unrecorded.close().await;
    if let Some(replica) = replica
        && tokio::time::timeout(CLOSED_WITHIN, replica.leave()).await.is_err()
    {
        tracing::warn!(
            "the other replicas could not be told in time that this one is no more: they wait for it for five minutes"
        );
    }
    if let Some(ledger) = ledger {
        ledger.close(CLOSED_WITHIN).await;
    }
}

/// Makes this process known to those that it shares its ledger with, if it does.
async fn spawn_replica(
    lifecycle: &mut Lifecycle,
    stopping: &Stopping,
    own: Option<&Own>,
    identity: &Identity,
) -> Option<Replica> {
    let replica = own?.replica.clone()?;
    lifecycle.spawn("replica", replica.clone().keep(identity.clone(), stopping.stop.clone()));
    // Before anything is let through: they would not wait for what it has not recorded.
    replica.known(KNOWN_WITHIN).await;
    Some(replica)
}

/// What the gRPC listener serves.
fn grpc_services(
    config: &Config,
    health: HealthServer<impl Health>,
    authz: Authz,
    access_log: AccessLog,
) -> anyhow::Result<Services> {
    let mut others = Routes::builder();
    others.add_service(health);
    if config.grpc_reflection {
        others.add_service(reflection::v1()?).add_service(reflection::v1alpha()?);
    }
    let log = LogServer::new(access_log, config.limits.log_message_bytes);
    Ok(Services::new(CheckServer::new(authz), log, others.routes()))
}

/// How long connections without a request under way may take to notice that they are to close: an idle peer must not make
/// an orderly stop a failure.
async fn linger() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Sets the status of the whole (the empty name) and of both services.
async fn announce(health: &HealthReporter, status: ServingStatus, authz_too: bool) {
    health.set_service_status("", status).await;
    health.set_service_status(access_log::server::SERVICE_NAME, status).await;
    if authz_too {
        health.set_service_status(authz::server::SERVICE_NAME, status).await;
    }
}

/// On the drain the log service reports NOT_SERVING, so that Envoy keeps its entries for the next process. Check goes on
/// to the very end: a lone Tollgate that reported otherwise would have Envoy refuse everything for the whole drain.
async fn report_health(health: HealthReporter, stopping: Stopping) -> Result<(), TaskError> {
    stopping.drain.cancelled().await;
    announce(&health, ServingStatus::NotServing, false).await;
    stopping.stop.cancelled().await;
    announce(&health, ServingStatus::NotServing, true).await;
    Ok(())
}
