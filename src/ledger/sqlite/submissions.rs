//! Submission rows.

use jiff::Timestamp;
use sqlx::sqlite::SqlitePool;

use crate::ledger::records::{OPEN_SUBMISSIONS, OpenRecord};
use crate::ledger::{OpenSubmission, ms};

/// Those still open that began from `since` to `until`.
pub async fn open_between(
    pool: &SqlitePool,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<OpenSubmission>, sqlx::Error> {
    let rows: Vec<OpenRecord> =
        sqlx::query_as(OPEN_SUBMISSIONS).bind(ms(since)).bind(ms(until)).fetch_all(pool).await?;
    Ok(rows.into_iter().map(OpenSubmission::from).collect())
}
