//! Settling: asks FlowMesh after tasks that have ended or may have, and writes their charges.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::told;
use super::usage::{self, Verdict};
use crate::circuit::Circuit;
use crate::drive::{LEASE, News, Worker, growing, jitter};
use crate::ledger::{self, DueTask, Existence, Ledger, Settled, Settlement, Work};
use crate::route::is_id;
use crate::supplier::Suppliers;
use crate::telemetry::{Metrics, OutcomeLabels, Sparing, traces};
use crate::upstream::CallError;
use crate::upstream::flowmesh::FlowMesh;

/// Between questions after a task of which there is evidence that it ended.
const FIRST: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_mins(1);
/// FlowMesh cannot be asked, or its answer not be read: nobody gains by asking faster.
const TROUBLE_FIRST: Duration = Duration::from_secs(2);
const TROUBLE_MOST: Duration = Duration::from_mins(5);
/// After so many errors in place of an answer, while the circuit is closed, it is this task's own.
const HOPELESS: u32 = 10;
/// An answer that cannot be read hardly gets better by itself.
const HELD_MOST: Duration = Duration::from_hours(1);
/// Whose the workflow is will be known after its sweep.
const DEFERRED_FIRST: Duration = Duration::from_secs(1);
const DEFERRED_MOST: Duration = Duration::from_secs(10);
/// How long FlowMesh must have said that it does not know a task before it is given up.
const GONE_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// Why a task is held, for the log.
const UNREADABLE: &str = "what it costs cannot be read";
const UNCHARGEABLE: &str = "the ledger does not take what it costs";

/// Of questions that FlowMesh did not answer: while it is down it is all of them.
static NOT_ANSWERED: Sparing = Sparing::of_work();

/// The settling worker.
pub struct Settler {
    pub ledger: Arc<dyn Ledger>,
    pub flowmesh: FlowMesh,
    /// To FlowMesh, shared by all who ask after tasks and workflows.
    pub circuit: Circuit,
    pub suppliers: Suppliers,
    pub news: News,
    pub metrics: Metrics,
}

impl Worker for Settler {
    type Item = DueTask;
    const WORK: Work = Work::Tasks;

    fn allowance(&self, free: u32) -> Result<u32, Duration> {
        self.circuit.allowance(free)
    }

    async fn claim(&self, at: Timestamp, limit: u32) -> Result<Vec<DueTask>, ledger::Error> {
        let claimed = self.ledger.claim_tasks(at, LEASE, self.circuit.pick(limit)).await?;
        self.circuit.begun(claimed.len());
        Ok(claimed)
    }

    async fn step(&self, due: DueTask) -> Result<(), ledger::Error> {
        traces::step("settle", self.ask_after(due)).await
    }
}

