//! What is charged to whom.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tollgate_local::{
    stack::{ALICE, BOB, wait_for},
    standin::{Entry, Outcome, Status},
};

use super::{CHARGE_LIMIT, Demo};

/// Long enough that nothing is dispatched meanwhile.
const NEVER: Duration = Duration::from_hours(1);

impl Demo {
    /// The task of alice's first submission fails, which costs too.
    pub(super) async fn failed_task(&mut self) -> Result<()> {
        let submitted = self.first.take().context("alice has submitted nothing")?;
        for task_id in &submitted.task_ids {
            self.stack.flowmesh.complete(task_id, Outcome::after(Status::Failed, 3.25, 2.4));
            let path = format!("/api/v1/tasks/{task_id}?view=status");
            let answer = self.get(&path, Some(ALICE.token)).await?;
            self.narrator.compare("alice's task fails; she sees it", 200, answer.status);
        }
        self.expect_entry("its entry at Runmesh", &submitted.task_ids, CHARGE_LIMIT).await
    }

    pub(super) async fn one_task(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit("submission by alice", ALICE, request).await?;
        let task_id = submitted.task_ids.first().context("a submission without tasks")?;
        let task = self.stack.flowmesh.task(task_id).context("FlowMesh does not know the task")?;
        let worker = task.assigned_worker.context("the task is on no worker")?;
        let workers = self.stack.flowmesh.workers();
        let namespace = workers.into_iter().find(|known| known.id == worker).map(|known| known.namespace);
        let answer = self.post_result(task_id).await?;
        self.narrator.compare("its worker posts the result", 200, answer.status);
        let seen = self.last_seen("POST", "/api/v1/results")?;
        let supplier = seen.header("x-flowmesh-supplier-id").unwrap_or("none");
        self.narrator.compare("  its supplier at FlowMesh", namespace.unwrap_or_default(), supplier);
        self.expect_entry("its entry at Runmesh", &submitted.task_ids, CHARGE_LIMIT).await
    }

    pub(super) async fn nothing_ran(&mut self) -> Result<()> {
        self.stack.flowmesh.options(|options| options.dispatch_delay = NEVER);
        let request = self.submission(&BOB, 2)?;
        let submitted = self.submit("submission by bob, before any worker is free", BOB, request).await;
        let submitted = submitted?;
        let path = format!("/api/v1/workflows/{}/cancel", submitted.workflow_id);
        let answer = self.send(self.request("POST", &path, Some(BOB.token))?).await?;
        self.stack.flowmesh.options(|options| options.dispatch_delay = Duration::ZERO);
        self.narrator.compare("bob cancels it: nothing ran, nothing to pay (checked at the end)", 200, answer.status);
        Ok(())
    }

    pub(super) async fn merged_batch(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 3)?;
        let submitted = self.submit("submission of three tasks by alice", ALICE, request).await?;
        let ids: Vec<_> = submitted.task_ids.iter().map(String::as_str).collect();
        let ended = self.stack.flowmesh.complete_merged(&ids, Outcome::done(72.5, 1.5));
        self.narrator.compare("FlowMesh runs them as one batch: tasks that end together", 3, ended);
        for id in &ids {
            self.get(&format!("/api/v1/tasks/{id}?view=status"), Some(ALICE.token)).await?;
        }
        self.expect_entry("its entry at Runmesh", &submitted.task_ids, CHARGE_LIMIT).await?;
        self.settled().await?;
        let entries = self.stack.runmesh.entries();
        let of_batch = entries.iter().filter(|entry| submitted.task_ids.contains(&entry.task_id)).count();
        self.narrator.compare("  entries for the batch", 1, of_batch);
        Ok(())
    }

    /// Everything at the end: entries against the truth, and whether anybody was spoken to wrongly.
    pub(super) async fn balance_of_books(&mut self) -> Result<()> {
        self.settled().await?;
        let truth = self.stack.flowmesh.truth();
        let entries = self.stack.runmesh.entries();
        self.narrator.compare("entries at Runmesh, one for each execution", truth.len(), entries.len());
        let exact = truth.iter().filter(|truth| {
            let of_it: Vec<&Entry> = entries.iter().filter(|entry| truth.task_ids.contains(&entry.task_id)).collect();
            matches!(of_it.as_slice(), [entry] if entry.raw == self.expected_entry(truth, &entry.task_id))
        });
        self.narrator.compare("  of which agree with FlowMesh in every field", truth.len(), exact.count());
        let whose = |person: &str| entries.iter().filter(|entry| entry.user_sub == person).count();
        self.narrator.compare("  of which alice's", truth.len(), whose(ALICE.sub));
        self.narrator.compare("  of which bob's", 0, whose(BOB.sub));
        let none = "none";
        let said =
            |violations: Vec<String>| if violations.is_empty() { none.to_owned() } else { violations.join("; ") };
        self.narrator.compare("departures from lum.id's contract", none, said(self.stack.lum_id.violations()));
        self.narrator.compare("departures from Runmesh's contract", none, said(self.stack.runmesh.violations()));
        Ok(())
    }

    /// Waits until Tollgate has nothing left to find out or to post.
    async fn settled(&self) -> Result<()> {
        let figures = [
            "tollgate_open_submissions",
            "tollgate_open_workflows",
            "tollgate_held_workflows",
            "tollgate_due_tasks",
            "tollgate_charges_pending",
            "tollgate_charges_held",
        ];
        for name in figures {
            wait_for(format!("Tollgate's {name} to be 0"), Duration::from_secs(20), async || {
                self.stack.tollgate.metric(name).await.filter(|value| *value == 0.0)
            })
            .await?;
        }
        Ok(())
    }
}
