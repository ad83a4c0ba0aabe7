//! Charges → Runmesh, until it has them.
//!
//! Posting is at least once: the entry is idempotent on its task id, so that a repeat moves no money, and a charge
//! leaves `pending` only by Runmesh's word. Each charge has its own growing interval, and a circuit keeps a dead Runmesh
//! from being hammered by all of them. When Runmesh does not accept the secret, every charge would fail alike: posting
//! pauses at once, loudly, and goes on by itself when a probe gets through.
//!
//! A charge is posted only while there is time for it in its lease: who was stopped for long and goes on, a virtual machine
//! say, must not post what is somebody else's by then, for whoever owned it before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;

use crate::circuit::Circuit;
use crate::drive::{LEASE, Worker, jitter, spread};
use crate::ledger::{self, DueCharge, Ledger, Posted, Work};
use crate::telemetry::{Metrics, OutcomeLabels, Sparing, traces};
use crate::upstream::runmesh::{ENVELOPE, Entry, PostError, Runmesh, UNAUTHORIZED};

/// Between two posts of one charge.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_mins(5);
/// A `Retry-After` beyond this is a mistake, or an outage that a probe should find the end of.
const RETRY_AFTER_MOST: Duration = Duration::from_mins(10);

/// Of charges that were not posted: while Runmesh is down it is all of them.
static NOT_POSTED: Sparing = Sparing::of_work();

/// The posting worker.
pub struct Poster {
    ledger: Arc<dyn Ledger>,
    runmesh: Runmesh,
    /// How long a post may take.
    limit: Duration,
    circuit: Circuit,
    metrics: Metrics,
}

impl Poster {
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>, runmesh: Runmesh, limit: Duration, metrics: Metrics) -> Self {
        let circuit = Circuit::new(metrics.posting_paused.clone());
        Self { ledger, runmesh, limit, circuit, metrics }
    }
}

/// A charge that is this process's to post, and since when by a clock that nobody sets.
#[derive(Debug, Clone)]
pub struct Claimed {
    due: DueCharge,
    since: Instant,
}

impl Claimed {
    /// Whether `limit` is left of its lease. That clock may stand while the machine does, and the other one be set back.
    fn has_time(&self, limit: Duration, now: Timestamp) -> bool {
        self.since.elapsed() + limit <= LEASE && now + limit <= self.due.leased_until
    }
}

impl Worker for Poster {
    type Item = Claimed;
    const WORK: Work = Work::Charges;

    fn allowance(&self, free: u32) -> Result<u32, Duration> {
        self.circuit.allowance(free)
    }

    async fn claim(&self, at: Timestamp, limit: u32) -> Result<Vec<Claimed>, ledger::Error> {
        let since = Instant::now();
        let claimed = self.ledger.claim_charges(at, LEASE, self.circuit.pick(limit)).await?;
        self.circuit.begun(claimed.len());
        Ok(claimed.into_iter().map(|due| Claimed { due, since }).collect())
    }

    async fn step(&self, claimed: Claimed) -> Result<(), ledger::Error> {
        if !claimed.has_time(self.limit, Timestamp::now()) {
            self.circuit.not_asked();
            let task = claimed.due.task_id;
            tracing::warn!(task, "charge for task {task} is left to its next claim: this one is nearly over");
            return Ok(());
        }
        let _in_flight = InFlight::begin(&self.metrics.posts_in_flight);
        traces::step("post", self.post(claimed.due)).await
    }
}

