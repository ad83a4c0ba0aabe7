//! Charges → Runmesh, until it has them.
//!
//! Posting is at least once: the entry is idempotent on its task id, so that a repeat moves no money, and a charge
//! leaves `pending` only by Runmesh's word. Each charge has its own growing interval; a circuit keeps a dead Runmesh
//! from being hammered by all of them: after a few failures in a row nothing is posted for a while, then one charge is
//! the probe.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::drive::{LEASE, Worker, growing, jitter};
use crate::ledger::{self, DueCharge, Ledger, Work};
use crate::telemetry::{Metrics, OutcomeLabels};
use crate::upstream::runmesh::{ENVELOPE, Entry, PostError, Runmesh};

/// Between two posts of one charge.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_mins(5);
/// A `Retry-After` beyond this is a mistake, or an outage that a probe should find the end of.
const RETRY_AFTER_MOST: Duration = Duration::from_mins(10);
/// Failures in a row that open the circuit.
const TRIP: u32 = 5;
/// How long the circuit stays open, growing from probe to probe.
const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MOST: Duration = Duration::from_mins(1);

/// The posting worker.
pub struct Poster {
    ledger: Arc<dyn Ledger>,
    runmesh: Runmesh,
    circuit: Mutex<Circuit>,
    metrics: Metrics,
}

impl Poster {
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>, runmesh: Runmesh, metrics: Metrics) -> Self {
        Self { ledger, runmesh, circuit: Mutex::new(Circuit::default()), metrics }
    }

    fn circuit<T>(&self, act: impl FnOnce(&mut Circuit) -> T) -> T {
        // Nothing that holds the lock can panic; a poisoned one would still be consistent.
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut circuit);
        self.metrics.posting_paused.set(i64::from(circuit.open_until.is_some()));
        result
    }
}

impl Worker for Poster {
    type Item = DueCharge;
    const WORK: Work = Work::Charges;

    fn allowance(&self, free: u32) -> Result<u32, Duration> {
        self.circuit(|circuit| circuit.allowance(Instant::now(), free))
    }

    async fn claim(&self, at: Timestamp, limit: u32) -> Result<Vec<DueCharge>, ledger::Error> {
        let claimed = self.ledger.claim_charges(at, LEASE, limit).await?;
        self.circuit(|circuit| circuit.begun(claimed.len()));
        Ok(claimed)
    }

    async fn step(&self, due: DueCharge) -> Result<(), ledger::Error> {
        let task = due.task_id.clone();
        let attempts = due.attempts;
        let (cost, principal) = (due.cost.clone(), due.principal_id.clone());
        let result = match entry(due) {
            Ok(entry) => self.runmesh.post(&entry).await,
            Err(reason) => Err(PostError::Rejected { status: 0, answer: reason }),
        };
        let outcome = match &result {
            Ok(()) => "posted",
            Err(PostError::Rejected { .. }) => "rejected",
            Err(PostError::Retryable { kind, .. }) => kind,
        };
        self.metrics.posts.get_or_create(&OutcomeLabels { outcome }).inc();
        match result {
            Ok(()) => {
                self.circuit(Circuit::succeeded);
                self.ledger.posted(&task, Timestamp::now()).await?;
                tracing::info!(task, principal, cost, "posted ${cost} of {principal} for task {task}");
            }
            Err(PostError::Rejected { status, answer }) => {
                // An answer all the same: Runmesh is there.
                self.circuit(Circuit::succeeded);
                self.ledger.post_rejected(&task, &format!("status {status}: {answer}")).await?;
                tracing::error!(
                    task,
                    principal,
                    cost,
                    status,
                    "Runmesh refused the charge for task {task} for good: {status}"
                );
            }
            Err(PostError::Retryable { reason, retry_after, kind }) => {
                let tripped = self.circuit(|circuit| {
                    // Runmesh answered, and about this entry: that must not keep everybody else's back.
                    if kind == ENVELOPE {
                        circuit.succeeded();
                        return None;
                    }
                    circuit.failed(Instant::now(), jitter())
                });
                if let Some(pause) = tripped {
                    tracing::error!(reason, "posting is paused for {pause:.1?}: {reason}");
                }
                let wait =
                    growing(FIRST, MOST, attempts, jitter()).max(retry_after.unwrap_or_default().min(RETRY_AFTER_MOST));
                let now = Timestamp::now();
                let again = now.checked_add(wait).unwrap_or(Timestamp::MAX);
                self.ledger.post_failed(&task, &reason, again, now).await?;
                tracing::warn!(
                    task,
                    attempts,
                    reason,
                    "charge for task {task} not posted, again in {wait:.1?}: {reason}"
                );
            }
        }
        Ok(())
    }
}

/// The row as Runmesh wants it.
fn entry(due: DueCharge) -> Result<Entry, String> {
    Ok(Entry {
        user_email: due.email,
        user_sub: due.principal_id,
        task_id: due.task_id,
        workflow_id: due.workflow_id,
        cost: due.cost,
        duration_sec: due.duration_sec,
        cost_per_hour: serde_json::from_str(&due.cost_per_hour)
            .map_err(|_| "cost_per_hour in the ledger is no number".to_owned())?,
        task_status: due.task_status,
    })
}

/// Closed, open until a time, or half-open with one probe. Pure but for the times passed in.
#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    /// How often it opened in a row.
    openings: u32,
    open_until: Option<Instant>,
    probing: bool,
}

