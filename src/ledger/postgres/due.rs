//! What is due, and claiming it: statements that step through a partial index, however much is open or over.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;

use super::Store;
use crate::ledger::due::Claim;
use crate::ledger::{Error, Pick, Work, ms};

/// The statement that claims due work, of `$1` the time, `$2` the end of the lease and `$3` how much, which is returned
/// beside it. Rows that somebody is about to change are passed over, so it waits for nobody. While another ledger is being moved
/// into this one nothing is due: a `serve` that had opened it before does not have the lock to wait for here.
pub fn claim(work: Work, pick: Pick) -> (String, u32) {
    let Claim { table, id, is_due, order, limit, returned } = Claim::new(work, pick);
    let statement = format!(
        "WITH due AS MATERIALIZED (
             SELECT {id} FROM {table} WHERE {is_due} AND leased_until <= $1
             AND NOT EXISTS (SELECT FROM moved_from WHERE done_at IS NULL) ORDER BY {order} LIMIT $3
             FOR UPDATE SKIP LOCKED)
         UPDATE {table} SET leased_until = $2 FROM due WHERE {table}.{id} = due.{id} RETURNING {returned}"
    );
    (statement, limit)
}

/// Claims due work until the end of the lease.
pub async fn claimed(
    store: &Store,
    (work, pick): (Work, Pick),
    at: Timestamp,
    lease: Duration,
) -> Result<Vec<PgRow>, Error> {
    let (statement, limit) = claim(work, pick);
    let until = ms(at).saturating_add(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX));
    let mut lent = store.get().await?;
    let rows = sqlx::query(AssertSqlSafe(statement))
        .bind(ms(at))
        .bind(until)
        .bind(i64::from(limit))
        .fetch_all(&mut *lent)
        .await?;
    lent.give_back();
    Ok(rows)
}

/// The query for when the next piece of work is due: of what is leased, which is little, the first whose lease ends; and of
/// what is not, the first in its index.
pub fn next(work: Work) -> &'static str {
    match work {
        Work::Tasks => {
            "SELECT MIN(due) FROM (
                 SELECT MIN(GREATEST(settle_at, leased_until)) AS due FROM tasks
                 WHERE leased_until <> 0 AND state = 'open' AND settle_at IS NOT NULL
                 UNION ALL
                 (SELECT settle_at FROM tasks
                  WHERE leased_until = 0 AND state = 'open' AND settle_at IS NOT NULL ORDER BY settle_at LIMIT 1)) AS work"
        }
        Work::Workflows => {
            "SELECT MIN(due) FROM (
                 SELECT MIN(GREATEST(sweep_at, leased_until)) AS due FROM workflows
                 WHERE leased_until <> 0 AND state = 'open'
                 UNION ALL
                 (SELECT sweep_at FROM workflows
                  WHERE leased_until = 0 AND state = 'open' ORDER BY sweep_at LIMIT 1)) AS work"
        }
        Work::Charges => {
            "SELECT MIN(due) FROM (
                 SELECT MIN(GREATEST(post_at, leased_until)) AS due FROM charges
                 WHERE leased_until <> 0 AND state = 'pending'
                 UNION ALL
                 (SELECT post_at FROM charges
                  WHERE leased_until = 0 AND state = 'pending' ORDER BY post_at LIMIT 1)) AS work"
        }
    }
}
