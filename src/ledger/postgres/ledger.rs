//! The moves of `serve`, each one transaction.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Row};

use super::events::{ids, statement};
use super::{PostgresLedger, charges, count, due, optional_text, optional_time, text, work};
use crate::access_log::event::Event;
use crate::ledger::moves;
use crate::ledger::records::{BACKLOG, Counts};
use crate::ledger::{
    Attribution, Backlog, DueCharge, DueTask, DueWorkflow, Error, Existence, Ledger, NewSubmission, NextSweep,
    OpenSubmission, Pick, Posted, Pruned, Reported, Settled, Settlement, Work, ms, pruning, recording, time,
};

/// How many workflows of a list are looked up, and noted, at once.
const WORKFLOWS_AT_ONCE: usize = 500;

impl PostgresLedger {
    /// A number that is read from the one row there is, or from an index.
    pub(super) async fn number(&self, query: &'static str) -> Result<Option<i64>, Error> {
        let reading = async {
            let mut lent = self.store.get().await?;
            let number = sqlx::query_scalar(query).fetch_one(&mut *lent).await?;
            lent.give_back();
            Ok(number)
        };
        self.store.pool.bounded(reading).await
    }
}

#[async_trait::async_trait]
impl Ledger for PostgresLedger {
    async fn born_at(&self) -> Result<Timestamp, Error> {
        Ok(time(self.number("SELECT born_at FROM ledger").await?.unwrap_or_default()))
    }

    async fn ours_since(&self) -> Result<Timestamp, Error> {
        Ok(time(self.number("SELECT GREATEST(born_at, pruned_before) FROM ledger").await?.unwrap_or_default()))
    }

    async fn open_begun(&self, submission: NewSubmission<'_>, began: Timestamp) -> Result<String, Error> {
        self.group.open(submission, began).await
    }

    async fn record(&self, events: &[Event], at: Timestamp) -> Result<Vec<Reported>, Error> {
        let recording = async {
            let mut writing = self.store.write().await?;
            let charges = recording::record(writing.tx(), events, at).await?;
            writing.commit().await?;
            Ok(charges)
        };
        self.store.pool.bounded(recording).await
    }

    async fn note_workflows(&self, workflows: &[(String, Option<Timestamp>)], at: Timestamp) -> Result<u64, Error> {
        let mut news = 0;
        // Nearly all of a list is known, and a submission must not wait for the one writer while that is found out.
        for some in workflows.chunks(WORKFLOWS_AT_ONCE) {
            let noting = async {
                let known = statement(
                    "SELECT workflow_id FROM workflows
                     WHERE workflow_id IN (SELECT jsonb_array_elements_text($1::text::jsonb)) AND state <> 'gone'",
                    some.iter().map(|(id, _)| id).collect::<Vec<_>>(),
                )?;
                let mut lent = self.store.get().await?;
                let known: HashSet<String> = ids(&mut lent, known).await?.into_iter().collect();
                lent.give_back();
                let unknown: Vec<_> = some.iter().filter(|(id, _)| !known.contains(id)).collect();
                if unknown.is_empty() {
                    return Ok(0);
                }
                let mut writing = self.store.write().await?;
                let noted = work::note_workflows(writing.tx(), &unknown, at).await?;
                writing.commit().await?;
                Ok::<_, Error>(noted)
            };
            news += self.store.pool.bounded(noting).await?;
        }
        Ok(news)
    }

    async fn compared(&self, revisit_since: Timestamp, at: Timestamp) -> Result<(), Error> {
        let noting = async {
            let mut writing = self.store.write().await?;
            sqlx::query("UPDATE ledger SET compared_at = GREATEST(COALESCE(compared_at, 0), $1)")
                .bind(ms(at))
                .execute(writing.tx())
                .await?;
            sqlx::query(
                "UPDATE workflows SET state = 'open', sweep_at = LEAST(sweep_at, $1)
                 WHERE attribution = 'held' AND state IN ('open', 'settled') AND noted_at >= $2",
            )
            .bind(ms(at))
            .bind(ms(revisit_since))
            .execute(writing.tx())
            .await?;
            Ok(writing.commit().await?)
        };
        self.store.pool.bounded(noting).await
    }

    async fn compared_at(&self) -> Result<Option<Timestamp>, Error> {
        Ok(self.number("SELECT compared_at FROM ledger").await?.map(time))
    }

