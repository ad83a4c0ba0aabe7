//! The composition root: [`Config`] → bound listeners and workers.
//!
//! [`App::build`] binds every listener and opens the ledger, so that a taken port or a broken file is an error at start;
//! [`App::run`] starts the tasks and runs until the stop.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::access_log::AccessLog;
use crate::admin::{self, Admin, Gauges};
use crate::authz::Authz;
use crate::authz::response::Stamp;
use crate::config::{Config, Listen};
use crate::drive::{Driver, News};
use crate::guard::Guard;
use crate::identity::Identity;
use crate::ledger::Ledger;
use crate::ledger::sqlite::SqliteLedger;
use crate::lifecycle::{Failure, Lifecycle, Stopping, TaskError};
use crate::poster::Poster;
use crate::settlement::{reconcile::Reconciler, tasks::Settler, workflows::Sweeper};
use crate::supplier::Suppliers;
use crate::telemetry::Metrics;
use crate::upstream;
use crate::upstream::flowmesh::FlowMesh;
use crate::upstream::lumid::LumId;
use crate::upstream::runmesh::Runmesh;

enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A Unix socket's file, which goes when the listener does.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already, and nobody is left to be told.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Tollgate, bound and not yet running.
pub struct App {
    config: Config,
    grpc: Bound,
    grpc_address: String,
    admin: TcpListener,
    admin_address: SocketAddr,
    ledger: Option<Arc<SqliteLedger>>,
}

impl App {
    /// Binds the listeners and opens the ledger.
    ///
    /// # Errors
    /// One line that names the setting that cannot be used.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let (grpc, grpc_address) = match &config.grpc_listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("TOLLGATE_GRPC_LISTEN: cannot listen on {address}"))?;
                let address = listener.local_addr()?.to_string();
                (Bound::Tcp(listener), address)
            }
            Listen::Unix(path) => {
                let listener = bind_unix(path)
                    .with_context(|| format!("TOLLGATE_GRPC_LISTEN: cannot listen on {}", path.display()))?;
                (Bound::Unix(listener, SocketFile(path.clone())), config.grpc_listen.to_string())
            }
        };
        let admin = TcpListener::bind(config.admin_listen)
            .await
            .with_context(|| format!("TOLLGATE_ADMIN_LISTEN: cannot listen on {}", config.admin_listen))?;
        let ledger = match config.billing {
            Some(_) => {
                Some(Arc::new(SqliteLedger::open(&config.ledger, Timestamp::now()).await.context("TOLLGATE_LEDGER")?))
            }
            None => None,
        };
        Ok(Self { admin_address: admin.local_addr()?, config, grpc, grpc_address, admin, ledger })
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
    pub async fn run(self) -> anyhow::Result<()> {
        let stopping = Stopping::default();
        let mut lifecycle = Lifecycle::new(stopping.clone());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let gauges = Gauges::register(&mut registry, self.ledger.is_some());
        let Self { config, grpc, admin, ledger, .. } = self;
        let limits = &config.limits;

        let lum_id = LumId::new(upstream::client(limits.introspection_timeout)?, &config.lum_id_base_url);
        let identity = Identity::new(&config, lum_id, metrics.clone());
        let flowmesh = FlowMesh::new(upstream::client(limits.flowmesh_timeout)?, config.flowmesh.clone());
        let suppliers = Suppliers::new(flowmesh.clone(), limits, metrics.clone());
        lifecycle.spawn("worker directory", suppliers.clone().keep(stopping.stop.clone()));

        let dyn_ledger = ledger.clone().map(|ledger| ledger as Arc<dyn Ledger>);
        let mut guard = None;
        let access_log = match (&config.billing, &dyn_ledger) {
            (Some(billing), Some(ledger)) => {
                let http = upstream::client(limits.post_timeout)?;
                let runmesh = Runmesh::new(http, billing, limits.preflight_timeout);
                guard = config.balance_guard.then(|| Guard::new(runmesh.clone(), metrics.clone()));
                let parts = Parts { config: &config, ledger, flowmesh, suppliers: &suppliers, metrics: &metrics };
                spawn_billing(&mut lifecycle, &stopping, runmesh, parts)
            }
            _ => AccessLog::idle(metrics.clone(), stopping.stop.clone()),
        };
        let authz = Authz {
            identity: identity.clone(),
            guard,
            suppliers,
            ledger: dyn_ledger.clone(),
            submission_timeout: limits.submission_timeout,
            stamp: Stamp { org_id: config.org_id.clone(), forward_authorization: config.forward_authorization },
            metrics,
        };

        let (health, health_service) = tonic_health::server::health_reporter();
        announce(&health, ServingStatus::Serving, true).await;
        let message_bytes = limits.log_message_bytes;
        let server = Server::builder()
            .add_service(health_service)
            .add_service(AuthorizationServer::new(authz))
            .add_service(AccessLogServiceServer::new(access_log).max_decoding_message_size(message_bytes));
        let stop = stopping.stop.clone();
        lifecycle.spawn("grpc", async move {
            match grpc {
                Bound::Tcp(listener) => {
                    let incoming = TcpListenerStream::new(listener);
                    server.serve_with_incoming_shutdown(incoming, stop.cancelled()).await?;
                }
                Bound::Unix(listener, _file) => {
                    let incoming = UnixListenerStream::new(listener);
                    server.serve_with_incoming_shutdown(incoming, stop.cancelled()).await?;
                }
            }
            Ok(())
        });
        lifecycle.spawn("health", report_health(health, stopping.clone()));

        let router =
            admin::router(Admin { registry, gauges, identity, ledger: dyn_ledger, stopping: stopping.clone() });
        let stop = stopping.stop.clone();
        lifecycle.spawn("admin", async move {
            axum::serve(admin, router).with_graceful_shutdown(stop.cancelled_owned()).await?;
            Ok(())
        });

        let result: Result<(), Failure> = lifecycle.run(limits.drain_delay, limits.shutdown_deadline).await;
        if let Some(ledger) = &ledger {
            ledger.close().await;
        }
        Ok(result?)
    }
}