impl Settler {
    async fn ask_after(&self, due: DueTask) -> Result<(), ledger::Error> {
        let task_id = due.task_id.as_str();
        // It becomes part of a URL.
        if !is_id(task_id) {
            tracing::error!(task = ?task_id, "a task id that is none is given up: {task_id:?}");
            self.circuit.not_asked();
            return self.ledger.settle(task_id, None, &Settlement::Gone, Timestamp::now()).await.map(drop);
        }
        let now = Timestamp::now();
        traces::note("tollgate.task_id", task_id.to_owned());
        let answer = traces::call("task", CallError::kind, self.flowmesh.task(task_id)).await;
        self.circuit.heard(answer.as_ref().map(drop));
        let outcome = match answer {
            // It answered, and not as agreed: a longer wait does not hide that there is something to bill. So it is when others
            // are answered and this one never is.
            Err(error) if !error.is_outage() || self.is_hopeless(&due, &error) => {
                self.hold(&due, UNREADABLE, &error.to_string()).await?;
                "unreadable"
            }
            Err(error) => {
                let cannot = format!("cannot ask FlowMesh after task {task_id}: {error}");
                if let Some(unsaid) = NOT_ANSWERED.say() {
                    tracing::warn!(trace_id = traces::id(), task = task_id, %error, unsaid = unsaid.count(), "{cannot}{unsaid}");
                } else {
                    tracing::debug!(trace_id = traces::id(), task = task_id, %error, "{cannot}");
                }
                self.again(&due, TROUBLE_FIRST, TROUBLE_MOST, Existence::Unsaid).await?;
                error.kind()
            }
            Ok(None) if due.unknown_since.is_none_or(|since| now.duration_since(since) < GONE_AFTER) => {
                self.again(&due, TROUBLE_FIRST, TROUBLE_MOST, Existence::Unknown).await?;
                "unknown"
            }
            Ok(None) => {
                tracing::warn!(task = task_id, "FlowMesh does not know task {task_id} any more: given up");
                self.settle(&due, None, &Settlement::Gone).await?
            }
            Ok(Some(task)) => match usage::decide(&task) {
                Verdict::NotOver if due.eager => {
                    self.again(&due, FIRST, MOST, Existence::Known).await?;
                    "not_over"
                }
                Verdict::NotOver => {
                    self.ledger.unsettled(&due, None, Existence::Known, now).await?;
                    "not_over"
                }
                Verdict::Unreadable(reason) => {
                    self.hold(&due, UNREADABLE, reason).await?;
                    "unreadable"
                }
                Verdict::Over(mut settlement) => {
                    if let Settlement::Usage(usage) = &mut settlement
                        && let Some(worker) = usage.assigned_worker.as_deref().filter(|worker| is_id(worker))
                    {
                        let supplier = self.suppliers.of_charge(worker).await;
                        usage.supplier_id = supplier.map(|name| name.to_string());
                    }
                    self.settle(&due, task.workflow_id.as_deref(), &settlement).await?
                }
            },
        };
        traces::note("tollgate.outcome", outcome);
        self.metrics.settlements.get_or_create(&OutcomeLabels { outcome }).inc();
        Ok(())
    }

    /// Whether an error in place of an answer is this task's own, rather than FlowMesh's.
    fn is_hopeless(&self, due: &DueTask, error: &CallError) -> bool {
        due.attempts >= HOPELESS && matches!(error, CallError::Status { .. }) && self.circuit.is_closed()
    }

    /// What FlowMesh said cannot be charged. It is kept for the operator to see, and asked after again.
    async fn hold(&self, due: &DueTask, why: &str, reason: &str) -> Result<(), ledger::Error> {
        let (task_id, now) = (due.task_id.as_str(), Timestamp::now());
        tracing::error!(trace_id = traces::id(), task = task_id, reason, "task {task_id} is held, {why}: {reason}");
        let wait = growing(TROUBLE_FIRST, HELD_MOST, due.attempts, jitter());
        self.ledger.hold_task(due, reason, now.checked_add(wait).unwrap_or(Timestamp::MAX), now).await
    }

    async fn again(
        &self,
        due: &DueTask,
        first: Duration,
        most: Duration,
        existence: Existence,
    ) -> Result<(), ledger::Error> {
        let now = Timestamp::now();
        let wait = growing(first, most, due.attempts, jitter());
        let again = now.checked_add(wait).unwrap_or(Timestamp::MAX);
        self.ledger.unsettled(due, Some(again), existence, now).await
    }

