//! Pruning what is over, whatever the database.
//!
//! What must not happen: a task whose row is gone is seen again and billed again. So a workflow goes as a whole. It first
//! turns into a tombstone (`ignored`, nobody's), which bills nothing; then go its charges and tasks, in parts; then the
//! tombstone. What is seen of it after that leads to its workflow at FlowMesh, which is older than `pruned_before`, and
//! such a workflow is ignored; `pruned_before` is committed before anything goes.

use jiff::{SignedDuration, Timestamp};

use super::{Error, Pruned, ms};
use crate::settlement::attribution::{CLOCK_SKEW, LONGEST_SUBMISSION};

/// Rows in one transaction at most: a submission waits for the ledger meanwhile.
const AT_ONCE: u32 = 500;
/// Things judged in one transaction at most: a workflow with all its tasks, a submission with every held workflow.
const JUDGED_AT_ONCE: u32 = 20;
/// How much older than `pruned_before` by our clock is what goes: FlowMesh's clock decides whether it is ignored.
const MARGIN: SignedDuration = SignedDuration::from_hours(24);
/// How long looking for a workflow's owner takes when all is well.
const OWNER_FOUND_WITHIN: SignedDuration = SignedDuration::from_mins(5);

/// What pruning makes of a workflow, and what a workflow that was never ours is.
const WORKFLOW_IS_TOMBSTONE: &str = "state = 'ignored'";
const SUBMISSION_IS_OVER: &str = "state <> 'open'
    AND NOT EXISTS (SELECT 1 FROM workflows WHERE workflows.submission_id = submissions.submission_id)";
const TASK_IS_NOBODYS: &str = "workflow_id IS NULL AND state = 'settled'
    AND NOT EXISTS (SELECT 1 FROM charges WHERE charges.task_id = tasks.task_id)";

/// What of pruning differs between databases.
pub trait Pruning: Sync {
    /// A row's own address, whatever its key.
    const ROW: &'static str;
    /// The ids that are bound as JSON, as a column `id` of a table.
    const IDS: &'static str;

    /// Whether a query of `EXISTS` finds something.
    fn is_so(&self, query: String) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Times and ids after `after`, which is bound to `$1` and `$2`. Reading, so that nobody waits for it.
    fn find(
        &self,
        query: String,
        after: &(i64, String),
    ) -> impl Future<Output = Result<Vec<(i64, String)>, Error>> + Send;

    /// Executes a statement in a transaction of its own, with the ids for `$1`, if there are any. How many rows it changed.
    fn execute(&self, statement: String, ids: Option<&[String]>) -> impl Future<Output = Result<u64, Error>> + Send;
}

/// Deletes what was over before `before`; `None` when it is too early for that: somebody has waited for long to have a
/// workflow's owner looked for, and an old submission may yet be the one.
///
/// # Errors
/// Those of the database; what is left goes the next time.
pub async fn prune(on: &impl Pruning, before: Timestamp, at: Timestamp) -> Result<Option<Pruned>, Error> {
    let waiting = format!(
        "SELECT EXISTS (SELECT 1 FROM workflows WHERE state = 'open' AND attribution IS NULL AND noted_at < {})",
        ms(at - OWNER_FOUND_WITHIN)
    );
    if on.is_so(waiting).await? {
        return Ok(None);
    }
    let before_ms = ms(before);
    let note = format!("UPDATE ledger SET pruned_before = {before_ms} WHERE pruned_before < {before_ms}");
    on.execute(note, None).await?;
    let part = Part { on, before };
    let mut pruned = Pruned::default();
    part.workflows(&mut pruned).await?;
    for is_over in [SUBMISSION_IS_OVER, &submission_is_lost()] {
        pruned.submissions += part.rows("submissions", "submission_id", "opened_at", is_over).await?;
    }
    pruned.tasks += part.rows("tasks", "task_id", "asked_at", TASK_IS_NOBODYS).await?;
    Ok(Some(pruned))
}

struct Part<'a, P> {
    on: &'a P,
    before: Timestamp,
}

