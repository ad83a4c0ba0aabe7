//! Pruning what is over.
//!
//! What must not happen: a task whose row is gone is seen again and billed again. So a workflow goes as a whole. It first
//! turns into a tombstone (`ignored`, nobody's), which bills nothing; then go its charges and tasks, in parts; then the
//! tombstone. What is seen of it after that leads to its workflow at FlowMesh, which is older than `pruned_before`, and
//! such a workflow is ignored; `pruned_before` is committed before anything goes.

use jiff::{SignedDuration, Timestamp};
use sqlx::AssertSqlSafe;

use super::{SqliteLedger, ms};
use crate::ledger::Pruned;
use crate::settlement::attribution::{CLOCK_SKEW, LONGEST_SUBMISSION};

/// Rows in one transaction at most: a submission waits for the ledger meanwhile.
const AT_ONCE: u32 = 500;
/// Things judged in one transaction at most: a workflow with all its tasks, a submission with every held workflow.
const JUDGED_AT_ONCE: u32 = 20;
/// How much older than `pruned_before` by our clock is what goes: FlowMesh's clock decides whether it is ignored.
const MARGIN: SignedDuration = SignedDuration::from_hours(24);
/// How long looking for a workflow's owner takes when all is well.
const OWNER_FOUND_WITHIN: SignedDuration = SignedDuration::from_mins(5);

/// Nothing of it is unposted, unsettled, or younger than `?2`.
const WORKFLOW_IS_OVER: &str = "state <> 'open'
    AND NOT EXISTS (SELECT 1 FROM charges WHERE charges.workflow_id = workflows.workflow_id
                    AND (charges.state <> 'posted' OR charges.posted_at >= ?2))
    AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.workflow_id = workflows.workflow_id
                    AND (tasks.state = 'open' OR tasks.asked_at >= ?2))";
/// What pruning makes of a workflow, and what a workflow that was never ours is.
const WORKFLOW_IS_TOMBSTONE: &str = "state = 'ignored'";
const SUBMISSION_IS_OVER: &str = "state <> 'open'
    AND NOT EXISTS (SELECT 1 FROM workflows WHERE workflows.submission_id = submissions.submission_id)";
/// It can match no more, and no held workflow has it for a candidate.
const SUBMISSION_IS_LOST: &str = "state = 'open'
    AND NOT EXISTS (SELECT 1 FROM workflows WHERE attribution = 'held' AND workflows.state <> 'ignored'
                    AND (submitted_at IS NULL OR submitted_at BETWEEN opened_at - ?3 AND COALESCE(ended_at, opened_at) + ?4))";
const TASK_IS_NOBODYS: &str = "workflow_id IS NULL AND state = 'settled'
    AND NOT EXISTS (SELECT 1 FROM charges WHERE charges.task_id = tasks.task_id)";

/// Deletes what was over before `before`; `None` when it is too early for that.
pub async fn prune(ledger: &SqliteLedger, before: Timestamp, at: Timestamp) -> Result<Option<Pruned>, sqlx::Error> {
    if owners_are_looked_for(ledger, at).await? {
        return Ok(None);
    }
    sqlx::query("UPDATE ledger SET pruned_before = MAX(pruned_before, ?)")
        .bind(ms(before))
        .execute(&ledger.write)
        .await?;
    let pruning = Pruning { ledger, before };
    let mut pruned = Pruned::default();
    pruning.workflows(&mut pruned).await?;
    for (time, is_over) in [("opened_at", SUBMISSION_IS_OVER), ("opened_at", SUBMISSION_IS_LOST)] {
        pruned.submissions += pruning.rows("submissions", "submission_id", time, is_over).await?;
    }
    pruned.tasks += pruning.rows("tasks", "task_id", "asked_at", TASK_IS_NOBODYS).await?;
    Ok(Some(pruned))
}

/// Whether some workflow has waited for long to have its owner looked for: an old submission may yet be the one.
async fn owners_are_looked_for(ledger: &SqliteLedger, at: Timestamp) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM workflows WHERE state = 'open' AND attribution IS NULL AND noted_at < ?)",
    )
    .bind(ms(at - OWNER_FOUND_WITHIN))
    .fetch_one(&ledger.read)
    .await
}

