//! Worker → namespace: who owns the hardware a request is about.
//!
//! A directory of workers is kept from FlowMesh's list and looked up on a miss; which worker runs a task is asked and
//! remembered. Nothing here refuses a request or delays it past
//! [`supplier_timeout`](crate::config::Limits::supplier_timeout); a look-up that takes longer goes on for whoever comes
//! next, and while FlowMesh does not answer nobody waits for it at all. Then the supplier is unknown, and counted so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, is_visible_ascii};
use crate::flight::{Answer, Bounds, Flights, Joined};
use crate::lifecycle::TaskError;
use crate::route::is_id;
use crate::telemetry::{Metrics, OutcomeLabels};
use crate::upstream::CallError;
use crate::upstream::flowmesh::{FlowMesh, Worker};

/// After FlowMesh failed to answer, requests go without a supplier for so long rather than wait for it again.
const PAUSE: Duration = Duration::from_secs(2);
/// How long "no such worker", "no namespace" and "not assigned yet" are believed.
const NOTHING_TTL: Duration = Duration::from_secs(5);
/// An assignment changes when a task is retried.
const TASK_TTL: Duration = Duration::from_secs(5);

/// What a request is about, as far as its supplier is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    Worker(&'a str),
    Task(&'a str),
}

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// A worker's namespace.
    Worker(String),
    /// The worker of a task.
    Task(String),
}

type Found = Option<Arc<str>>;

/// The directory. Cheap to clone.
#[derive(Clone)]
pub struct Suppliers(Arc<Inner>);

struct Inner {
    flowmesh: FlowMesh,
    limit: Duration,
    lookup_limit: Duration,
    refresh: Duration,
    known: Cache<Key, Found>,
    flights: Flights<Key, Found>,
    /// When FlowMesh last gave no answer.
    failed: Mutex<Option<Instant>>,
    metrics: Metrics,
}

/// How long each thing is believed.
struct Ttl {
    worker: Duration,
}

impl Ttl {
    fn of(&self, key: &Key, found: &Found) -> Duration {
        match (key, found) {
            (_, None) => NOTHING_TTL,
            (Key::Worker(_), Some(_)) => self.worker,
            (Key::Task(_), Some(_)) => TASK_TTL,
        }
    }
}

impl Expiry<Key, Found> for Ttl {
    fn expire_after_create(&self, key: &Key, found: &Found, _: Instant) -> Option<Duration> {
        Some(self.of(key, found))
    }

    fn expire_after_update(&self, key: &Key, found: &Found, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(self.of(key, found))
    }
}

impl Suppliers {
    #[must_use]
    pub fn new(flowmesh: FlowMesh, limits: &Limits, metrics: Metrics) -> Self {
        // Outlives a few failed refreshes; a namespace hardly ever changes.
        let ttl = Ttl { worker: limits.supplier_refresh * 20 };
        Self(Arc::new(Inner {
            flowmesh,
            limit: limits.supplier_timeout,
            lookup_limit: limits.supplier_lookup_timeout,
            refresh: limits.supplier_refresh,
            known: Cache::builder().max_capacity(limits.supplier_cache_entries).expire_after(ttl).build(),
            flights: Flights::new(Bounds {
                in_flight: limits.supplier_lookups_in_flight,
                waiting: limits.calls_waiting,
                limit: limits.supplier_lookup_timeout,
            }),
            failed: Mutex::new(None),
            metrics,
        }))
    }

    /// The supplier of what a request is about; `None` when unknown.
    pub async fn resolve(&self, subject: Subject<'_>) -> Option<Arc<str>> {
        let inner = &self.0;
        let found = tokio::time::timeout(inner.limit, inner.find(subject)).await.unwrap_or_else(|_| {
            inner.has_failed();
            Err(Arc::new(CallError::Timeout))
        });
        let outcome = match &found {
            Ok(Some(_)) => "found",
            Ok(None) => "none",
            Err(error) => error.kind(),
        };
        inner.metrics.suppliers.get_or_create(&OutcomeLabels { outcome }).inc();
        found.unwrap_or_else(|error| {
            tracing::debug!(?subject, %error, "supplier unknown: {error}");
            None
        })
    }