impl Poster {
    async fn post(&self, due: DueCharge) -> Result<(), ledger::Error> {
        let DueCharge { task_id: task, workflow_id: workflow, principal_id: principal, cost, attempts, .. } = &due;
        let attempts = *attempts;
        let result = match entry(&due) {
            Ok(entry) => traces::call("billing entry", PostError::kind, self.runmesh.post(&entry)).await,
            Err(reason) => Err(PostError::Rejected { status: 0, answer: reason }),
        };
        let outcome = result.as_ref().err().map_or("posted", PostError::kind);
        traces::note("tollgate.task_id", task.clone());
        traces::note("tollgate.outcome", outcome);
        let trace_id = traces::id();
        self.metrics.posts.get_or_create(&OutcomeLabels { outcome }).inc();
        match result {
            Ok(()) => {
                self.circuit.succeeded();
                match self.ledger.posted(&due, Timestamp::now()).await? {
                    Posted::Theirs => tracing::info!(
                        trace_id,
                        task,
                        workflow,
                        principal,
                        cost,
                        "posted ${cost} of {principal} for task {task}"
                    ),
                    Posted::Astray { owner } => tracing::error!(
                        trace_id,
                        task,
                        workflow,
                        principal,
                        cost,
                        owner,
                        "ALARM: ${cost} for task {task} was posted as {principal}'s, and by then it was {}: correct it at Runmesh",
                        owner.as_deref().map_or("nobody's".to_owned(), |owner| format!("{owner}'s"))
                    ),
                }
            }
            Err(PostError::Rejected { status, answer }) => {
                // An answer all the same: Runmesh is there.
                self.circuit.succeeded();
                self.ledger.post_rejected(&due, &format!("status {status}: {answer}")).await?;
                tracing::error!(
                    trace_id,
                    task,
                    workflow,
                    principal,
                    cost,
                    status,
                    "Runmesh refused the charge for task {task} for good: {status}"
                );
            }
            Err(PostError::Retryable { reason, retry_after, kind }) => {
                let opened = match kind {
                    // Runmesh answered, and about this entry: that must not keep everybody else's back.
                    ENVELOPE => {
                        self.circuit.succeeded();
                        None
                    }
                    UNAUTHORIZED => self.circuit.refused(),
                    _ => self.circuit.failed(),
                };
                // Once for each time it opens, which is once a minute in the long run.
                match opened {
                    Some(pause) if kind == UNAUTHORIZED => tracing::error!(
                        reason,
                        "ALARM: Runmesh does not accept FLOWMESH_BRIDGE_SECRET ({reason}); nothing is posted for \
                         {pause:.1?}, charges wait"
                    ),
                    Some(pause) => tracing::error!(reason, "posting is paused for {pause:.1?}: {reason}"),
                    None => {}
                }
                let wait =
                    spread(FIRST, MOST, attempts, jitter()).max(retry_after.unwrap_or_default().min(RETRY_AFTER_MOST));
                let now = Timestamp::now();
                let again = now.checked_add(wait).unwrap_or(Timestamp::MAX);
                self.ledger.post_failed(&due, &reason, again, now).await?;
                let again_in = format!("charge for task {task} not posted, again in {wait:.1?}: {reason}");
                if let Some(unsaid) = NOT_POSTED.say() {
                    tracing::warn!(
                        trace_id,
                        task,
                        workflow,
                        attempts,
                        reason,
                        unsaid = unsaid.count(),
                        "{again_in}{unsaid}"
                    );
                } else {
                    tracing::debug!(trace_id, task, workflow, attempts, reason, "{again_in}");
                }
            }
        }
        Ok(())
    }
}

/// Counts a charge for as long as somebody is at it, however that ends.
struct InFlight(Gauge);

impl InFlight {
    fn begin(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The row as Runmesh wants it.
fn entry(due: &DueCharge) -> Result<Entry, String> {
    Ok(Entry {
        user_email: due.email.clone(),
        user_sub: due.principal_id.clone(),
        task_id: due.task_id.clone(),
        workflow_id: due.workflow_id.clone(),
        cost: due.cost.clone(),
        duration_sec: due.duration_sec,
        cost_per_hour: serde_json::from_str(&due.cost_per_hour)
            .map_err(|_| "cost_per_hour in the ledger is no number".to_owned())?,
        task_status: due.task_status.clone(),
    })
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

    /// A poster with one claimed charge, whose Runmesh answers so.
    async fn posting(response: ResponseTemplate) -> (Poster, Claimed, MockServer, tempfile::TempDir) {
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
        let billing = Billing { base_url: BaseUrl::of_test(&server.uri()), secret: "s3cret".into() };
        let http = Http::new(&billing.base_url, Duration::from_secs(2)).expect("client");
        let runmesh = Runmesh::new(http, &billing, Duration::from_secs(2));
        let poster = Poster::new(Arc::new(ledger), runmesh, Duration::from_secs(2), Metrics::unread());
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
            for _ in 0..5 {
                assert!(poster.allowance(32).is_ok());
                poster.step(charge.clone()).await.expect("recorded");
            }
            assert_eq!(poster.allowance(32).is_err(), pauses);
        }
    }

    #[tokio::test]
    async fn nothing_is_posted_when_its_lease_is_nearly_over_by_either_clock() {
        let (poster, charge, server, _dir) = posting(ResponseTemplate::new(200)).await;
        let minute_ago = Instant::now()
            .checked_sub(LEASE.saturating_sub(Duration::from_secs(1)))
            .expect("a machine that runs for long");
        let slept = Claimed { since: minute_ago, ..charge.clone() };
        let mut suspended = charge.clone();
        suspended.due.leased_until = Timestamp::now() + Duration::from_secs(1);
        for late in [slept, suspended] {
            assert_eq!(poster.allowance(1), Ok(1));
            poster.step(late).await.expect("left alone");
        }
        assert!(server.received_requests().await.expect("recorded").is_empty());
        assert_eq!(poster.ledger.backlog().await.expect("read").pending_charges, 1);
        poster.step(charge).await.expect("recorded");
        assert_eq!(server.received_requests().await.expect("recorded").len(), 1);
    }

    #[tokio::test]
    async fn a_secret_that_is_not_accepted_pauses_posting_at_once_and_the_charge_stays() {
        for status in [401, 403] {
            let (poster, charge, _server, _dir) = posting(ResponseTemplate::new(status)).await;
            poster.step(charge).await.expect("recorded");
            assert!(poster.allowance(32).is_err());
            assert_eq!(poster.metrics.posting_paused.get(), 1);
            let backlog = poster.ledger.backlog().await.expect("read");
            assert_eq!((backlog.pending_charges, backlog.rejected_charges), (1, 0), "{status}");
            assert_eq!(poster.metrics.posts_in_flight.get(), 0);
        }
    }
}