impl Circuit {
    fn allowance(&self, now: Instant, free: u32) -> Result<u32, Duration> {
        match self.open_until {
            None => Ok(free),
            Some(until) if now < until => Err(until - now),
            // The probe's end wakes the loop.
            Some(_) if self.probing => Err(OPEN_MOST),
            Some(_) => Ok(1),
        }
    }

    fn begun(&mut self, posts: usize) {
        self.probing = self.open_until.is_some() && posts > 0;
    }

    fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// How long the circuit is open from now, when this failure opened it.
    fn failed(&mut self, now: Instant, jitter: f64) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        // While it is open, posts that were already in flight say nothing new.
        let probe_failed = std::mem::take(&mut self.probing);
        if self.failures < TRIP || (self.open_until.is_some() && !probe_failed) {
            return None;
        }
        let pause = growing(OPEN_FIRST, OPEN_MOST, self.openings, jitter);
        self.openings = self.openings.saturating_add(1);
        self.open_until = Some(now + pause);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::any;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::access_log::event::Event;
    use crate::config::{BaseUrl, Billing};
    use crate::ledger::sqlite::SqliteLedger;
    use crate::ledger::{NewSubmission, Settlement, Usage};
    use crate::principal::Principal;
    use crate::upstream::Http;

    #[test]
    fn the_circuit_opens_after_some_failures_and_lets_one_probe_through_at_a_time() {
        let start = Instant::now();
        let mut circuit = Circuit::default();
        for _ in 1..TRIP {
            assert_eq!(circuit.failed(start, 0.0), None);
        }
        assert_eq!(circuit.allowance(start, 32), Ok(32));
        assert_eq!(circuit.failed(start, 0.0), Some(OPEN_FIRST));
        assert_eq!(circuit.failed(start, 0.0), None, "posts in flight change nothing");
        assert_eq!(circuit.allowance(start, 32), Err(OPEN_FIRST));
        let later = start + OPEN_FIRST;
        assert_eq!(circuit.allowance(later, 32), Ok(1));
        circuit.begun(1);
        assert!(circuit.allowance(later, 32).is_err(), "one probe at a time");
        assert_eq!(circuit.failed(later, 0.0), Some(OPEN_FIRST * 2));
        let even_later = later + OPEN_FIRST * 2;
        circuit.begun(0);
        assert_eq!(circuit.allowance(even_later, 32), Ok(1));
        circuit.begun(1);
        circuit.succeeded();
        assert_eq!(circuit.allowance(even_later, 32), Ok(32));
    }

    /// A poster with one claimed charge, whose Runmesh answers so.
    async fn posting(response: ResponseTemplate) -> (Poster, DueCharge, MockServer, tempfile::TempDir) {
        let server = MockServer::start().await;
        Mock::given(any()).respond_with(response).mount(&server).await;
        let dir = tempfile::tempdir().expect("temp dir");
        let now = Timestamp::now();
        let ledger = SqliteLedger::open(&dir.path().join("ledger.db"), now).await.expect("opens");
        let principal = Principal { id: "alice".into(), email: Some("a@example.com".into()), scopes: String::new() };
        let row = NewSubmission { submission_id: "sub-1", principal: &principal, request_id: "r1", at: now };
        ledger.open_submission(row).await.expect("committed");
        let submitted = Event::Submitted {
            submission_id: "sub-1".into(),
            principal_id: "alice".into(),
            workflow_id: "wfl-1".into(),
            at: now,
        };
        ledger.record(&[submitted], now).await.expect("committed");
        let usage = Settlement::Usage(Usage {
            cost: "0.42".into(),
            duration_sec: 12,
            cost_per_hour: "1.5".into(),
            task_status: "DONE".into(),
            assigned_worker: None,
            started_at: None,
            finished_at: None,
            supplier_id: None,
        });
        ledger.settle("tsk-1", Some("wfl-1"), &usage, now).await.expect("committed");
        let billing = Billing { base_url: BaseUrl::of_test(&server.uri()), secret: "s3cret".to_owned().into() };
        let http = Http::new(&billing.base_url, Duration::from_secs(2)).expect("client");
        let runmesh = Runmesh::new(http, &billing, Duration::from_secs(2));
        let poster = Poster::new(Arc::new(ledger), runmesh, Metrics::unread());
        let charge = poster.claim(now, 1).await.expect("claimed").remove(0);
        (poster, charge, server, dir)
    }

    async fn seconds_to_next_try(poster: &Poster) -> i64 {
        let due = poster.ledger.next_due(Work::Charges).await.expect("read").expect("still to be posted");
        due.duration_since(Timestamp::now()).as_secs()
    }

    #[tokio::test]
    async fn retry_after_is_honoured_within_bounds() {
        for (header, at_least, at_most) in [("100", 90, 100), ("86400", 590, 600)] {
            let response = ResponseTemplate::new(429).insert_header("retry-after", header);
            let (poster, charge, _server, _dir) = posting(response).await;
            poster.step(charge).await.expect("recorded");
            let wait = seconds_to_next_try(&poster).await;
            assert!((at_least..=at_most).contains(&wait), "{header}: {wait}");
        }
    }

    #[tokio::test]
    async fn failures_in_a_row_pause_posting_but_not_those_inside_a_200() {
        let envelope = ResponseTemplate::new(200).set_body_string(r#"{"code": 500}"#);
        for (response, pauses) in [(ResponseTemplate::new(503), true), (envelope, false)] {
            let (poster, charge, _server, _dir) = posting(response).await;
            for _ in 0..TRIP {
                assert!(poster.allowance(32).is_ok());
                poster.step(charge.clone()).await.expect("recorded");
            }
            assert_eq!(poster.allowance(32).is_err(), pauses);
        }
    }
}
