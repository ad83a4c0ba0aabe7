//! The ledger that several Tollgates share: a PostgreSQL, 14 or later.
//!
//! What writes takes an advisory lock for its transaction, so there is one writer at a time among all replicas, as there is
//! for SQLite, and what was shown there about the order of things holds here. It costs little, because writes come in groups:
//! a transaction is a few statements, however many moves or events it has. Claims alone do not take it: they lock the rows
//! that they take and pass over those that others have locked, so they wait for nobody. No transaction is open while
//! anybody else than the database is asked.
//!
//! A database that is away is waited for by nobody for long, and everything that needs it fails until it is back; also at a
//! start, so that a replica may begin to serve without it.

mod books;
mod charges;
mod due;
mod events;
mod figures;
mod glance;
mod ledger;
pub mod migrating;
mod moves;
mod operator;
mod pool;
mod replica;
mod retention;
mod text;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::Row;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnection, PgPoolOptions, PgRow};
use tokio::sync::Mutex;

pub use books::PostgresBooks;
pub use figures::Figures;
pub use replica::Replica;
pub use text::Text;

use super::group::{Bounds, Group};
use super::{Error, ms, time};
use crate::config;
use moves::Writer;
use pool::{Lent, Pool};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The oldest PostgreSQL that this is tried with, as the server numbers itself.
const OLDEST: i32 = 140_000;
/// How long a start waits for the ledger.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long replicas that start together wait for the one that brings the schema up to date.
const MIGRATING: Duration = Duration::from_mins(5);
/// Moves committed in one transaction at most: some ms, for which a submission may have to wait. And those that may wait: more than
/// all workers have under way, and as many submissions as Envoy has.
const MOVES: Bounds = Bounds { waiting: 8192, at_once: 256 };
/// One writer at a time. The lock is of the table's number, so that ledgers in several schemas of a database keep nobody waiting.
const BEGIN: &str = "BEGIN; SELECT pg_advisory_xact_lock('ledger'::regclass::oid::bigint)";

/// The ledger of one replica.
#[derive(Debug)]
pub struct PostgresLedger {
    store: Store,
    /// What waits for the writer.
    group: Group<Writer>,
}

/// The database, and whether its schema is known to be this version's. Cheap to clone.
#[derive(Debug, Clone)]
struct Store {
    pool: Pool,
    place: String,
    is_ready: Arc<AtomicBool>,
    /// Whoever finds that it is not ready sees to it, and others wait.
    readying: Arc<Mutex<()>>,
    /// When the ledger was made, if it was not there.
    born_at: Timestamp,
}

/// A transaction that holds the writer's lock. Dropped before its commit it has never been.
#[derive(Debug)]
pub struct Writing(Lent);

impl PostgresLedger {
    /// Opens or makes the ledger and brings its schema up to date. A database that does not answer is waited for later.
    ///
    /// # Errors
    /// [`Error::Open`] when the ledger cannot be used: no such database, no permission, of a newer version, too old a server.
    pub async fn open(database: &config::Postgres, at: Timestamp) -> Result<Self, Error> {
        let store = Store::new(database, database.pool, at);
        match tokio::time::timeout(READY_WITHIN, store.make_ready()).await {
            Ok(Err(error @ Error::Open { .. })) => return Err(error),
            Ok(Err(error)) => tracing::error!(%error, "the ledger is away: {error}"),
            Ok(Ok(())) => {}
            // Listeners are bound after this, and whoever looks whether this process lives has a limit.
            Err(_) => tracing::warn!("the ledger is not ready yet: it is served without it meanwhile"),
        }
        Ok(Self { group: Group::new(Writer(store.clone()), MOVES), store })
    }
}

impl Store {
    /// Up to `connections` to the ledger, which is made `at` if it is not there.
    fn new(database: &config::Postgres, connections: u32, at: Timestamp) -> Self {
        Self {
            pool: Pool::new(database.clone(), connections),
            place: database.to_string(),
            is_ready: Arc::default(),
            readying: Arc::default(),
            born_at: at,
        }
    }

    /// A connection to a ledger of this version.
    async fn get(&self) -> Result<Lent, Error> {
        self.make_ready().await?;
        Ok(self.pool.get().await?)
    }

    /// A transaction that writes.
    async fn write(&self) -> Result<Writing, Error> {
        Ok(Writing::begin(self.get().await?).await?)
    }

    /// Brings the schema up to date, once.
    async fn make_ready(&self) -> Result<(), Error> {
        if self.is_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        // Whoever waits for who sees to it waits no longer than for a connection.
        let alone = tokio::time::timeout(self.pool.connect_timeout(), self.readying.clone().lock_owned()).await;
        let alone = alone.map_err(|_| Error::Database("the ledger is not ready yet".to_owned()))?;
        if self.is_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        // A task of its own: who waits for it may have less patience than a step of the schema takes.
        let this = self.clone();
        let making = tokio::spawn(async move {
            let _alone = alone;
            tokio::time::timeout(MIGRATING, this.make())
                .await
                .unwrap_or_else(|_| Err(Error::Database("the schema was not brought up to date in time".to_owned())))
        });
        making.await.unwrap_or_else(|panic| Err(Error::Database(panic.to_string())))
    }

