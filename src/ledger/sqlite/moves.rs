//! What settling, sweeping, posting and Check bring, committed in groups.
//!
//! One by one each was a transaction with an fsync of its own, and 430 charges were posted a second. As many as wait for the
//! writer are one transaction now, in a number of statements that does not grow with them but for submissions: 2350 posts a
//! second to a Runmesh that answers in 10 ms, and 11 000 settled tasks.

use jiff::Timestamp;
use sqlx::{SqliteConnection, SqlitePool};

use super::charges::{self, Settling};
use super::events::json;
use super::{begin, ms, submissions};
use crate::ledger::group::{Commit, Failed};
use crate::ledger::{Error, Existence, NewSubmission, NextSweep, Settled, Settlement};
use crate::principal::Principal;

/// One of them.
#[derive(Debug)]
pub enum Move {
    Open { submission_id: String, principal: Principal, request_id: String, at: Timestamp },
    Settle { task_id: String, workflow_id: Option<String>, settlement: Settlement, at: Timestamp },
    Unsettled { task_id: String, heard: i64, again: Option<Timestamp>, existence: Existence, at: Timestamp },
    Swept { workflow_id: String, heard: i64, next: NextSweep, existence: Existence, at: Timestamp },
    Posted { task_id: String, at: Timestamp },
    PostFailed { task_id: String, error: String, again: Timestamp, at: Timestamp },
    PostRejected { task_id: String, answer: String },
}

/// What came of one.
#[derive(Debug)]
pub enum Moved {
    Done,
    /// Under which id the submission stands.
    Opened(String),
    Settled(Settled),
}

/// The one connection that writes.
#[derive(Debug, Clone)]
pub struct Writer(pub SqlitePool);

impl Commit for Writer {
    type Move = Move;
    type Moved = Moved;

    async fn commit(&self, moves: &[Move]) -> Result<Vec<Moved>, Failed> {
        let mut tx = begin(&self.0).await.map_err(failed)?;
        let outcomes = apply(&mut tx, moves).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(outcomes)
    }
}

/// A row that breaks a rule of the schema, or cannot be a row, is that row's fault. Everything else (a full disk, a lock, a
/// failing read) is nobody's.
fn failed(error: sqlx::Error) -> Failed {
    let is_of_one = match &error {
        sqlx::Error::Database(error) => {
            // SQLITE_ERROR, _TOOBIG, _CONSTRAINT and _MISMATCH; the rest of an extended code says which of these.
            let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
            matches!(code & 0xff, 1 | 18..=20)
        }
        sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::RowNotFound => true,
        _ => false,
    };
    let error = Error::from(error);
    if is_of_one { Failed::One(error) } else { Failed::All(error) }
}

/// Kind by kind: moves that wait at the same time are of different things, each of which somebody holds by a lease.
async fn apply(tx: &mut SqliteConnection, moves: &[Move]) -> Result<Vec<Moved>, sqlx::Error> {
    let mut outcomes = Vec::with_capacity(moves.len());
    let (mut settling, mut unsettled, mut swept) = (Vec::new(), Vec::new(), Vec::new());
    let (mut posted, mut post_failed, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = Timestamp::MIN;
    for (n, this) in moves.iter().enumerate() {
        outcomes.push(Moved::Done);
        match this {
            Move::Open { submission_id, principal, request_id, at } => {
                let row = NewSubmission { submission_id, principal, request_id, at: *at };
                outcomes[n] = Moved::Opened(submissions::open(tx, row).await?);
            }
            Move::Settle { task_id, workflow_id, settlement, at } => {
                settling.push((n, Settling { task_id, workflow_id: workflow_id.as_deref(), settlement, at: *at }));
            }
            Move::Unsettled { task_id, heard, again, existence, at } => {
                unsettled.push((task_id, again.map(ms), ms(*at), heard, existence.as_str()));
            }
            Move::Swept { workflow_id, heard, next, existence, at } => {
                let (state, sweep_at) = match next {
                    NextSweep::At(at) => ("open", Some(ms(*at))),
                    NextSweep::Settled => ("settled", None),
                    NextSweep::Gone => ("gone", None),
                };
                swept.push((workflow_id, state, sweep_at, ms(*at), heard, existence.as_str()));
            }
            Move::Posted { task_id, at } => posted.push((task_id.as_str(), ms(*at))),
            Move::PostFailed { task_id, error, again, at } => {
                post_failed.push((task_id.as_str(), error.as_str(), ms(*again)));
                last = last.max(*at);
            }
            Move::PostRejected { task_id, answer } => rejected.push((task_id.as_str(), answer.as_str())),
        }
    }
    if !settling.is_empty() {
        let items: Vec<Settling<'_>> = settling.iter().map(|(_, item)| *item).collect();
        for ((n, _), settled) in settling.iter().zip(charges::settle(tx, &items).await?) {
            outcomes[*n] = Moved::Settled(settled);
        }
    }
    if !unsettled.is_empty() {
        // News that came meanwhile are acted on at once.
        sqlx::query(
            "UPDATE tasks SET leased_until = 0, attempts = attempts + 1, asked_at = said.value ->> 2,
                 settle_at = IIF(heard = said.value ->> 3, said.value ->> 1, MIN(settle_at, said.value ->> 2)),
                 unknown_since = CASE said.value ->> 4 WHEN 'known' THEN NULL
                                                       WHEN 'unknown' THEN COALESCE(unknown_since, said.value ->> 2)
                                                       ELSE unknown_since END
             FROM json_each(?) AS said WHERE task_id = said.value ->> 0 AND state = 'open'",
        )
        .bind(json(unsettled)?)
        .execute(&mut *tx)
        .await?;
    }
    if !swept.is_empty() {
        // Likewise.
        sqlx::query(
            "UPDATE workflows SET leased_until = 0, asked_at = said.value ->> 3,
                 sweeps = IIF(heard = said.value ->> 4, sweeps + 1, sweeps),
                 state = IIF(heard = said.value ->> 4, said.value ->> 1, 'open'),
                 sweep_at = IIF(heard = said.value ->> 4, COALESCE(said.value ->> 2, sweep_at),
                                MIN(sweep_at, said.value ->> 3)),
                 unknown_since = CASE said.value ->> 5 WHEN 'known' THEN NULL
                                                       WHEN 'unknown' THEN COALESCE(unknown_since, said.value ->> 3)
                                                       ELSE unknown_since END
             FROM json_each(?) AS said WHERE workflow_id = said.value ->> 0 AND state = 'open'",
        )
        .bind(json(swept)?)
        .execute(&mut *tx)
        .await?;
    }
    if !posted.is_empty() {
        charges::posted(tx, &posted).await?;
    }
    if !post_failed.is_empty() {
        charges::failed(tx, &post_failed, last).await?;
    }
    if !rejected.is_empty() {
        charges::rejected(tx, &rejected).await?;
    }
    Ok(outcomes)
}
