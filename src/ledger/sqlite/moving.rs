//! A ledger that is given away: read by whoever moves it to another database, and kept from any `serve` from then on.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, FromRow, SqliteExecutor};

use super::{File, MIGRATIONS, SqliteBooks, lock, options, pool};
use crate::ledger::unrecorded::{self, Span};
use crate::ledger::{Error, ms};

/// A ledger that nobody else has as long as this lives.
#[derive(Debug)]
pub struct Source {
    pool: SqlitePool,
    path: PathBuf,
    _lock: File,
}

/// The ledger's one row on itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct Life {
    pub born_at: i64,
    pub compared_at: Option<i64>,
    pub pruned_before: i64,
}

/// That it was given away, and to where.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Moved {
    pub mark: String,
    pub place: String,
}

impl Source {
    /// Opens the ledger at `path`, which must exist, and brings its schema up to date as `serve` does.
    ///
    /// # Errors
    /// [`Error::Open`], in one line, when it is not there, no ledger, of a newer version, or in use.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let fail = |reason: String| Error::Open { place: path.display().to_string(), reason };
        // First of all without making or changing anything.
        SqliteBooks::exists(path).await?;
        let lock = lock(path).map_err(&fail)?;
        let pool = pool(1, options(path).map_err(&fail)?).await.map_err(|error| fail(error.to_string()))?;
        MIGRATIONS.run(&pool).await.map_err(|error| fail(error.to_string()))?;
        Ok(Self { pool, path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn life(&self) -> Result<Life, Error> {
        let life = sqlx::query_as("SELECT born_at, compared_at, pruned_before FROM ledger").fetch_optional(&self.pool);
        life.await?.ok_or_else(|| {
            let reason = "it was never used; `tollgate serve` on the other ledger is all it takes".to_owned();
            Error::Open { place: self.path.display().to_string(), reason }
        })
    }

    /// Where it was given, if it was.
    pub async fn moved(&self) -> Result<Option<Moved>, Error> {
        Ok(moved(&self.pool).await?)
    }

    /// Keeps `serve` from it from now on.
    pub async fn give_away(&self, moved: &Moved, at: Timestamp) -> Result<(), Error> {
        sqlx::query("INSERT INTO moved (id, mark, place, at) VALUES (1, ?, ?, ?)")
            .bind(&moved.mark)
            .bind(&moved.place)
            .bind(ms(at))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Rows of a statement whose first two parameters are these.
    pub async fn rows(&self, statement: &str, after: i64, limit: u32) -> Result<Vec<SqliteRow>, Error> {
        let rows = sqlx::query(AssertSqlSafe(statement)).bind(after).bind(limit).fetch_all(&self.pool);
        Ok(rows.await?)
    }

    /// Counts with their names.
    pub async fn counts(&self, statement: &'static str) -> Result<Vec<(String, i64)>, Error> {
        Ok(sqlx::query_as(statement).fetch_all(&self.pool).await?)
    }

    /// When submissions may be missing in it, as of `now`: as it says itself, and as the file beside it does.
    pub async fn gaps(&self, now: Timestamp) -> Result<Vec<Span>, Error> {
        let rows: Vec<(i64, i64)> = sqlx::query_as("SELECT since, until FROM gaps").fetch_all(&self.pool).await?;
        let left = unrecorded::left(&self.path, now).map_err(|error| Error::Open {
            place: self.path.display().to_string(),
            reason: format!("the file beside it that ends in .gap cannot be read: {error}"),
        })?;
        let noted = rows.into_iter().map(|(since, until)| (super::time(since), super::time(until)));
        Ok(noted.chain(left).collect())
    }

    pub async fn close(self) {
        self.pool.close().await;
    }
}

/// Where a ledger of this version was given, if it was.
async fn moved(ledger: impl SqliteExecutor<'_>) -> Result<Option<Moved>, sqlx::Error> {
    sqlx::query_as("SELECT mark, place FROM moved").fetch_optional(ledger).await
}

/// That a ledger was given away is a reason not to use it.
pub(super) async fn refuse(ledger: impl SqliteExecutor<'_>, path: &Path) -> Result<(), Error> {
    let file = path.display().to_string();
    let reason = match moved(ledger).await {
        Ok(None) => return Ok(()),
        Ok(Some(Moved { place, .. })) => format!(
            "it was moved to {place}, which TOLLGATE_LEDGER should name. To use this file again, once no Tollgate uses that one: \
             sqlite3 {file} 'DELETE FROM moved'"
        ),
        Err(error) => error.to_string(),
    };
    Err(Error::Open { place: file, reason })
}
