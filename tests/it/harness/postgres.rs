//! Databases of the tests' own on the PostgreSQL that `scripts/postgres run` makes.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// Where the server is.
const SERVER: &str = "TOLLGATE_TEST_POSTGRES";

/// The URL of a fresh database; `None` where there is no server, which CI must have.
pub async fn postgres_database() -> Option<String> {
    let Ok(server) = std::env::var(SERVER) else {
        assert!(std::env::var_os("CI").is_none(), "{SERVER} is not set");
        eprintln!("SKIPPED: {SERVER} is not set; `scripts/postgres run cargo nextest run` sets it");
        return None;
    };
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(&server).await.expect("a server");
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("made");
    let (server, _) = server.rsplit_once('/').expect("a URL with a database");
    Some(format!("{server}/{name}"))
}