    async fn note_gap(&self, since: Timestamp, until: Timestamp) -> Result<(), Error> {
        let noting = async {
            let mut writing = self.store.write().await?;
            work::note_gap(writing.tx(), since, until).await?;
            Ok(writing.commit().await?)
        };
        self.store.pool.bounded(noting).await
    }

    async fn has_gap(&self, since: Timestamp, until: Timestamp) -> Result<bool, Error> {
        let reading = async {
            let mut lent = self.store.get().await?;
            let has = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM gaps WHERE since <= $2 AND until >= $1)")
                .bind(ms(since))
                .bind(ms(until))
                .fetch_one(&mut *lent)
                .await?;
            lent.give_back();
            Ok(has)
        };
        self.store.pool.bounded(reading).await
    }

    async fn recorded_until(&self) -> Result<Timestamp, Error> {
        // Without a replica there is nobody who could have let anything through.
        Ok(self.number("SELECT MIN(recorded_until) FROM replicas").await?.map_or(Timestamp::MAX, time))
    }

    async fn claim_workflows(&self, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueWorkflow>, Error> {
        let rows = self.store.pool.bounded(due::claimed(&self.store, (Work::Workflows, pick), at, lease)).await?;
        rows.iter()
            .map(|row| {
                let attribution = optional_text(row, "attribution")?;
                Ok(DueWorkflow {
                    workflow_id: text(row, "workflow_id")?,
                    sweeps: count(row, "sweeps")?,
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
        let reading = async {
            let mut lent = self.store.get().await?;
            let open = work::open_between(&mut lent, since, until).await?;
            lent.give_back();
            Ok(open)
        };
        self.store.pool.bounded(reading).await
    }

    async fn attribute(
        &self,
        workflow_id: &str,
        attribution: &Attribution,
        submitted_at: Option<Timestamp>,
        at: Timestamp,
    ) -> Result<(), Error> {
        let attributing = async {
            let mut writing = self.store.write().await?;
            moves::attribute(writing.tx(), workflow_id, attribution, submitted_at, at).await?;
            Ok(writing.commit().await?)
        };
        self.store.pool.bounded(attributing).await
    }

    async fn note_tasks(&self, workflow_id: &str, tasks: &[(&str, bool)], at: Timestamp) -> Result<u64, Error> {
        let noting = async {
            let mut writing = self.store.write().await?;
            let open = work::note_tasks(writing.tx(), workflow_id, tasks, at).await?;
            writing.commit().await?;
            Ok(open)
        };
        self.store.pool.bounded(noting).await
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
        let rows = self.store.pool.bounded(due::claimed(&self.store, (Work::Tasks, pick), at, lease)).await?;
        rows.iter()
            .map(|row| {
                Ok(DueTask {
                    task_id: text(row, "task_id")?,
                    attempts: count(row, "attempts")?,
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
        let holding = async {
            let mut writing = self.store.write().await?;
            work::hold_task(writing.tx(), due, reason, again, at).await?;
            Ok(writing.commit().await?)
        };
        self.store.pool.bounded(holding).await
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
        let reading = async {
            let mut lent = self.store.get().await?;
            let held = "SELECT DISTINCT principal_id FROM charges WHERE state = 'held' AND principal_id IS NOT NULL";
            let waiting = ids(&mut lent, sqlx::query(held)).await?;
            lent.give_back();
            Ok(waiting)
        };
        self.store.pool.bounded(reading).await
    }

    async fn claim_charges(&self, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueCharge>, Error> {
        self.store.pool.bounded(charges::claim(&self.store, at, lease, pick)).await
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
        Ok(self.number(due::next(work)).await?.map(time))
    }

    async fn prune(&self, before: Timestamp, at: Timestamp) -> Result<Option<Pruned>, Error> {
        pruning::prune(self, before, at).await
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        let reading = async {
            let mut lent = self.store.get().await?;
            let counts: Counts = sqlx::query_as(AssertSqlSafe(BACKLOG)).fetch_one(&mut *lent).await?;
            lent.give_back();
            Ok(counts.into())
        };
        self.store.pool.bounded(reading).await
    }

    async fn close(&self) {
        self.group.close().await;
        self.store.pool.close().await;
    }
}
