//! The moves of `serve`, each one transaction.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row;

use super::{SqliteLedger, charges, due, optional_time, submissions, work};
use crate::access_log::event::Event;
use crate::ledger::moves;
use crate::ledger::records::{BACKLOG, Counts};
use crate::ledger::{
    Attribution, Backlog, DueCharge, DueTask, DueWorkflow, Error, Existence, Ledger, NewSubmission, NextSweep,
    OpenSubmission, Pick, Posted, Pruned, Reported, Settled, Settlement, Work, ms, pruning, recording, time,
};

/// How many workflows of a list are looked up, and noted, at once.
const WORKFLOWS_AT_ONCE: usize = 500;

#[async_trait::async_trait]
impl Ledger for SqliteLedger {
    async fn born_at(&self) -> Result<Timestamp, Error> {
        Ok(time(sqlx::query_scalar("SELECT born_at FROM ledger").fetch_one(&self.read).await?))
    }

    async fn ours_since(&self) -> Result<Timestamp, Error> {
        Ok(time(sqlx::query_scalar("SELECT MAX(born_at, pruned_before) FROM ledger").fetch_one(&self.read).await?))
    }

    async fn open_begun(&self, submission: NewSubmission<'_>, began: Timestamp) -> Result<String, Error> {
        self.group.open(submission, began).await
    }

    async fn record(&self, events: &[Event], at: Timestamp) -> Result<Vec<Reported>, Error> {
        let mut tx = self.begin().await?;
        let charges = recording::record(&mut *tx, events, at).await?;
        tx.commit().await?;
        Ok(charges)
    }

    async fn note_workflows(&self, workflows: &[(String, Option<Timestamp>)], at: Timestamp) -> Result<u64, Error> {
        let mut news = 0;
        // Nearly all of a list is known, and a submission must not wait for the one writer while that is found out.
        for some in workflows.chunks(WORKFLOWS_AT_ONCE) {
            let ids = serde_json::json!(some.iter().map(|(id, _)| id).collect::<Vec<_>>()).to_string();
            let known: HashSet<String> = sqlx::query_scalar(
                "SELECT workflow_id FROM workflows
                 WHERE workflow_id IN (SELECT value FROM json_each(?)) AND state <> 'gone'",
            )
            .bind(ids)
            .fetch_all(&self.read)
            .await?
            .into_iter()
            .collect();
            let unknown: Vec<_> = some.iter().filter(|(id, _)| !known.contains(id)).collect();
            if unknown.is_empty() {
                continue;
            }
            let mut tx = self.begin().await?;
            news += work::note_workflows(&mut tx, &unknown, at).await?;
            tx.commit().await?;
        }
        Ok(news)
    }

