//! Worker → namespace: who owns the hardware a request is about.
//!
//! A directory of workers is kept from FlowMesh's list and looked up on a miss; which worker runs a task is asked and
//! remembered. Nothing here refuses a request or delays it past
//! [`supplier_timeout`](crate::config::Limits::supplier_timeout). A look-up that takes longer goes on for whoever comes next,
//! and nobody waits for it again; when several of them take too long nobody waits for any. Then the supplier is unknown,
//! and counted so. One odd answer, such as a task of many MiB, concerns that task alone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, is_visible_ascii};
use crate::flight::{Answer, Bounds, Flights, GRACE, Joined, Place};
use crate::lifecycle::TaskError;
use crate::route::is_id;
use crate::telemetry::{Metrics, OutcomeLabels, Sparing, traces};
use crate::upstream::CallError;
use crate::upstream::flowmesh::{FlowMesh, Worker};

/// For so long requests go without a supplier rather than wait again for a look-up that took too long.
const PAUSE: Duration = Duration::from_secs(2);
/// After look-ups of so many different things in a row took too long, it is FlowMesh itself.
const SLOW_KEYS: usize = 3;
/// How long "no such worker", "no namespace", "not assigned yet" and odd answers are believed.
const NOTHING_TTL: Duration = Duration::from_secs(5);
/// An assignment changes when a task is retried.
const TASK_TTL: Duration = Duration::from_secs(5);

/// Of charges that go without a supplier: while FlowMesh is slow it may be all of them.
static WITHOUT_SUPPLIER: Sparing = Sparing::of_work();

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
    /// What is not waited for now.
    slow: Cache<Key, ()>,
    trouble: Mutex<Trouble>,
    metrics: Metrics,
}

/// Whether FlowMesh itself is slow.
#[derive(Debug, Default)]
struct Trouble {
    /// What took too long since the last answer.
    keys: HashSet<Key>,
    paused_until: Option<Instant>,
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
                reserved: 0,
                waiting: limits.calls_waiting,
                wait: limits.place_wait,
                limit: limits.supplier_lookup_timeout + GRACE,
            }),
            slow: Cache::builder().max_capacity(limits.supplier_cache_entries).time_to_live(PAUSE).build(),
            trouble: Mutex::default(),
            metrics,
        }))
    }

    /// The supplier of what a request is about; `None` when unknown.
    pub async fn resolve(&self, subject: Subject<'_>) -> Option<Arc<str>> {
        let inner = &self.0;
        let found = tokio::time::timeout(inner.limit, inner.find(subject, Patience::None)).await.unwrap_or_else(|_| {
            inner.took_too_long(&match subject {
                Subject::Worker(id) => Key::Worker(id.to_owned()),
                Subject::Task(id) => Key::Task(id.to_owned()),
            });
            Err(Arc::new(CallError::Timeout))
        });
        inner.count(&found);
        found.unwrap_or_else(|error| {
            let (kind, id) = match subject {
                Subject::Worker(id) => ("worker", id),
                Subject::Task(id) => ("task", id),
            };
            tracing::debug!(trace_id = traces::id(), %error, "no supplier for {kind} {id}: {error}");
            None
        })
    }

    /// The supplier of a charge, for which nobody waits; `None` when FlowMesh names none or does not answer.
    pub async fn of_charge(&self, worker: &str) -> Option<Arc<str>> {
        let found = self.0.find(Subject::Worker(worker), Patience::OneCall).await;
        self.0.count(&found);
        found.unwrap_or_else(|error| {
            let without = format!("a charge goes without its supplier, worker {worker} is unknown: {error}");
            if let Some(unsaid) = WITHOUT_SUPPLIER.say() {
                tracing::warn!(trace_id = traces::id(), worker, %error, unsaid = unsaid.count(), "{without}{unsaid}");
            } else {
                tracing::debug!(trace_id = traces::id(), worker, %error, "{without}");
            }
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
            let Some(workers) = stop.run_until_cancelled(inner.flowmesh.workers()).await else { return Ok(()) };
            match workers {
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

    /// Workers and task assignments in memory, look-ups in flight, and those that wait for a place, for the gauges.
    #[must_use]
    pub fn figures(&self) -> (u64, usize, usize) {
        self.0.known.run_pending_tasks();
        let (in_flight, waiting) = self.0.flights.figures();
        (self.0.known.entry_count(), in_flight, waiting)
    }
}

/// How long a look-up is worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Not while it is known to take long.
    None,
    /// As long as a call may take.
    OneCall,
}

impl Inner {
    async fn find(self: &Arc<Self>, subject: Subject<'_>, patience: Patience) -> Answer<Found> {
        let worker = match subject {
            Subject::Worker(id) => id.to_owned(),
            Subject::Task(id) => match self.look_up(Key::Task(id.to_owned()), patience).await? {
                Some(worker) => worker.to_string(),
                None => return Ok(None),
            },
        };
        self.look_up(Key::Worker(worker), patience).await
    }

    async fn look_up(self: &Arc<Self>, key: Key, patience: Patience) -> Answer<Found> {
        if let Some(known) = self.known.get(&key) {
            return Ok(known);
        }
        if patience == Patience::None && self.is_slow(&key) {
            return Err(Arc::new(CallError::Paused));
        }
        let (inner, asked) = (self.clone(), key.clone());
        let call = move || async move { traces::call("supplier look-up", CallError::kind, inner.ask(&asked)).await };
        let (inner, kept) = (self.clone(), key.clone());
        let keep = move |answer: &Answer<Found>| inner.keep(kept, answer);
        match self.flights.join(key.clone(), Place::Any, || self.known.get(&key), call, keep) {
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

    fn keep(&self, key: Key, answer: &Answer<Found>) {
        match answer {
            Ok(found) => {
                self.known.insert(key, found.clone());
                *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Trouble::default();
            }
            Err(error) => match **error {
                CallError::Timeout | CallError::Network(_) | CallError::Status { status: 500.., .. } => {
                    self.took_too_long(&key);
                }
                CallError::TooLarge(_) | CallError::Malformed(_) | CallError::Status { .. } => {
                    self.known.insert(key, None);
                }
                CallError::Busy | CallError::OverShare | CallError::Paused | CallError::Aborted => {}
            },
        }
    }

    fn is_slow(&self, key: &Key) -> bool {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.paused_until.is_some_and(|until| Instant::now() < until) || self.slow.contains_key(key)
    }

    fn took_too_long(&self, key: &Key) {
        self.slow.insert(key.clone(), ());
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.keys.insert(key.clone());
        if trouble.keys.len() >= SLOW_KEYS {
            *trouble = Trouble { keys: HashSet::new(), paused_until: Some(Instant::now() + PAUSE) };
        }
    }

    fn count(&self, found: &Answer<Found>) {
        let outcome = match found {
            Ok(Some(_)) => "found",
            Ok(None) => "none",
            Err(error) => error.kind(),
        };
        self.metrics.suppliers.get_or_create(&OutcomeLabels { outcome }).inc();
    }
}

/// A worker's namespace, where it can be a header value.
fn namespace(worker: Worker) -> Found {
    worker.namespace.filter(|name| name.len() <= 256 && is_visible_ascii(name)).map(Arc::from)
}

#[cfg(test)]
mod tests;