impl<P: Pruning> Part<'_, P> {
    async fn workflows(&self, pruned: &mut Pruned) -> Result<(), Error> {
        let (ids, row) = (P::IDS, P::ROW);
        let is_over = workflow_is_over(self.before);
        let mut after = (i64::MIN, String::new());
        while let Some(found) = self.next("workflows", "workflow_id", "noted_at", &is_over, &mut after).await? {
            // Judged again, in the transaction: something may have been heard of it.
            let bury = format!(
                "UPDATE workflows SET state = 'ignored', principal_id = NULL, submission_id = NULL,
                     attribution = NULL, hold_reason = NULL
                 WHERE workflow_id IN (SELECT id FROM {ids}) AND {is_over}"
            );
            self.on.execute(bury, Some(&found)).await?;
            for (table, done, count) in
                [("charges", "posted", &mut pruned.charges), ("tasks", "settled", &mut pruned.tasks)]
            {
                let delete = format!(
                    "DELETE FROM {table} WHERE {row} IN (
                         SELECT {table}.{row} FROM {ids} CROSS JOIN workflows JOIN {table} ON {table}.workflow_id = id
                         WHERE workflows.workflow_id = id AND workflows.{WORKFLOW_IS_TOMBSTONE}
                           AND {table}.state = '{done}' LIMIT {AT_ONCE})"
                );
                loop {
                    let gone = self.on.execute(delete.clone(), Some(&found)).await?;
                    *count += gone;
                    if gone < u64::from(AT_ONCE) {
                        break;
                    }
                }
            }
            let delete = format!(
                "DELETE FROM workflows WHERE workflow_id IN (SELECT id FROM {ids})
                     AND {WORKFLOW_IS_TOMBSTONE} AND {is_over}"
            );
            pruned.workflows += self.on.execute(delete, Some(&found)).await?;
        }
        Ok(())
    }

    /// Deletes rows that depend on nothing else.
    async fn rows(&self, table: &str, id: &str, time: &str, is_over: &str) -> Result<u64, Error> {
        let (mut gone, mut after) = (0, (i64::MIN, String::new()));
        while let Some(found) = self.next(table, id, time, is_over, &mut after).await? {
            let delete = format!("DELETE FROM {table} WHERE {id} IN (SELECT id FROM {}) AND {is_over}", P::IDS);
            gone += self.on.execute(delete, Some(&found)).await?;
        }
        Ok(gone)
    }

    /// The next ids after `after` that are old enough and over.
    async fn next(
        &self,
        table: &str,
        id: &str,
        time: &str,
        is_over: &str,
        after: &mut (i64, String),
    ) -> Result<Option<Vec<String>>, Error> {
        let query = format!(
            "SELECT {time}, {id} FROM {table} WHERE ({time}, {id}) > ($1, $2) AND {time} < {} AND {is_over}
             ORDER BY {time}, {id} LIMIT {JUDGED_AT_ONCE}",
            ms(self.before - MARGIN)
        );
        let found = self.on.find(query, after).await?;
        let Some(last) = found.last() else { return Ok(None) };
        after.clone_from(last);
        Ok(Some(found.into_iter().map(|(_, id)| id).collect()))
    }
}

/// Nothing of it is unposted, unsettled, or younger than `before`.
fn workflow_is_over(before: Timestamp) -> String {
    let before = ms(before);
    format!(
        "state <> 'open'
         AND NOT EXISTS (SELECT 1 FROM charges WHERE charges.workflow_id = workflows.workflow_id
                         AND (charges.state <> 'posted' OR charges.posted_at >= {before}))
         AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.workflow_id = workflows.workflow_id
                         AND (tasks.state = 'open' OR tasks.asked_at >= {before}))"
    )
}

/// It can match no more, and no held workflow has it for a candidate.
fn submission_is_lost() -> String {
    let (skew, longest) = (CLOCK_SKEW.as_millis(), LONGEST_SUBMISSION.as_millis());
    format!(
        "state = 'open'
         AND NOT EXISTS (SELECT 1 FROM workflows WHERE attribution = 'held' AND workflows.state <> 'ignored'
                         AND (submitted_at IS NULL
                              OR submitted_at BETWEEN opened_at - {skew} AND COALESCE(ended_at, opened_at) + {longest}))"
    )
}