    async fn compared(&self, revisit_since: Timestamp, at: Timestamp) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        sqlx::query("UPDATE ledger SET compared_at = MAX(COALESCE(compared_at, 0), ?)")
            .bind(ms(at))
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "UPDATE workflows SET state = 'open', sweep_at = MIN(sweep_at, ?1)
             WHERE attribution = 'held' AND state IN ('open', 'settled') AND noted_at >= ?2",
        )
        .bind(ms(at))
        .bind(ms(revisit_since))
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn compared_at(&self) -> Result<Option<Timestamp>, Error> {
        let at: Option<i64> = sqlx::query_scalar("SELECT compared_at FROM ledger").fetch_one(&self.read).await?;
        Ok(at.map(time))
    }

    async fn note_gap(&self, since: Timestamp, until: Timestamp) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO gaps (since, until) SELECT ?1, ?2 WHERE NOT EXISTS
                         (SELECT 1 FROM gaps WHERE since = ?1 AND until = ?2)",
        )
        .bind(ms(since))
        .bind(ms(until))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    async fn has_gap(&self, since: Timestamp, until: Timestamp) -> Result<bool, Error> {
        let overlaps = "SELECT EXISTS (SELECT 1 FROM gaps WHERE since <= ?2 AND until >= ?1)";
        Ok(sqlx::query_scalar(overlaps).bind(ms(since)).bind(ms(until)).fetch_one(&self.read).await?)
    }

    async fn recorded_until(&self) -> Result<Timestamp, Error> {
        // There is one process, which knows what it has not recorded.
        Ok(Timestamp::MAX)
    }

    async fn claim_workflows(&self, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueWorkflow>, Error> {
        let rows = due::claimed(&self.write, (Work::Workflows, pick), at, lease).await?;
        rows.iter()
            .map(|row| {
                let attribution: Option<String> = row.try_get("attribution")?;
                Ok(DueWorkflow {
                    workflow_id: row.try_get("workflow_id")?,
                    sweeps: row.try_get("sweeps")?,
                    needs_owner: matches!(attribution.as_deref(), None | Some("held")),
                    is_new: attribution.is_none(),
                    noted_at: time(row.try_get("noted_at")?),
                    heard: row.try_get("heard")?,
                    unknown_since: optional_time(row, "unknown_since")?,
                })
            })
            .collect()
    }

    async fn open_submissions(&self, since: Timestamp, until: Timestamp) -> Result<Vec<OpenSubmission>, Error> {
        Ok(submissions::open_between(&self.read, since, until).await?)
    }

    async fn attribute(
        &self,
        workflow_id: &str,
        attribution: &Attribution,
        submitted_at: Option<Timestamp>,
        at: Timestamp,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        moves::attribute(&mut *tx, workflow_id, attribution, submitted_at, at).await?;
        Ok(tx.commit().await?)
    }

    async fn note_tasks(&self, workflow_id: &str, tasks: &[(&str, bool)], at: Timestamp) -> Result<u64, Error> {
        let mut tx = self.begin().await?;
        work::note_tasks(&mut tx, workflow_id, tasks, at).await?;
        let open: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tasks WHERE workflow_id = ? AND state = 'open'")
            .bind(workflow_id)
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(open.unsigned_abs())
    }

    async fn swept(
        &self,
        due: &DueWorkflow,
        next: NextSweep,
        existence: Existence,
        at: Timestamp,
    ) -> Result<(), Error> {
        self.group.swept(due, next, existence, at).await
    }

    async fn claim_tasks(&self, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueTask>, Error> {
        let rows = due::claimed(&self.write, (Work::Tasks, pick), at, lease).await?;
        rows.iter()
            .map(|row| {
                Ok(DueTask {
                    task_id: row.try_get("task_id")?,
                    attempts: row.try_get("attempts")?,
                    eager: row.try_get("eager")?,
                    heard: row.try_get("heard")?,
                    unknown_since: optional_time(row, "unknown_since")?,
                })
            })
            .collect()
    }

    async fn unsettled(
        &self,
        due: &DueTask,
        again: Option<Timestamp>,
        existence: Existence,
        at: Timestamp,
    ) -> Result<(), Error> {
        self.group.unsettled(due, again, existence, at).await
    }

    async fn hold_task(&self, due: &DueTask, reason: &str, again: Timestamp, at: Timestamp) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        work::hold_task(&mut tx, due, reason, again, at).await?;
        Ok(tx.commit().await?)
    }

    async fn settle(
        &self,
        task_id: &str,
        workflow_id: Option<&str>,
        settlement: &Settlement,
        at: Timestamp,
    ) -> Result<Settled, Error> {
        self.group.settle(task_id, workflow_id, settlement, at).await
    }

    async fn awaiting_email(&self) -> Result<Vec<String>, Error> {
        let held = "SELECT DISTINCT principal_id FROM charges WHERE state = 'held' AND principal_id IS NOT NULL";
        Ok(sqlx::query_scalar(held).fetch_all(&self.read).await?)
    }

    async fn claim_charges(&self, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueCharge>, Error> {
        let mut tx = self.begin().await?;
        let claimed = charges::claim(&mut tx, at, lease, pick).await?;
        tx.commit().await?;
        Ok(claimed)
    }

    async fn posted(&self, charge: &DueCharge, at: Timestamp) -> Result<Posted, Error> {
        self.group.posted(charge, at).await
    }

    async fn post_failed(&self, charge: &DueCharge, error: &str, again: Timestamp, at: Timestamp) -> Result<(), Error> {
        self.group.post_failed(charge, error, again, at).await
    }

    async fn post_rejected(&self, charge: &DueCharge, answer: &str) -> Result<(), Error> {
        self.group.post_rejected(charge, answer).await
    }

    async fn next_due(&self, work: Work) -> Result<Option<Timestamp>, Error> {
        let due: Option<i64> = sqlx::query_scalar(due::next(work)).fetch_one(&self.read).await?;
        Ok(due.map(time))
    }

    async fn prune(&self, before: Timestamp, at: Timestamp) -> Result<Option<Pruned>, Error> {
        pruning::prune(self, before, at).await
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        let counts: Counts = sqlx::query_as(BACKLOG).fetch_one(&self.read).await?;
        Ok(counts.into())
    }

    /// Waits until every connection is closed, which also folds the WAL into the file.
    async fn close(&self) {
        self.group.close().await;
        self.read.close().await;
        self.write.close().await;
    }
}