struct Pruning<'a> {
    ledger: &'a SqliteLedger,
    before: Timestamp,
}

impl Pruning<'_> {
    async fn workflows(&self, pruned: &mut Pruned) -> Result<(), sqlx::Error> {
        let mut after = (i64::MIN, String::new());
        while let Some(ids) = self.next("workflows", "workflow_id", "noted_at", WORKFLOW_IS_OVER, &mut after).await? {
            // Judged again, in the transaction: something may have been heard of it.
            self.execute(
                format!(
                    "UPDATE workflows SET state = 'ignored', principal_id = NULL, submission_id = NULL,
                         attribution = NULL, hold_reason = NULL
                     WHERE workflow_id IN (SELECT value FROM json_each(?1)) AND {WORKFLOW_IS_OVER}"
                ),
                &ids,
            )
            .await?;
            for (table, done, count) in
                [("charges", "posted", &mut pruned.charges), ("tasks", "settled", &mut pruned.tasks)]
            {
                let delete = format!(
                    "DELETE FROM {table} WHERE rowid IN (
                         SELECT {table}.rowid FROM json_each(?1) CROSS JOIN workflows ON workflows.workflow_id = value
                         JOIN {table} ON {table}.workflow_id = value
                         WHERE workflows.{WORKFLOW_IS_TOMBSTONE} AND {table}.state = '{done}' LIMIT {AT_ONCE})"
                );
                loop {
                    let gone = self.execute(delete.clone(), &ids).await?;
                    *count += gone;
                    if gone < u64::from(AT_ONCE) {
                        break;
                    }
                }
            }
            let delete = format!(
                "DELETE FROM workflows WHERE workflow_id IN (SELECT value FROM json_each(?1))
                     AND {WORKFLOW_IS_TOMBSTONE} AND {WORKFLOW_IS_OVER}"
            );
            pruned.workflows += self.execute(delete, &ids).await?;
        }
        Ok(())
    }

    /// Deletes rows that depend on nothing else.
    async fn rows(&self, table: &str, id: &str, time: &str, is_over: &str) -> Result<u64, sqlx::Error> {
        let (mut gone, mut after) = (0, (i64::MIN, String::new()));
        while let Some(ids) = self.next(table, id, time, is_over, &mut after).await? {
            let delete = format!("DELETE FROM {table} WHERE {id} IN (SELECT value FROM json_each(?1)) AND {is_over}");
            gone += self.execute(delete, &ids).await?;
        }
        Ok(gone)
    }

    /// The next ids after `after` that are old enough and over, as JSON. Reading, so that nobody waits for it.
    async fn next(
        &self,
        table: &str,
        id: &str,
        time: &str,
        is_over: &str,
        after: &mut (i64, String),
    ) -> Result<Option<String>, sqlx::Error> {
        let select = format!(
            "SELECT {time}, {id} FROM {table} WHERE ({time}, {id}) > (?5, ?6) AND {time} < ?1 AND {is_over}
             ORDER BY {time}, {id} LIMIT {JUDGED_AT_ONCE}"
        );
        let found: Vec<(i64, String)> = sqlx::query_as(AssertSqlSafe(select))
            .bind(ms(self.before - MARGIN))
            .bind(ms(self.before))
            .bind(skew())
            .bind(longest())
            .bind(after.0)
            .bind(&after.1)
            .fetch_all(&self.ledger.read)
            .await?;
        let Some(last) = found.last() else { return Ok(None) };
        after.clone_from(last);
        Ok(Some(serde_json::json!(found.iter().map(|(_, id)| id).collect::<Vec<_>>()).to_string()))
    }

    async fn execute(&self, statement: String, ids: &str) -> Result<u64, sqlx::Error> {
        let result = sqlx::query(AssertSqlSafe(statement))
            .bind(ids)
            .bind(ms(self.before))
            .bind(skew())
            .bind(longest())
            .execute(&self.ledger.write)
            .await?;
        Ok(result.rows_affected())
    }
}

fn skew() -> i64 {
    i64::try_from(CLOCK_SKEW.as_millis()).unwrap_or(i64::MAX)
}

fn longest() -> i64 {
    i64::try_from(LONGEST_SUBMISSION.as_millis()).unwrap_or(i64::MAX)
}
