//! A SQLite ledger moves into a PostgreSQL, so that several Tollgates can share it.
//!
//! From its beginning to its end neither of the two ledgers can be used by a `serve`: what is owed would be billed from both, or
//! half of it be missing. The source is locked, and marked for good before its first row is read; the target says what is being
//! moved into it, and up to where, in the transactions that bring the rows. So a kill at any point leaves something to go on with,
//! and a source that was used again meanwhile, whose mark is gone, is not mixed with what was read before.

mod comparing;
mod rows;

use std::path::Path;

use jiff::Timestamp;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use uuid::Uuid;

pub use comparing::Figure;
pub use rows::{TABLES, Table};

use super::text::stored;
use super::{Store, open_error, optional_time, text};
use crate::config;
use crate::ledger::sqlite::{Life, Moved, Source};
use crate::ledger::{self, ms};

/// Rows moved in one transaction: what a kill makes to be done again is little, and more at once is no faster.
const AT_ONCE: u32 = 5000;

/// Why a ledger is not moved, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The target is somebody else's.
    #[error("cannot move a ledger into {place}: {reason}")]
    Refused { place: String, reason: String },
    /// It is not the source that is here, or not all of it.
    #[error("what was moved differs from its source, so the move is not done: {0}")]
    Differs(String),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Ledger(error.into())
    }
}