    /// Keeps the directory until the stop, so that a look-up hardly ever has to wait.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep(self, stop: CancellationToken) -> Result<(), TaskError> {
        let inner = self.0;
        let mut failing = false;
        loop {
            match inner.flowmesh.workers().await {
                Ok(workers) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("worker directory is read again");
                    }
                    for worker in workers {
                        inner.known.insert(Key::Worker(worker.id.clone()), namespace(worker));
                    }
                }
                // Said once per outage: the loop goes on every few seconds.
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(%error, "worker directory cannot be read from FlowMesh: {error}");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(inner.refresh) => {}
            }
        }
    }

    /// Workers and task assignments in memory, and look-ups in flight, for the gauges.
    #[must_use]
    pub fn figures(&self) -> (u64, usize) {
        self.0.known.run_pending_tasks();
        (self.0.known.entry_count(), self.0.flights.in_flight())
    }
}

impl Inner {
    async fn find(self: &Arc<Self>, subject: Subject<'_>) -> Answer<Found> {
        let worker = match subject {
            Subject::Worker(id) => id.to_owned(),
            Subject::Task(id) => match self.look_up(Key::Task(id.to_owned())).await? {
                Some(worker) => worker.to_string(),
                None => return Ok(None),
            },
        };
        self.look_up(Key::Worker(worker)).await
    }

    async fn look_up(self: &Arc<Self>, key: Key) -> Answer<Found> {
        if let Some(known) = self.known.get(&key) {
            return Ok(known);
        }
        if self.failed().is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(Arc::new(CallError::Paused));
        }
        let (inner, asked) = (self.clone(), key.clone());
        let call = move || async move { inner.ask(&asked).await };
        let (inner, kept) = (self.clone(), key.clone());
        let keep = move |answer: &Answer<Found>| match answer {
            Ok(found) => inner.known.insert(kept, found.clone()),
            Err(_) => inner.has_failed(),
        };
        match self.flights.join(key.clone(), || self.known.get(&key), call, keep) {
            Joined::Known(known) => Ok(known),
            Joined::Waits(ticket) => ticket.answer().await,
        }
    }

    async fn ask(&self, key: &Key) -> Result<Found, CallError> {
        Ok(match key {
            Key::Worker(id) => self.flowmesh.worker(id, self.lookup_limit).await?.and_then(namespace),
            Key::Task(id) => {
                let task = self.flowmesh.task_status(id, self.lookup_limit).await?;
                task.and_then(|task| task.assigned_worker).filter(|id| is_id(id)).map(Arc::from)
            }
        })
    }

    fn failed(&self) -> Option<Instant> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_failed(&self) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// A worker's namespace, where it can be a header value.