    async fn make(&self) -> Result<(), Error> {
        let lent = self.pool.get().await.map_err(|error| open_error(&self.place, &error))?;
        let mut lent = self.migrate(lent).await?;
        self.pool.bounded(migrating::refuse_half(&mut lent, &self.place)).await?;
        lent.give_back();
        self.is_ready.store(true, Ordering::Release);
        Ok(())
    }

    async fn check_server(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int")
            .fetch_one(connection)
            .await
            .map_err(|error| open_error(&self.place, &error))?;
        if version < OLDEST {
            return Err(self.cannot(format!("it is PostgreSQL {}; 14 or later is wanted", version / 10_000)));
        }
        Ok(())
    }

    /// Ten replicas may start at once: whoever comes first does it, under an advisory lock of sqlx's. What waits for a network that
    /// may swallow everything has a limit, and only a step of the schema has more time.
    async fn migrate(&self, mut lent: Lent) -> Result<Lent, Error> {
        let looking = async {
            self.check_server(&mut lent).await?;
            let step = missing_step(&mut lent).await.map_err(|error| open_error(&self.place, &error))?;
            Ok::<_, Error>((step, lent))
        };
        let (step, mut lent) = self.pool.bounded(looking).await?;
        if let Some(step) = step {
            tracing::info!("the ledger's schema lacks step {step}: bringing it up to date");
            // A connection of its own, on which nothing is cut short: a step on a large table takes its time.
            let options = self.pool.options().options([("statement_timeout", "0"), ("lock_timeout", "0")]);
            let pool = PgPoolOptions::new().max_connections(1).connect_with(options);
            let pool = pool.await.map_err(|error| open_error(&self.place, &error))?;
            MIGRATIONS.run(&pool).await.map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                    open_error(&self.place, &error)
                }
                other => self.cannot(other.to_string()),
            })?;
            pool.close().await;
        }
        let beginning = async {
            sqlx::query("INSERT INTO ledger (id, born_at) VALUES (1, $1) ON CONFLICT DO NOTHING")
                .bind(ms(self.born_at))
                .execute(&mut *lent)
                .await?;
            Ok(lent)
        };
        self.pool.bounded(beginning).await
    }

    fn cannot(&self, reason: String) -> Error {
        Error::Open { place: self.place.clone(), reason }
    }
}

/// What a start cannot go on without is told from what passes.
fn open_error(place: &str, error: &sqlx::Error) -> Error {
    let cannot = |reason: &str| Error::Open { place: place.to_owned(), reason: reason.to_owned() };
    match error {
        // A wrong password, a missing database, a right that is missing: no wait mends these. A server that starts, stops, fails
        // over or has no place does so.
        sqlx::Error::Database(database)
            if matches!(database.code().as_deref().unwrap_or_default().get(..2), Some("28" | "3D" | "42" | "0A")) =>
        {
            cannot(database.message())
        }
        sqlx::Error::Migrate(newer) => cannot(&newer.to_string()),
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => cannot(&error.to_string()),
        error => Error::Database(error.to_string()),
    }
}

/// The first step that the schema lacks.
///
/// # Errors
/// When the schema is of a newer version.
async fn missing_step(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    let there: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(&mut *connection).await?;
    let steps: Vec<i64> = if there {
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(connection).await?
    } else {
        Vec::new()
    };
    let known: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    if let Some(newer) = steps.iter().find(|step| !known.contains(step)) {
        let newer = format!("it is of a newer version of Tollgate (its schema has step {newer})");
        return Err(sqlx::Error::Migrate(Box::new(MigrateError::Source(newer.into()))));
    }
    Ok(known.into_iter().find(|step| !steps.contains(step)))
}

impl Writing {
    async fn begin(mut lent: Lent) -> Result<Self, sqlx::Error> {
        sqlx::raw_sql(BEGIN).execute(&mut *lent).await?;
        pool::writing(Some(Instant::now()));
        Ok(Self(lent))
    }

    async fn commit(self) -> Result<(), sqlx::Error> {
        let mut lent = self.0;
        sqlx::raw_sql("COMMIT").execute(&mut *lent).await?;
        pool::writing(None);
        lent.give_back();
        Ok(())
    }

    fn tx(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

fn optional_time(row: &PgRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(time))
}

fn text(row: &PgRow, column: &str) -> Result<String, sqlx::Error> {
    row.try_get::<Text, _>(column).map(|text| text.0)
}

fn optional_text(row: &PgRow, column: &str) -> Result<Option<String>, sqlx::Error> {
    row.try_get::<Option<Text>, _>(column).map(|text| text.map(|text| text.0))
}

fn count(row: &PgRow, column: &str) -> Result<u32, sqlx::Error> {
    row.try_get::<i64, _>(column).map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