/// What is told while rows are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// An earlier start moved so many rows, and this one goes on.
    Resumed { moved: u64 },
    /// So many rows of a table are moved by this start, and more may follow.
    Rows { table: &'static str, rows: u64 },
    /// All rows of a table are here.
    Table { table: &'static str, rows: u64 },
    /// Both ledgers are being read.
    Comparing,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// All is here, and both ledgers agree on this.
    Done { moved: u64, figures: Vec<Figure> },
    /// That had been so before, and nothing was changed.
    WasDone { at: Timestamp, moved: u64 },
}

/// How far it is, as the target says.
#[derive(Debug)]
struct State {
    mark: String,
    source: String,
    born_at: i64,
    part: Option<String>,
    up_to: Option<i64>,
    moved: u64,
    done_at: Option<Timestamp>,
}

/// The ledger into which rows are moved. Nobody else writes to it as long as this lives.
struct Target {
    connection: PgConnection,
    place: String,
}

/// Moves the ledger at `path` into a database, or goes on with that.
///
/// # Errors
/// In one line: when either of them cannot be used or is in use, and when what came of it is not the same.
pub async fn migrate(
    path: &Path,
    database: &config::Postgres,
    at: Timestamp,
    mut tell: impl FnMut(Progress),
) -> Result<Outcome, Error> {
    let source = Source::open(path).await?;
    let mut target = Target::open(database, at).await?;
    let state = target.begin(&source, at).await?;
    if let Some(at) = state.done_at {
        return Ok(Outcome::WasDone { at, moved: state.moved });
    }
    if state.moved > 0 {
        tell(Progress::Resumed { moved: state.moved });
    }
    let first = state.part.as_deref().and_then(|part| TABLES.iter().position(|table| table.name == part));
    for (place, table) in TABLES.iter().enumerate().skip(first.unwrap_or(0)) {
        let after = state.up_to.filter(|_| first == Some(place)).unwrap_or(i64::MIN);
        target.take(table, &source, after, &mut tell).await?;
    }
    tell(Progress::Comparing);
    target.take_rest(&source, at).await?;
    let figures = comparing::compare(&source, &mut target.connection, at).await?;
    let moved = target.finish().await?;
    source.close().await;
    Ok(Outcome::Done { moved, figures })
}

/// Why a ledger of this version cannot be used yet: another one is being moved into it.
///
/// # Errors
/// [`ledger::Error::Open`] that says so.
pub async fn refuse_half(connection: &mut PgConnection, place: &str) -> Result<(), ledger::Error> {
    match state(connection).await? {
        Some(State { source, done_at: None, .. }) => Err(ledger::Error::Open {
            place: place.to_owned(),
            reason: format!(
                "a ledger is being moved into it: run `tollgate ledger migrate-from sqlite:{source}` until that is done"
            ),
        }),
        _ => Ok(()),
    }
}

async fn state(connection: &mut PgConnection) -> Result<Option<State>, sqlx::Error> {
    let row = sqlx::query("SELECT mark, source, born_at, part, up_to, moved, done_at FROM moved_from");
    let read = |row: PgRow| {
        Ok(State {
            mark: row.try_get("mark")?,
            source: text(&row, "source")?,
            born_at: row.try_get("born_at")?,
            part: row.try_get("part")?,
            up_to: row.try_get("up_to")?,
            moved: row.try_get::<i64, _>("moved")?.unsigned_abs(),
            done_at: optional_time(&row, "done_at")?,
        })
    };
    row.fetch_optional(connection).await?.map(read).transpose()
}

impl Target {
    /// Makes the ledger if need be, and keeps other writers out.
    async fn open(database: &config::Postgres, at: Timestamp) -> Result<Self, Error> {
        let store = Store::new(database, 1, at);
        let place = store.place.clone();
        let fail = |error: sqlx::Error| match open_error(&place, &error) {
            open @ ledger::Error::Open { .. } => open,
            other => ledger::Error::Open { place: place.clone(), reason: other.to_string() },
        };
        let lent = store.pool.get().await.map_err(fail)?;
        drop(store.migrate(lent).await?);
        let mut connection = store.pool.patient().await.map_err(fail)?;
        let locked = sqlx::query("SELECT pg_advisory_lock('ledger'::regclass::oid::bigint)").execute(&mut connection);
        if let Err(error) = locked.await {
            let reason = format!("somebody else writes to it: {error}");
            return Err(Error::Refused { place, reason });
        }
        Ok(Self { connection, place })
    }

    /// Notes that it is this ledger that is being moved, or finds how far that is.
    async fn begin(&mut self, source: &Source, at: Timestamp) -> Result<State, Error> {
        let (life, moved) = (source.life().await?, source.moved().await?);
        let there = state(&mut self.connection).await?;
        if let Some(State { done_at: Some(_), .. }) = &there {
            return self.same(there, life, moved.as_ref(), source.path());
        }
        self.refuse_replicas().await?;
        let state = if there.is_some() {
            self.same(there, life, moved.as_ref(), source.path())?
        } else {
            if let Some(Moved { place, .. }) = moved {
                return Err(self.refused(format!(
                    "{file} is moved to {place}. To move it here instead, once no Tollgate uses that one: \
                     sqlite3 {file} 'DELETE FROM moved'",
                    file = source.path().display()
                )));
            }
            self.refuse_rows().await?;
            self.note(source.path(), life, at).await?
        };
        // A kill may have come between that and this, and no row was read before.
        if moved.is_none() {
            let moved = Moved { mark: state.mark.clone(), place: self.place.clone() };
            source.give_away(&moved, at).await?;
        }
        Ok(state)
    }

    /// Whether it is this source that is being moved, and as it was.
    fn same(&self, there: Option<State>, life: Life, moved: Option<&Moved>, path: &Path) -> Result<State, Error> {
        let state = there.filter(|state| state.born_at == life.born_at);
        let Some(state) = state else {
            return Err(self.refused("another ledger was moved or is being moved into it".to_owned()));
        };
        let is_untouched = match moved {
            Some(moved) => moved.mark == state.mark,
            None => state.part.is_none() && state.done_at.is_none(),
        };
        if !is_untouched {
            let path = path.display();
            return Err(
                self.refused(format!("{path} was used again since it was moved here: begin with an empty database"))
            );
        }
        Ok(state)
    }

    async fn refuse_replicas(&mut self) -> Result<(), Error> {
        let name: Option<PgRow> =
            sqlx::query("SELECT name FROM replicas LIMIT 1").fetch_optional(&mut self.connection).await?;
        let Some(name) = name else { return Ok(()) };
        Err(self.refused(format!(
            "replica {} uses it, or was killed: stop each `tollgate serve` on it in order, one that was killed after another start",
            text(&name, "name")?
        )))
    }

    async fn refuse_rows(&mut self) -> Result<(), Error> {
        for Table { name, .. } in &TABLES {
            let any = format!("SELECT EXISTS (SELECT 1 FROM {name})");
            if sqlx::query_scalar(AssertSqlSafe(any)).fetch_one(&mut self.connection).await? {
                return Err(self.refused(format!("it has {name} of its own: begin with an empty database")));
            }
        }
        Ok(())
    }

    async fn note(&mut self, path: &Path, life: Life, at: Timestamp) -> Result<State, Error> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
        let mark = Uuid::now_v7().simple().to_string();
        sqlx::query("INSERT INTO moved_from (id, mark, source, born_at, begun_at) VALUES (1, $1, $2, $3, $4)")
            .bind(&mark)
            .bind(stored(&path))
            .bind(life.born_at)
            .bind(ms(at))
            .execute(&mut self.connection)
            .await?;
        Ok(State { mark, source: path, born_at: life.born_at, part: None, up_to: None, moved: 0, done_at: None })
    }

    /// Moves what is left of a table, the next batch being read while one is written.
    async fn take(
        &mut self,
        table: &Table,
        source: &Source,
        after: i64,
        tell: &mut impl FnMut(Progress),
    ) -> Result<(), Error> {
        let (select, mut rows) = (table.select(), 0);
        let mut batch = source.rows(&select, after, AT_ONCE).await?;
        while let Some(last) = batch.last() {
            let up_to: i64 = last.try_get(0)?;
            rows += batch.len() as u64;
            let reading = async { Ok(source.rows(&select, up_to, AT_ONCE).await?) };
            let ((), next) = tokio::try_join!(self.write(table, &batch, up_to), reading)?;
            batch = next;
            tell(Progress::Rows { table: table.name, rows });
        }
        tell(Progress::Table { table: table.name, rows });
        Ok(())
    }

    /// Writes a batch, and that it is here.
    async fn write(&mut self, table: &Table, batch: &[SqliteRow], up_to: i64) -> Result<(), Error> {
        let lines = table.lines(batch)?;
        let mut tx = self.connection.begin().await?;
        let mut copy = tx.copy_in_raw(&table.copy()).await?;
        copy.send(lines.as_bytes()).await?;
        let written = copy.finish().await?;
        sqlx::query("UPDATE moved_from SET part = $1, up_to = $2, moved = moved + $3")
            .bind(table.name)
            .bind(up_to)
            .bind(i64::try_from(written).unwrap_or(i64::MAX))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// What is little: the ledger's own row, the gaps, and where the numbers go on.
    async fn take_rest(&mut self, source: &Source, at: Timestamp) -> Result<(), Error> {
        let Life { born_at, compared_at, pruned_before } = source.life().await?;
        let (since, until): (Vec<i64>, Vec<i64>) =
            source.gaps(at).await?.into_iter().map(|(since, until)| (ms(since), ms(until))).unzip();
        let mut tx = self.connection.begin().await?;
        sqlx::query("UPDATE ledger SET born_at = $1, compared_at = $2, pruned_before = $3")
            .bind(born_at)
            .bind(compared_at)
            .bind(pruned_before)
            .execute(&mut *tx)
            .await?;
        sqlx::query("INSERT INTO gaps SELECT * FROM unnest($1::bigint[], $2::bigint[]) ON CONFLICT DO NOTHING")
            .bind(since)
            .bind(until)
            .execute(&mut *tx)
            .await?;
        // Of no charge at all there is nothing to go on behind.
        sqlx::query("SELECT setval(pg_get_serial_sequence('charges', 'number'), MAX(number)) FROM charges")
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Lets it be used. Returns how many rows were moved, by all starts.
    async fn finish(&mut self) -> Result<u64, Error> {
        // Without figures on its tables the first claims would be planned as for empty ones.
        sqlx::query("ANALYZE principals, submissions, workflows, tasks, charges").execute(&mut self.connection).await?;
        let moved: i64 = sqlx::query_scalar("UPDATE moved_from SET done_at = $1 RETURNING moved")
            .bind(ms(Timestamp::now()))
            .fetch_one(&mut self.connection)
            .await?;
        Ok(moved.unsigned_abs())
    }

    fn refused(&self, reason: String) -> Error {
        Error::Refused { place: self.place.clone(), reason }
    }
}
