//! The embedded ledger: one SQLite file, one `serve`, and the operator's commands beside it.
//!
//! WAL with `synchronous=FULL`: a committed transaction survives a power cut. One connection writes, so writers queue
//! in Tollgate instead of meeting SQLite's busy handler; a few others read. A lock file keeps a second `serve` out,
//! which is why leases of an earlier process can be lifted at start: it is dead.

mod books;
mod charges;
mod due;
mod events;
mod glance;
mod ledger;
mod moves;
mod moving;
mod operator;
mod retention;
mod submissions;
mod work;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection, Row, Sqlite, Transaction};

pub use books::SqliteBooks;
pub use moving::{Life, Moved, Source};

use super::group::{Bounds, Group};
use super::{Error, ms, time};
use moves::Writer;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a statement waits for another connection's lock: of tools, and of the operator's commands.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages of 4 KiB in the write-ahead log that the next commit copies into the file, and what the writer keeps of the file in
/// memory, in KiB. Ids are random, so that each event is on a page of its own, and the copying is most of what it costs: with
/// SQLite's own 1000 pages and 2000 KiB it was 50 µs of waiting for each of 250 000 tasks, with these it is 18.
const CHECKPOINT_PAGES: &str = "4000";
const WRITER_CACHE: &str = "-8000";
/// Moves committed in one transaction at most: some ms, for which a submission may have to wait. And those that may wait: more than
/// all workers have under way, and as many submissions as Envoy has.
const MOVES: Bounds = Bounds { waiting: 8192, at_once: 256 };
/// Nobody works on anything when a process begins.
const LIFTS: [&str; 3] = [
    "UPDATE workflows SET leased_until = 0 WHERE leased_until <> 0",
    "UPDATE tasks SET leased_until = 0 WHERE leased_until <> 0",
    "UPDATE charges SET leased_until = 0 WHERE leased_until <> 0",
];

/// The ledger of one process.
#[derive(Debug)]
pub struct SqliteLedger {
    write: SqlitePool,
    read: SqlitePool,
    /// What waits for the writer.
    group: Group<Writer>,
    /// Held as long as the ledger lives; the kernel lets go of it however the process ends.
    _lock: File,
}

impl SqliteLedger {
    /// Opens or makes the ledger at `path` and brings its schema up to date.
    ///
    /// # Errors
    /// [`Error::Open`] when the file cannot be used: no permission, not a ledger, from a newer version, in use.
    pub async fn open(path: &Path, at: Timestamp) -> Result<Self, Error> {
        let fail = |reason: String| Error::Open { place: path.display().to_string(), reason };
        let lock = lock(path).map_err(&fail)?;
        // SQLite gives its other files the permissions of this one.
        private(path).map_err(|error| fail(error.to_string()))?;
        let options = options(path).map_err(&fail)?;
        let writing = options.clone().pragma("wal_autocheckpoint", CHECKPOINT_PAGES).pragma("cache_size", WRITER_CACHE);
        let write = pool(1, writing).await.map_err(|error| fail(error.to_string()))?;
        MIGRATIONS.run(&write).await.map_err(|error| fail(error.to_string()))?;
        moving::refuse(&write, path).await?;
        let ledger = Self {
            group: Group::new(Writer(write.clone()), MOVES),
            write,
            read: pool(4, options.read_only(true)).await.map_err(|error| fail(error.to_string()))?,
            _lock: lock,
        };
        ledger.begin_life(at).await.map_err(|error| fail(error.to_string()))?;
        Ok(ledger)
    }

    async fn begin_life(&self, at: Timestamp) -> Result<(), sqlx::Error> {
        let mut tx = self.begin().await?;
        sqlx::query("INSERT INTO ledger (id, born_at) VALUES (1, ?) ON CONFLICT DO NOTHING")
            .bind(ms(at))
            .execute(&mut *tx)
            .await?;
        for lift in LIFTS {
            sqlx::query(lift).execute(&mut *tx).await?;
        }
        tx.commit().await
    }

    /// A transaction that holds the write lock from its start, so that it cannot fail half-way for want of it.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        begin(&self.write).await
    }
}

fn options(path: &Path) -> Result<SqliteConnectOptions, String> {
    Ok(SqliteConnectOptions::from_str("sqlite:")
        .map_err(|error| error.to_string())?
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT))
}

async fn pool(connections: u32, options: SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(BUSY_TIMEOUT)
        // When the disk is full SQLite ends a transaction by itself, which sqlx does not notice: such a connection
        // refuses every later transaction. It is replaced.
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        .connect_with(options)
        .await
}

/// See [`SqliteLedger::begin`].
async fn begin(write: &SqlitePool) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
    write.begin_with("BEGIN IMMEDIATE").await
}

/// Opens a file for writing, made if need be, for its owner only: a ledger tells who paid what.
fn private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Takes the lock file beside the ledger.
fn lock(path: &Path) -> Result<File, String> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = private(&name).map_err(|error| format!("cannot write {}: {error}", name.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err("another tollgate process uses it".to_owned()),
        Err(TryLockError::Error(error)) => Err(format!("cannot lock {}: {error}", name.display())),
    }
}

fn optional_time(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(time))
}

fn until(at: Timestamp, lease: Duration) -> i64 {
    ms(at).saturating_add(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
