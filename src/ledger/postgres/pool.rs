//! Connections to the database, each used by one piece of work at a time.
//!
//! Not sqlx's own pool: it asks a connection that is given back whether it is alive, with no limit to the wait, so a network
//! that swallows packets would take one connection after the other out of use until TCP gives up, a quarter of an hour later.
//! Here a connection goes back only after all went well, and is closed by whatever else happens to its work: an error, a
//! time-out, a caller who goes away. So nothing of it can hang over into the next piece of work either.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::config;

/// A connection that was idle for so long is asked whether it is alive before it is used.
const TRUSTED_FOR: Duration = Duration::from_millis(500);
/// How often the server looks whether somebody is still there while it works on a statement, and how long it waits for an
/// answer of the network: a replica that was cut off holds nothing for longer.
const LOOK_EVERY: &str = "5s";
const CUT_OFF_AFTER: &str = "10s";
/// How long nothing may come in the middle of a transaction, where one statement follows the other at once: who hangs or is cut
/// off there has the writer's lock, and keeps everybody waiting. Less than others wait for that lock, so that they need not
/// begin anew.
const SILENT_FOR: &str = "2s";
/// How long this process has that lock at a time. Statements that follow each other slowly, over a network that loses every other packet
/// say, are not silence, and would keep everybody else waiting for as long.
const WRITES_FOR: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Since when the work that is bounded has the writer's lock.
    static WRITING: watch::Sender<Option<Instant>>;
}

/// Connections to one database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: config::Postgres,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<(PgConnection, Instant)>>,
}

/// A connection on loan. Dropped before [`Lent::give_back`] it is closed.
#[derive(Debug)]
pub struct Lent {
    connection: PgConnection,
    pool: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Up to `size` connections, none of them made yet.
    #[must_use]
    pub fn new(database: config::Postgres, size: u32) -> Self {
        let permits = Arc::new(Semaphore::new(size as usize));
        Self(Arc::new(Inner { database, permits, idle: Mutex::default() }))
    }

    /// How to connect, and what holds for every connection.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        let statement = self.0.database.statement_timeout;
        // Shorter, so that who waits in vain for a lock is told so.
        let (lock, statement) = ((statement * 9 / 10).as_millis().to_string(), statement.as_millis().to_string());
        self.0.database.connect_options().options([
            ("statement_timeout", statement.as_str()),
            ("lock_timeout", &lock),
            ("idle_in_transaction_session_timeout", SILENT_FOR),
            ("client_connection_check_interval", LOOK_EVERY),
            ("tcp_user_timeout", CUT_OFF_AFTER),
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "2"),
            // Each statement sees what was committed before it: one that saw the past would come after the lock, and not see
            // what whoever had it has written.
            ("default_transaction_isolation", "read committed"),
            // A plan for whatever is bound would not know how little a claim takes, and the estimates for rows that come as
            // JSON would have short statements compiled.
            ("plan_cache_mode", "force_custom_plan"),
            ("jit", "off"),
        ])
    }

    /// How long a connection is waited for.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.0.database.connect_timeout
    }

    /// The longest that a transaction may take, with the wait for whoever writes.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.0.database.connect_timeout + self.0.database.statement_timeout * 2
    }

    /// A connection that is alive, or was just now.
    ///
    /// # Errors
    /// When there is none within the connect time-out.
    pub async fn get(&self) -> Result<Lent, sqlx::Error> {
        let getting = async {
            let permit = self.0.permits.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let connection = match self.idle().await {
                Some(connection) => connection,
                None => Self::connect(&self.options()).await?,
            };
            Ok(Lent { connection, pool: self.0.clone(), _permit: permit })
        };
        timeout(self.0.database.connect_timeout, getting).await.unwrap_or_else(|_| {
            // One that was idle did not answer: the others will not either, and each would cost as long.
            self.0.idle().clear();
            Err(sqlx::Error::PoolTimedOut)
        })
    }

    /// Bounds what is done with a connection.
    ///
    /// # Errors
    /// Those of the work, and that it took too long.
    pub async fn bounded<T, E: From<sqlx::Error>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let (writing, since) = watch::channel(None);
        tokio::select! {
            // What is done is done, however long it took.
            biased;
            result = WRITING.scope(writing, work) => result,
            () = sleep(self.patience()) => Err(took_too_long("the database took too long").into()),
            () = writes_for_too_long(since) => Err(took_too_long("the database is too slow for what others wait for").into()),
        }
    }

    /// One that is idle, whichever was used last.
    async fn idle(&self) -> Option<PgConnection> {
        loop {
            let (mut connection, since) = self.0.idle().pop()?;
            if since.elapsed() < TRUSTED_FOR || connection.ping().await.is_ok() {
                return Some(connection);
            }
        }
    }

    /// A connection beside these, on which nothing is cut short but a wait for somebody's lock.
    ///
    /// # Errors
    /// When there is none within the connect time-out.
    pub async fn patient(&self) -> Result<PgConnection, sqlx::Error> {
        let options =
            self.options().options([("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0")]);
        timeout(self.0.database.connect_timeout, Self::connect(&options))
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        let mut connection = PgConnection::connect_with(options).await?;
        // Whoever is told that something is committed has it on the disk, whatever the server's default. A standby takes no writes.
        let row = sqlx::query(
            "SELECT pg_is_in_recovery(), CASE WHEN current_setting('synchronous_commit') = 'off'
                 THEN set_config('synchronous_commit', 'local', false) END",
        )
        .fetch_one(&mut connection)
        .await?;
        if row.try_get(0)? {
            return Err(sqlx::Error::Protocol("the database is a standby, which takes no writes".to_owned()));
        }
        Ok(connection)
    }

    /// Ends connections that are idle, and gives out no more.
    pub async fn close(&self) {
        self.0.permits.close();
        let idle = std::mem::take(&mut *self.0.idle());
        for (connection, _) in idle {
            // Whoever does not answer is left to the kernel.
            let _ = timeout(Duration::from_secs(1), connection.close()).await;
        }
    }
}

fn took_too_long(what: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

/// Says that what is being done has the writer's lock from now on, or no longer. Without a bound nobody looks.
pub fn writing(since: Option<Instant>) {
    let _ = WRITING.try_with(|writing| writing.send_replace(since));
}

/// Returns when the lock was held for as long as it may be.
async fn writes_for_too_long(mut since: watch::Receiver<Option<Instant>>) {
    loop {
        let held = *since.borrow_and_update();
        let Some(held) = held else {
            if since.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        };
        tokio::select! {
            () = sleep(WRITES_FOR.saturating_sub(held.elapsed())) => return,
            changed = since.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<(PgConnection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent {
    /// All went well, and no transaction is open.
    pub fn give_back(self) {
        let Self { connection, pool, _permit } = self;
        if !pool.permits.is_closed() {
            pool.idle().push((connection, Instant::now()));
        }
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}
