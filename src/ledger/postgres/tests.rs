//! The contract suite for PostgreSQL, and what only PostgreSQL can get wrong.

use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::*;
use crate::ledger::Ledger;
use crate::ledger::books::Books;
use crate::ledger::contract::{Fixture, Store as ContractStore, at, suite};

mod migrating;
mod opening;
mod replicas;
mod tls;
mod together;

suite!(PostgresStore);

/// Where the server of the tests is; `scripts/postgres run` makes one.
const SERVER: &str = "TOLLGATE_TEST_POSTGRES";

struct PostgresStore {
    database: config::Postgres,
    ledger: PostgresLedger,
    books: PostgresBooks,
}

/// A database of the test's own.
async fn database() -> config::Postgres {
    let server = std::env::var(SERVER).expect("looked for");
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(&server).await.expect("a server");
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("made");
    let (server, _) = server.rsplit_once('/').expect("a URL with a database");
    let mut database = config::Postgres::of_test(&format!("{server}/{name}"));
    // Beside other tests a small machine takes its time.
    database.connect_timeout = Duration::from_secs(30);
    database
}

impl PostgresStore {
    async fn open_in(database: config::Postgres) -> Self {
        let ledger = PostgresLedger::open(&database, at(0)).await.expect("opens");
        let books = PostgresBooks::open(&database).await.expect("opens");
        Self { database, ledger, books }
    }

    /// Does something to the database behind everybody's back.
    async fn execute(&self, statement: &'static str) {
        // Without the ledger's time-outs.
        let mut connection = PgConnection::connect_with(&self.database.connect_options()).await.expect("a connection");
        sqlx::query(statement).execute(&mut connection).await.expect("executed");
    }
}

impl ContractStore for PostgresStore {
    const TAKEN_OVER_AFTER: i64 = 60;

    fn is_there() -> bool {
        let is_there = std::env::var_os(SERVER).is_some();
        assert!(is_there || std::env::var_os("CI").is_none(), "{SERVER} is not set");
        if !is_there {
            eprintln!("SKIPPED: {SERVER} is not set; `scripts/postgres run cargo nextest run` sets it");
        }
        is_there
    }

    async fn fresh() -> Self {
        Self::open_in(database().await).await
    }

    async fn killed_and_restarted(self) -> Self {
        // Dropped without a close, as a kill would.
        let Self { database, ledger, books } = self;
        drop((ledger, books));
        Self::open_in(database).await
    }

    fn ledger(&self) -> &dyn Ledger {
        &self.ledger
    }

    fn books(&self) -> &dyn Books {
        &self.books
    }
}
