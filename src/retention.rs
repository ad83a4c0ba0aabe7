//! Pruning: deletes from the ledger what is over and old, so that it does not grow for ever.
//!
//! What is unposted stays however old it is. Nothing goes that FlowMesh's list has not been compared with since: what is
//! old and unknown must have been found, and had some time to find its owner among the old submissions, before they go.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::ledger::duty::Duty;
use crate::ledger::{self, Ledger, Pruned};
use crate::lifecycle::TaskError;
use crate::telemetry::{KindLabels, Metrics};

/// The pruner.
pub struct Pruner {
    pub ledger: Arc<dyn Ledger>,
    pub duty: Duty,
    /// How long what is over is kept.
    pub retention: Duration,
    /// Between two prunings.
    pub interval: Duration,
    pub metrics: Metrics,
}

impl Pruner {
    /// Runs until the stop.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskError> {
        loop {
            // As it was an interval ago.
            let compared_at = self.ledger.compared_at().await;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.interval) => {}
            }
            if !self.duty.is_mine() {
                continue;
            }
            let pruned = match compared_at {
                Ok(Some(compared_at)) => tokio::select! {
                    // Each part is a transaction of its own; the next pruning goes on.
                    () = stop.cancelled() => return Ok(()),
                    pruned = self.prune(compared_at, Timestamp::now()) => pruned,
                },
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            if let Err(error) = pruned {
                self.metrics.ledger_errors.get_or_create(&KindLabels { kind: "prune" }).inc();
                tracing::error!(%error, "cannot prune the ledger: {error}");
            }
        }
    }

    async fn prune(&self, compared_at: Timestamp, now: Timestamp) -> Result<(), ledger::Error> {
        let before = now.checked_sub(self.retention).unwrap_or(Timestamp::MIN).min(compared_at);
        let Some(pruned) = self.ledger.prune(before, now).await? else {
            tracing::warn!("nothing is pruned: the owner of some workflow has been waiting to be looked for");
            return Ok(());
        };
        let Pruned { charges, tasks, workflows, submissions } = pruned;
        for (kind, rows) in
            [("charges", charges), ("tasks", tasks), ("workflows", workflows), ("submissions", submissions)]
        {
            self.metrics.pruned.get_or_create(&KindLabels { kind }).inc_by(rows);
        }
        if pruned != Pruned::default() {
            tracing::info!(
                charges,
                tasks,
                workflows,
                submissions,
                "pruned what was over before {before:.0}: {charges} charges, {tasks} tasks, {workflows} workflows, \
                 {submissions} submissions"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::json;
    use wiremock::matchers::path;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::access_log::event::Event;
    use crate::circuit::Circuit;
    use crate::config::{BaseUrl, Flowmesh, Limits};
    use crate::drive::{Driver, News};
    use crate::ledger::books::Books;
    use crate::ledger::sqlite::{SqliteBooks, SqliteLedger};
    use crate::ledger::unrecorded::Unrecorded;
    use crate::ledger::{Existence, NewSubmission, NextSweep, Pick, Settlement, Usage};
    use crate::principal::Principal;
    use crate::settlement::{reconcile::Reconciler, tasks::Settler, workflows::Sweeper};
    use crate::supplier::Suppliers;
    use crate::upstream::Http;
    use crate::upstream::flowmesh::FlowMesh;

    const DAYS: Duration = Duration::from_hours(24);
    const OFTEN: Duration = Duration::from_millis(20);

    /// A FlowMesh that forgets nothing: a workflow of one task, and one that nobody knows any more, submitted `at`.
    async fn flowmesh(at: Timestamp) -> MockServer {
        let server = MockServer::start().await;
        let workflow = json!({"workflow_id": "wfl-1", "task_ids": ["tsk-1"], "submitted_at": at.to_string(),
            "updated_at": at.to_string(), "status": "DONE", "dispatched_tasks": [], "completed_tasks": ["tsk-1"],
            "failed_tasks": [], "cancelled_tasks": []});
        let mut other = workflow.clone();
        other["workflow_id"] = "wfl-2".into();
        let task = json!({"task_id": "tsk-1", "workflow_id": "wfl-1", "status": "DONE", "assigned_worker": "wrk-1",
            "usages": [{"started_at": "a", "finished_at": "b", "runtime_sec": 1.0, "cost_per_hour": 1.5,
                "total_cost": 0.42, "status": "DONE"}]});
        for (url, body) in [
            ("/api/v1/workflows", json!([workflow, other])),
            ("/api/v1/workflows/wfl-1", workflow),
            ("/api/v1/tasks/tsk-1", task),
        ] {
            Mock::given(path(url)).respond_with(ResponseTemplate::new(200).set_body_json(body)).mount(&server).await;
        }
        server
    }

    /// Alice's workflow, submitted and billed long ago.
    async fn bill(ledger: &dyn Ledger, long_ago: Timestamp) {
        let alice = Principal { id: "alice".into(), email: Some("alice@example.com".into()), scopes: String::new() };
        let row = NewSubmission { submission_id: "sub-1", principal: &alice, request_id: "r1", at: long_ago };
        ledger.open_submission(row).await.expect("committed");
        let submitted = Event::Submitted {
            submission_id: "sub-1".into(),
            principal_id: "alice".into(),
            workflow_id: "wfl-1".into(),
            at: long_ago,
        };
        ledger.record(&[submitted], long_ago).await.expect("committed");
        let usage = Usage {
            cost: "0.42".into(),
            duration_sec: 1,
            cost_per_hour: "1.5".into(),
            task_status: "DONE".into(),
            assigned_worker: Some("wrk-1".into()),
            started_at: Some("a".into()),
            finished_at: Some("b".into()),
            supplier_id: None,
        };
        ledger.settle("tsk-1", Some("wfl-1"), &Settlement::Usage(usage), long_ago).await.expect("committed");
        let due = ledger.claim_charges(long_ago, DAYS, Pick::Due(1)).await.expect("claimed").remove(0);
        ledger.posted(&due, long_ago).await.expect("committed");
        let soon = long_ago + SignedDuration::from_mins(1);
        let due = ledger.claim_workflows(soon, DAYS, Pick::Due(1)).await.expect("claimed").remove(0);
        ledger.swept(&due, NextSweep::Settled, Existence::Known, soon).await.expect("committed");
    }

    #[tokio::test]
    async fn what_flowmesh_still_has_long_after_it_was_billed_and_pruned_is_not_billed_again() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("ledger.db");
        let long_ago = Timestamp::now() - SignedDuration::from_hours(24 * 100);
        let ledger: Arc<dyn Ledger> = Arc::new(SqliteLedger::open(&file, long_ago).await.expect("opens"));
        let books = SqliteBooks::open(&file).await.expect("opens");
        bill(&*ledger, long_ago).await;

        let server = flowmesh(long_ago).await;
        let config = Flowmesh { base_url: BaseUrl::of_test(&server.uri()), api_key: None };
        let flowmesh = FlowMesh::new(Http::new(&config.base_url, Duration::from_secs(2)).expect("client"), config);
        let (metrics, news, stop) = (Metrics::unread(), News::default(), CancellationToken::new());
        let driver =
            Driver { ledger: ledger.clone(), news: news.clone(), metrics: metrics.clone(), stop: stop.clone() };
        let circuit = Circuit::new(metrics.asking_paused.clone());
        let settler = Settler {
            ledger: ledger.clone(),
            flowmesh: flowmesh.clone(),
            circuit: circuit.clone(),
            suppliers: Suppliers::new(flowmesh.clone(), &Limits::default(), metrics.clone()),
            news: news.clone(),
            metrics: metrics.clone(),
        };
        let sweeper = Sweeper {
            ledger: ledger.clone(),
            flowmesh: flowmesh.clone(),
            circuit: circuit.clone(),
            unrecorded: Unrecorded::default(),
            duty: Duty::always(),
            grace: Duration::ZERO,
            started: long_ago,
            news: news.clone(),
            metrics: metrics.clone(),
        };
        let reconciler = Reconciler {
            ledger: ledger.clone(),
            flowmesh,
            duty: Duty::always(),
            interval: OFTEN,
            grace: OFTEN,
            news: news.clone(),
            metrics: metrics.clone(),
        };
        let pruner = Pruner {
            ledger: ledger.clone(),
            duty: Duty::always(),
            retention: 90 * DAYS,
            interval: OFTEN,
            metrics: metrics.clone(),
        };
        let listed = async || books.workflow("wfl-1").await.expect("read");
        // As long as FlowMesh's list was not compared with it for as long, nothing goes.
        pruner.prune(long_ago, Timestamp::now()).await.expect("committed");
        assert!(listed().await.is_some());
        let running = [
            tokio::spawn(pruner.run(stop.clone())),
            tokio::spawn(driver.clone().drive(settler, 1)),
            tokio::spawn(driver.drive(sweeper, 1)),
        ];
        let until = async |what: &str, reached: &dyn Fn(Option<&str>) -> bool| {
            let wait = async {
                while !reached(listed().await.as_ref().map(|workflow| workflow.state.as_str())) {
                    tokio::time::sleep(OFTEN).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), wait).await.expect(what);
        };
        ledger.compared(Timestamp::now(), Timestamp::now()).await.expect("committed");
        until("pruned", &|state| state.is_none()).await;

        // A client looks at its old task, before FlowMesh's list is compared again…
        let seen = [Event::TaskEnded { task_id: "tsk-1".into() }, Event::WorkflowSeen { workflow_id: "wfl-1".into() }];
        ledger.record(&seen, Timestamp::now()).await.expect("committed");
        news.tasks.notify_one();
        news.workflows.notify_one();
        until("ignored", &|state| state == Some("ignored")).await;
        let settled = async || books.task("tsk-1").await.expect("read").and_then(|task| task.outcome);
        while settled().await.as_deref() != Some("ignored") {
            news.tasks.notify_one();
            tokio::time::sleep(OFTEN).await;
        }
        // …and after it, over and over.
        let comparing = tokio::spawn(reconciler.run(stop.clone()));
        let other = async || books.workflow("wfl-2").await.expect("read").map(|workflow| workflow.state);
        while other().await.is_none() {
            tokio::time::sleep(OFTEN).await;
        }
        assert_eq!(other().await.as_deref(), Some("ignored"), "found by the list, and not swept");
        assert_eq!(listed().await.map(|workflow| workflow.state).as_deref(), Some("ignored"));
        assert_eq!(books.charge("tsk-1").await.expect("read"), None);
        stop.cancel();
        for task in running.into_iter().chain([comparing]) {
            task.await.expect("no panic").expect("an orderly end");
        }
    }
}
