//! A ledger to move, and whether two are the same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::ledger::Ledger as _;
use crate::ledger::contract::at;
use crate::ledger::postgres::migrating::TABLES;
use crate::ledger::postgres::*;
use crate::ledger::sqlite::SqliteLedger;

/// What PostgreSQL, COPY and a terminal make something of, and what a reader of bytes does not expect.
pub const ODD: &str = "a\0b\\c\td\ne\rf\u{e000}g\u{e000}0 \\N \\. \u{1f600} \"q\" '%s' ";
pub const COST: &str = "00.10000000000000000000000000000000000010";

/// A ledger of SQLite's with rows in every table and every state, many of them if so wanted.
pub struct Source {
    pub dir: tempfile::TempDir,
}

impl Source {
    pub async fn new(many: u32) -> Self {
        let source = Self { dir: tempfile::tempdir().expect("temp dir") };
        SqliteLedger::open(&source.path(), at(0)).await.expect("made").close().await;
        let mut file = source.connect().await;
        for statement in [
            "UPDATE ledger SET compared_at = 1800000077000, pruned_before = 1700000000000",
            "INSERT INTO principals VALUES ('alice', 'alice@example.com', 5), ('no-mail', NULL, 6)",
            "INSERT INTO submissions VALUES ('sub-1', 'alice', 'r1', 10, 11, 1, 'wfl-1', 'resolved'),
                ('sub-2', 'alice', 'r2', 12, NULL, 0, NULL, 'open'), ('sub-3', 'no-mail', 'r1', 13, 14, 0, NULL, 'refused')",
            "INSERT INTO workflows (workflow_id, principal_id, submission_id, attribution, hold_reason, state, noted_at,
                sweep_at, sweeps, asked_at, heard, unknown_since, leased_until, submitted_at) VALUES
                ('wfl-1', 'alice', 'sub-1', 'log', NULL, 'open', 20, 21, 22, 23, 24, 25, 1900000000000, 26),
                ('wfl-2', NULL, NULL, 'held', 'nobody', 'settled', 30, 31, 0, 0, 0, NULL, 0, NULL)",
            "INSERT INTO tasks (task_id, workflow_id, state, outcome, eager, settle_at, attempts, asked_at, heard,
                unknown_since, leased_until, hold_reason) VALUES
                ('tsk-1', 'wfl-1', 'settled', 'charged', 1, 40, 41, 42, 43, 44, 0, NULL),
                ('tsk-2', NULL, 'open', NULL, 0, 50, 0, 0, 0, NULL, 1900000000000, 'unreadable'),
                ('tsk-gone', 'wfl-1', 'settled', 'gone', 0, NULL, 0, 0, 0, NULL, 0, NULL)",
            "INSERT INTO gaps VALUES (60, 61), (60, 61), (62, 63)",
        ] {
            sqlx::query(statement).execute(&mut file).await.expect(statement);
        }
        sqlx::query("INSERT INTO principals VALUES (?1, ?1, 7)").bind(ODD).execute(&mut file).await.expect("inserted");
        // A number that is not the next one, as after pruning.
        for (number, task, principal, state, cost) in [
            (7, "tsk-1", Some("alice"), "pending", COST),
            (9, ODD, Some(ODD), "posted", "123456789012345678901234567890.000000000000000000000000000001"),
            (1000, "tsk-held", None, "held", "0.000007308"),
            (1001, "tsk-rejected", Some("alice"), "rejected", "5"),
        ] {
            sqlx::query(
                "INSERT INTO charges (rowid, task_id, workflow_id, principal_id, supplier_id, cost, duration_sec,
                     cost_per_hour, task_status, assigned_worker, started_at, finished_at, state, hold_reason, attempts, post_at,
                     leased_until, last_error, created_at, posted_at)
                 VALUES (?1, ?2, 'wfl-1', ?3, ?6, ?5, 12, '1.50', 'DONE', ?6, ?2, ?6, ?4, 'no_owner', 3, 70, 1900000000000,
                     ?6, 71, 72)",
            )
            .bind(number)
            .bind(task)
            .bind(principal)
            .bind(state)
            .bind(cost)
            .bind(ODD)
            .execute(&mut file)
            .await
            .expect("inserted");
        }
        sqlx::query(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 WHERE ?1 > 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
             INSERT INTO tasks (task_id, workflow_id, state) SELECT 'tsk-of-many-' || n, 'wfl-1', 'open' FROM numbers",
        )
        .bind(many)
        .execute(&mut file)
        .await
        .expect("inserted");
        file.close().await.expect("closed");
        source
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("ledger.db")
    }

    pub async fn connect(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.path());
        SqliteConnection::connect_with(&options).await.expect("opened")
    }

    pub async fn execute(&self, statement: &'static str) {
        sqlx::query(statement).execute(&mut self.connect().await).await.expect("executed");
    }

    pub async fn refuses(&self) -> String {
        let error = SqliteLedger::open(&self.path(), at(9)).await.expect_err("given away").to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }
}

/// Every row of both ledgers, by table, in the words of the source's texts.
pub async fn everything(source: &Source, target: &mut PgConnection) -> [BTreeMap<&'static str, Vec<String>>; 2] {
    let mut file = source.connect().await;
    let (mut there, mut here) = (BTreeMap::new(), BTreeMap::new());
    for table in &TABLES {
        let number = if table.name == "charges" { ("rowid", "number") } else { ("0", "0") };
        let names = table.names();
        // Numbers and flags as texts, and a NULL as what no text is.
        let quoted = |number: &str, flag: fn(&str) -> String| {
            let columns = names.split(", ").map(|name| match name {
                "failed" | "eager" => flag(name),
                name => format!("COALESCE('=' || CAST({name} AS TEXT), '-')"),
            });
            let columns = columns.collect::<Vec<_>>().join(" || '|' || ");
            format!("SELECT '=' || CAST({number} AS TEXT) || {columns} AS line FROM {}", table.name)
        };
        let of_file = quoted(number.0, |name| format!("CAST({name} AS TEXT)"));
        let of_target = quoted(number.1, |name| format!("CAST({name}::int AS TEXT)"));
        let mut rows: Vec<(Text,)> = sqlx::query_as(AssertSqlSafe(of_file)).fetch_all(&mut file).await.expect("read");
        rows.sort_by(|one, other| one.0.0.cmp(&other.0.0));
        there.insert(table.name, rows.into_iter().map(|row| row.0.0).collect());
        let mut rows: Vec<(Text,)> =
            sqlx::query_as(AssertSqlSafe(of_target)).fetch_all(&mut *target).await.expect("read");
        rows.sort_by(|one, other| one.0.0.cmp(&other.0.0));
        here.insert(table.name, rows.into_iter().map(|row| row.0.0).collect());
    }
    [there, here]
}