fn namespace(worker: Worker) -> Found {
    worker.namespace.filter(|name| name.len() <= 256 && is_visible_ascii(name)).map(Arc::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wiremock::matchers::path;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::config::{BaseUrl, Flowmesh};
    use crate::upstream::Http;

    async fn suppliers(limits: &Limits, worker: ResponseTemplate, task: ResponseTemplate) -> (MockServer, Suppliers) {
        let server = MockServer::start().await;
        Mock::given(path("/api/v1/workers/wrk-1")).respond_with(worker).mount(&server).await;
        Mock::given(path("/api/v1/tasks/tsk-1")).respond_with(task).mount(&server).await;
        let config = Flowmesh { base_url: BaseUrl::of_test(&server.uri()), api_key: None };
        let http = Http::new(&config.base_url, Duration::from_secs(5)).expect("client");
        (server, Suppliers::new(FlowMesh::new(http, config), limits, Metrics::unread()))
    }

    fn worker() -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_json(json!({"id": "wrk-1", "namespace": "acme"}))
    }

    fn task() -> ResponseTemplate {
        let task =
            json!({"task_id": "tsk-1", "workflow_id": "wfl-1", "status": "DISPATCHED", "assigned_worker": "wrk-1"});
        ResponseTemplate::new(200).set_body_json(task)
    }

    async fn calls(server: &MockServer) -> usize {
        server.received_requests().await.unwrap_or_default().len()
    }

    fn counted(suppliers: &Suppliers, outcome: &'static str) -> u64 {
        suppliers.0.metrics.suppliers.get_or_create(&OutcomeLabels { outcome }).get()
    }

    #[tokio::test]
    async fn what_many_ask_for_at_once_is_looked_up_once_and_remembered() {
        let (server, suppliers) = suppliers(&Limits::default(), worker(), task()).await;
        let mut lookups = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let suppliers = suppliers.clone();
            lookups.spawn(async move { suppliers.resolve(Subject::Task("tsk-1")).await });
        }
        while let Some(found) = lookups.join_next().await {
            assert_eq!(found.expect("no panic").as_deref(), Some("acme"));
        }
        assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await.as_deref(), Some("acme"));
        assert_eq!(calls(&server).await, 2, "the task once and the worker once");
    }

    #[tokio::test]
    async fn what_takes_longer_than_a_request_waits_is_there_for_the_next_one() {
        let limits = Limits { supplier_timeout: Duration::from_millis(50), ..Limits::default() };
        let slow = worker().set_delay(Duration::from_millis(200));
        let (server, suppliers) = suppliers(&limits, slow, task()).await;
        assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await, None);
        let started = Instant::now();
        while suppliers.resolve(Subject::Worker("wrk-1")).await.is_none() {
            assert!(started.elapsed() < Duration::from_secs(10), "the look-up never ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(calls(&server).await, 1);
    }

    #[tokio::test]
    async fn while_flowmesh_does_not_answer_nobody_waits_for_it() {
        let hangs = ResponseTemplate::new(200).set_delay(Duration::from_secs(5));
        let (server, suppliers) = suppliers(&Limits::default(), worker(), hangs).await;
        let started = Instant::now();
        for _ in 0..50 {
            assert_eq!(suppliers.resolve(Subject::Task("tsk-1")).await, None);
        }
        assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
        assert_eq!(calls(&server).await, 1);
        assert_eq!((counted(&suppliers, "timeout"), counted(&suppliers, "paused")), (1, 49));
    }

    #[tokio::test]
    async fn an_unknown_worker_and_a_name_that_is_no_header_value_are_no_supplier() {
        let unknown = ResponseTemplate::new(404).set_body_json(json!({"detail": "worker not found"}));
        let odd = ResponseTemplate::new(200).set_body_json(json!({"id": "wrk-1", "namespace": "a\r\nx-admin: 1"}));
        for answer in [unknown, odd] {
            let (server, suppliers) = suppliers(&Limits::default(), answer, task()).await;
            for _ in 0..3 {
                assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await, None);
            }
            assert_eq!(calls(&server).await, 1, "that, too, is remembered for a while");
            assert_eq!(counted(&suppliers, "none"), 3);
        }
    }

    #[tokio::test]
    async fn look_ups_in_flight_are_bounded() {
        let limits = Limits { supplier_lookups_in_flight: 1, ..Limits::default() };
        let slow = |response: ResponseTemplate| response.set_delay(Duration::from_millis(100));
        let (server, suppliers) = suppliers(&limits, slow(worker()), slow(task())).await;
        let (of_task, of_worker) =
            tokio::join!(suppliers.resolve(Subject::Task("tsk-1")), suppliers.resolve(Subject::Worker("wrk-1")));
        assert_eq!((of_task.as_deref(), of_worker.as_deref()), (Some("acme"), Some("acme")));
        assert_eq!(calls(&server).await, 2);
        assert!(suppliers.figures().1 <= 1);
    }
}