/// What the billing tasks share.
struct Parts<'a> {
    config: &'a Config,
    ledger: &'a Arc<dyn Ledger>,
    flowmesh: FlowMesh,
    suppliers: &'a Suppliers,
    metrics: &'a Metrics,
}

/// Starts everything behind the access log: intake, settling, sweeping, reconciling, posting.
fn spawn_billing(
    lifecycle: &mut Lifecycle,
    stopping: &Stopping,
    runmesh: Runmesh,
    Parts { config, ledger, flowmesh, suppliers, metrics }: Parts<'_>,
) -> AccessLog {
    let news = News::default();
    let limits = &config.limits;
    let stop = &stopping.stop;
    let settler = Settler {
        ledger: ledger.clone(),
        flowmesh: flowmesh.clone(),
        suppliers: suppliers.clone(),
        news: news.clone(),
        metrics: metrics.clone(),
    };
    let sweeper = Sweeper {
        ledger: ledger.clone(),
        flowmesh: flowmesh.clone(),
        grace: config.reconcile_grace,
        news: news.clone(),
        metrics: metrics.clone(),
    };
    let reconciler = Reconciler {
        ledger: ledger.clone(),
        flowmesh,
        interval: config.reconcile_interval,
        grace: config.reconcile_grace,
        news: news.clone(),
        metrics: metrics.clone(),
    };
    let poster = Poster::new(ledger.clone(), runmesh, metrics.clone());
    let driver = Driver { ledger: ledger.clone(), news: news.clone(), metrics: metrics.clone(), stop: stop.clone() };
    lifecycle.spawn("settling", driver.clone().drive(settler, limits.settling_concurrency));
    lifecycle.spawn("sweeping", driver.clone().drive(sweeper, limits.sweeping_concurrency));
    lifecycle.spawn("posting", driver.drive(poster, limits.posting_concurrency));
    lifecycle.spawn("reconciling", reconciler.run(stop.clone()));
    let (access_log, intake) = AccessLog::recording(ledger.clone(), news, limits, metrics.clone(), stop.clone());
    lifecycle.spawn("intake", intake.run());
    access_log
}

/// Binds a Unix socket, in place of one that a killed process left behind; group members may connect.
fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        // Somebody who answers is alive, and a bind in their place would steal their Envoy.
        Ok(file) if file.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(std::io::ErrorKind::AddrInUse.into()),
            Err(_) => std::fs::remove_file(path)?,
        },
        Ok(_) => return Err(std::io::Error::other("there is a file that is no socket")),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Sets the status of the whole (the empty name) and of both services.
async fn announce(health: &HealthReporter, status: ServingStatus, authz_too: bool) {
    health.set_service_status("", status).await;
    health.set_service_status(AccessLogServiceServer::<AccessLog>::NAME, status).await;
    if authz_too {
        health.set_service_status(AuthorizationServer::<Authz>::NAME, status).await;
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