    async fn settle(
        &self,
        due: &DueTask,
        workflow_id: Option<&str>,
        settlement: &Settlement,
    ) -> Result<&'static str, ledger::Error> {
        let task_id = due.task_id.as_str();
        let now = Timestamp::now();
        let workflow = workflow_id.unwrap_or("none");
        let cost = if let Settlement::Usage(usage) = settlement { usage.cost.as_str() } else { "0" };
        let settled = match self.ledger.settle(task_id, workflow_id, settlement, now).await {
            // It would be refused again with each lease, unseen.
            Err(error @ ledger::Error::Refused(_)) => {
                self.hold(due, UNCHARGEABLE, &error.to_string()).await?;
                return Ok("refused");
            }
            settled => settled?,
        };
        Ok(match settled {
            Settled::Charged { principal_id } => {
                told::charged(task_id, workflow, &principal_id, cost);
                self.news.charges.notify_one();
                "charged"
            }
            Settled::Held { reason } => {
                told::held(task_id, workflow, cost, reason);
                "held"
            }
            Settled::Merged => {
                tracing::info!(
                    trace_id = traces::id(),
                    task = task_id,
                    workflow,
                    "task {task_id} ran in a merged batch that is charged already"
                );
                "merged"
            }
            Settled::Deferred => {
                self.again(due, DEFERRED_FIRST, DEFERRED_MOST, Existence::Known).await?;
                self.news.workflows.notify_one();
                "deferred"
            }
            Settled::Nothing => "nothing",
            Settled::Ignored => "ignored",
            Settled::Gone => "gone",
            Settled::Already => "already",
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sqlx::SqlitePool;
    use wiremock::matchers::path;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::access_log::event::Event;
    use crate::config::{BaseUrl, Flowmesh, Limits};
    use crate::ledger::sqlite::SqliteLedger;
    use crate::upstream::Http;

    struct Fixture {
        settler: Settler,
        server: MockServer,
        dir: tempfile::TempDir,
    }

    impl Fixture {
        async fn answering(response: ResponseTemplate) -> Self {
            let server = MockServer::start().await;
            Mock::given(path("/api/v1/tasks/tsk-1")).respond_with(response).mount(&server).await;
            let dir = tempfile::tempdir().expect("temp dir");
            let ledger = SqliteLedger::open(&dir.path().join("ledger.db"), Timestamp::now()).await.expect("opens");
            let config = Flowmesh { base_url: BaseUrl::of_test(&server.uri()), api_key: None };
            let http = Http::new(&config.base_url, Duration::from_secs(2)).expect("client");
            let flowmesh = FlowMesh::new(http, config);
            let metrics = Metrics::unread();
            let settler = Settler {
                ledger: Arc::new(ledger),
                suppliers: Suppliers::new(flowmesh.clone(), &Limits::default(), metrics.clone()),
                flowmesh,
                circuit: Circuit::new(metrics.asking_paused.clone()),
                news: News::default(),
                metrics,
            };
            Self { settler, server, dir }
        }

        /// The task, seen to have ended and claimed.
        async fn claimed(&self) -> DueTask {
            let long_ago = Timestamp::now() - SignedDuration::from_mins(1);
            let seen = [Event::TaskEnded { task_id: "tsk-1".into() }];
            self.settler.ledger.record(&seen, long_ago).await.expect("committed");
            self.settler.claim(Timestamp::now(), 1).await.expect("claimed").remove(0)
        }

        async fn gone(&self) -> bool {
            self.settler.ledger.backlog().await.expect("counted").gone_tasks == 1
        }
    }

    fn unknown() -> ResponseTemplate {
        ResponseTemplate::new(404).set_body_json(json!({"detail": "Task not found"}))
    }

    #[tokio::test]
    async fn a_task_that_flowmesh_does_not_know_is_asked_after_for_an_hour_and_then_given_up() {
        let fixture = Fixture::answering(unknown()).await;
        let due = fixture.claimed().await;
        // However often it was asked before in vain.
        let due = DueTask { attempts: 1000, ..due };
        fixture.settler.step(due.clone()).await.expect("recorded");
        assert!(!fixture.gone().await);
        let lately = Timestamp::now() - SignedDuration::from_mins(59);
        fixture.settler.step(DueTask { unknown_since: Some(lately), ..due.clone() }).await.expect("recorded");
        assert!(!fixture.gone().await);
        let long_ago = Timestamp::now() - SignedDuration::from_mins(61);
        fixture.settler.step(DueTask { unknown_since: Some(long_ago), ..due }).await.expect("recorded");
        assert!(fixture.gone().await);
    }

    #[tokio::test]
    async fn an_outage_never_makes_a_task_gone() {
        for response in [ResponseTemplate::new(503), ResponseTemplate::new(404)] {
            let fixture = Fixture::answering(response).await;
            let long_ago = Timestamp::now() - SignedDuration::from_hours(100);
            let due = DueTask { unknown_since: Some(long_ago), ..fixture.claimed().await };
            fixture.settler.step(due).await.expect("recorded");
            assert!(!fixture.gone().await);
            assert!(fixture.settler.ledger.next_due(Work::Tasks).await.expect("read").is_some());
        }
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_charged_holds_the_task_with_its_reason_until_it_can() {
        let task = |usages: serde_json::Value| {
            let task = json!({"task_id": "tsk-1", "workflow_id": null, "status": "DONE", "usages": usages});
            ResponseTemplate::new(200).set_body_json(task)
        };
        let usage = |cost: serde_json::Value| json!([{"runtime_sec": 1, "cost_per_hour": 1, "total_cost": cost}]);
        for odd in [
            task(usage(json!("much"))),
            task(usage(json!(-1))),
            task(json!([{}])),
            task(json!({})),
            ResponseTemplate::new(200).set_body_string("<html>"),
            ResponseTemplate::new(200)
                .set_body_string(r#"{"task_id": "tsk-1", "status": "DONE", "usages": [{"total_cost": NaN}]}"#),
        ] {
            let fixture = Fixture::answering(odd).await;
            let due = fixture.claimed().await;
            fixture.settler.step(due.clone()).await.expect("recorded");
            let backlog = fixture.settler.ledger.backlog().await.expect("read");
            assert_eq!((backlog.held_tasks, backlog.due_tasks), (1, 1), "seen, and asked after again");
            assert!(fixture.settler.circuit.allowance(1).is_ok(), "an odd answer is no outage");
            fixture.server.reset().await;
            Mock::given(path("/api/v1/tasks/tsk-1")).respond_with(task(usage(json!(0.5)))).mount(&fixture.server).await;
            fixture.settler.step(due).await.expect("recorded");
            let backlog = fixture.settler.ledger.backlog().await.expect("read");
            assert_eq!((backlog.held_tasks, backlog.held_charges), (0, 1), "of no workflow, so of nobody's");
        }
    }

    #[tokio::test]
    async fn a_charge_that_the_ledger_refuses_holds_the_task_with_its_reason_until_it_does_not() {
        let task = json!({"task_id": "tsk-1", "workflow_id": null, "status": "DONE",
            "usages": [{"runtime_sec": 1, "cost_per_hour": 1, "total_cost": 0.5}]});
        let fixture = Fixture::answering(ResponseTemplate::new(200).set_body_json(task)).await;
        let path = fixture.dir.path().join("ledger.db");
        let ledger = SqlitePool::connect(&format!("sqlite:{}", path.display())).await.expect("opens");
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON charges BEGIN SELECT RAISE(ABORT, 'too long'); END";
        sqlx::query(refuse).execute(&ledger).await.expect("made");
        let due = fixture.claimed().await;
        let mut waited = SignedDuration::ZERO;
        for attempts in [0, 4, 8] {
            let before = Timestamp::now();
            fixture.settler.step(DueTask { attempts, ..due.clone() }).await.expect("recorded");
            let again = fixture.settler.ledger.next_due(Work::Tasks).await.expect("read").expect("asked after again");
            assert!(again.duration_since(before) > waited * 2, "ever more rarely");
            waited = again.duration_since(before);
            let backlog = fixture.settler.ledger.backlog().await.expect("read");
            assert_eq!((backlog.held_tasks, backlog.due_tasks, backlog.held_charges), (1, 1, 0));
        }
        let reason: String =
            sqlx::query_scalar("SELECT hold_reason FROM tasks").fetch_one(&ledger).await.expect("read");
        assert!(reason.contains("too long"), "{reason}");
        sqlx::query("DROP TRIGGER refuse").execute(&ledger).await.expect("dropped");
        fixture.settler.step(due).await.expect("recorded");
        let backlog = fixture.settler.ledger.backlog().await.expect("read");
        assert_eq!((backlog.held_tasks, backlog.held_charges), (0, 1), "of no workflow, so of nobody's");
    }

    #[tokio::test]
    async fn an_error_that_only_one_task_always_gets_holds_it_and_an_outage_does_not() {
        let fixture = Fixture::answering(ResponseTemplate::new(500)).await;
        let due = DueTask { attempts: HOPELESS, ..fixture.claimed().await };
        let held = async || fixture.settler.ledger.backlog().await.expect("read").held_tasks;
        // FlowMesh as a whole does not answer.
        while fixture.settler.circuit.is_closed() {
            let _ = fixture.settler.circuit.failed();
        }
        fixture.settler.step(due.clone()).await.expect("recorded");
        assert_eq!(held().await, 0);
        // Others are answered.
        fixture.settler.circuit.succeeded();
        fixture.settler.step(due).await.expect("recorded");
        assert_eq!(held().await, 1);
    }
}
