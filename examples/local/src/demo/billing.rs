//! What is charged to whom.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tollgate_local::{
    stack::{ALICE, BOB, wait_for},
    standin::{Entry, Outcome},
};

use super::{Demo, FIGURES};

/// Long enough that nothing is dispatched meanwhile.
const NEVER: Duration = Duration::from_hours(1);

impl Demo {
    /// The task of alice's first submission fails, which costs too.
    pub(super) async fn failed_task(&mut self) -> Result<()> {
        let submitted = self.first.take().context("alice has submitted nothing")?;
        self.world.flowmesh.complete(&submitted.task_ids, Outcome::failed(3.25, 2.4)).await?;
        for task_id in &submitted.task_ids {
            let path = format!("/api/v1/tasks/{task_id}?view=status");
            let answer = self.get(&path, Some(ALICE.token)).await?;
            self.narrator.compare("alice's task fails; she sees it", 200, answer.status);
        }
        self.expect_entry("its entry at Runmesh", &submitted.task_ids, self.world.charge_limit).await
    }

    pub(super) async fn one_task(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit("submission by alice", ALICE, request).await?;
        let task_id = submitted.task_ids.first().context("a submission without tasks")?;
        let task = self.world.flowmesh.task(task_id).await?.context("FlowMesh does not know the task")?;
        let worker = task.assigned_worker.context("the task is on no worker")?;
        let workers = self.world.flowmesh.workers().await?;
        let namespace = workers.into_iter().find(|known| known.id == worker).map(|known| known.namespace);
        let answer = self.post_result(task_id).await?;
        self.narrator.compare("its worker posts the result", 200, answer.status);
        let seen = self.last_seen("POST", "/api/v1/results").await?;
        let supplier = seen.header("x-flowmesh-supplier-id").unwrap_or("none");
        self.narrator.compare("  its supplier at FlowMesh", namespace.unwrap_or_default(), supplier);
        self.expect_entry("its entry at Runmesh", &submitted.task_ids, self.world.charge_limit).await
    }

    pub(super) async fn nothing_ran(&mut self) -> Result<()> {
        self.world.flowmesh.set_dispatch_delay(NEVER).await?;
        let request = self.submission(&BOB, 2)?;
        let submitted = self.submit("submission by bob, before any worker is free", BOB, request).await;
        let submitted = submitted?;
        let path = format!("/api/v1/workflows/{}/cancel", submitted.workflow_id);
        let answer = self.send(self.request("POST", &path, Some(BOB.token))?).await?;
        self.world.flowmesh.set_dispatch_delay(Duration::ZERO).await?;
        self.narrator.compare("bob cancels it: nothing ran, nothing to pay (checked at the end)", 200, answer.status);
        Ok(())
    }

    pub(super) async fn merged_batch(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 3)?;
        let submitted = self.submit("submission of three tasks by alice", ALICE, request).await?;
        let ended = self.world.flowmesh.complete(&submitted.task_ids, Outcome::done(72.5, 1.5)).await?;
        self.narrator.compare("FlowMesh runs them as one batch: tasks that end together", 3, ended);
        for id in &submitted.task_ids {
            self.get(&format!("/api/v1/tasks/{id}?view=status"), Some(ALICE.token)).await?;
        }
        self.expect_entry("its entry at Runmesh", &submitted.task_ids, self.world.charge_limit).await?;
        self.settled().await?;
        let entries = self.world.runmesh.entries().await?;
        let of_batch = entries.iter().filter(|entry| submitted.task_ids.contains(&entry.task_id)).count();
        self.narrator.compare("  entries for the batch", 1, of_batch);
        Ok(())
    }

    /// Everything at the end: entries against the truth, and whether anybody was spoken to wrongly. What was there
    /// before is left aside.
    pub(super) async fn balance_of_books(&mut self) -> Result<()> {
        self.settled().await?;
        let before = &self.before;
        let mut truth = self.world.flowmesh.truth().await?;
        truth.retain(|truth| !before.workflows.contains(&truth.workflow_id));
        let mut entries = since(self.world.runmesh.entries().await?, before.entries);
        entries.retain(|entry| entry.workflow_id.as_ref().is_none_or(|id| !before.workflows.contains(id)));
        let lum_id = since(self.world.lum_id.violations().await?, before.lum_id_violations);
        let runmesh = since(self.world.runmesh.violations().await?, before.runmesh_violations);
        let mut exact = 0;
        for truth in &truth {
            let of_it: Vec<&Entry> = entries.iter().filter(|entry| truth.task_ids.contains(&entry.task_id)).collect();
            if let [entry] = of_it.as_slice() {
                exact += usize::from(entry.raw == self.expected_entry(truth, &entry.task_id).await?);
            }
        }
        self.narrator.compare("entries at Runmesh, one for each execution", truth.len(), entries.len());
        self.narrator.compare("  of which agree with FlowMesh in every field", truth.len(), exact);
        let whose = |person: &str| entries.iter().filter(|entry| entry.user_sub == person).count();
        self.narrator.compare("  of which alice's", truth.len(), whose(ALICE.sub));
        self.narrator.compare("  of which bob's", 0, whose(BOB.sub));
        let none = "none";
        let said =
            |violations: Vec<String>| if violations.is_empty() { none.to_owned() } else { violations.join("; ") };
        self.narrator.compare("departures from lum.id's contract", none, said(lum_id));
        self.narrator.compare("departures from Runmesh's contract", none, said(runmesh));
        Ok(())
    }

    /// Waits until Tollgate has nothing left to find out or to post, but for what was there before.
    async fn settled(&self) -> Result<()> {
        for (name, before) in FIGURES.iter().zip(self.before.figures) {
            wait_for(format!("Tollgate's {name} to be {before}"), self.world.charge_limit * 2, async || {
                self.world.tollgate.metric(name).await.filter(|value| *value <= before)
            })
            .await?;
        }
        Ok(())
    }
}

/// What came after so many.
fn since<T>(all: Vec<T>, before: usize) -> Vec<T> {
    all.into_iter().skip(before).collect()
}
