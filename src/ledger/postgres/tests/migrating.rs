//! A SQLite ledger that moves here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};

use super::super::migrating::{self, Error, Outcome, Progress, TABLES};
use super::{PostgresStore, database};
use crate::config;
use crate::ledger::books::{Books as _, ChargeState};
use crate::ledger::contract::{Fixture, Store as _, alice, at, charged};
use crate::ledger::postgres::*;
use crate::ledger::sqlite::{SqliteBooks, SqliteLedger};
use crate::ledger::unrecorded::Unrecorded;
use crate::ledger::{Ledger as _, ms};

/// What PostgreSQL, COPY and a terminal make something of, and what a reader of bytes does not expect.
const ODD: &str = "a\0b\\c\td\ne\rf\u{e000}g\u{e000}0 \\N \\. \u{1f600} \"q\" '%s' ";
const COST: &str = "00.10000000000000000000000000000000000010";

/// A ledger of SQLite's with rows in every table and every state, many of them if so wanted.
struct Source {
    dir: tempfile::TempDir,
}

impl Source {
    async fn new(many: u32) -> Self {
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

    fn path(&self) -> PathBuf {
        self.dir.path().join("ledger.db")
    }

    async fn connect(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.path());
        SqliteConnection::connect_with(&options).await.expect("opened")
    }

    async fn execute(&self, statement: &'static str) {
        sqlx::query(statement).execute(&mut self.connect().await).await.expect("executed");
    }

    async fn refuses(&self) -> String {
        let error = SqliteLedger::open(&self.path(), at(9)).await.expect_err("given away").to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }
}

async fn migrate(path: &Path, database: &config::Postgres) -> Result<Outcome, Error> {
    migrating::migrate(path, database, at(100), |_| {}).await
}

async fn refusal(path: &Path, database: &config::Postgres) -> String {
    let error = migrate(path, database).await.expect_err("refused").to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

async fn connect(database: &config::Postgres) -> PgConnection {
    PgConnection::connect_with(&database.connect_options()).await.expect("connected")
}

/// Every row of both ledgers, by table, in the words of the source's texts.
async fn everything(source: &Source, target: &mut PgConnection) -> [BTreeMap<&'static str, Vec<String>>; 2] {
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

#[tokio::test]
async fn every_table_and_every_odd_text_moves_digit_for_digit() {
    if !PostgresStore::is_there() {
        return;
    }
    let (source, database) = (Source::new(0).await, database().await);
    // Of a process that was killed.
    Unrecorded::open(&source.path()).0.begin(at(2)).await;
    let Outcome::Done { moved, figures } = migrate(&source.path(), &database).await.expect("moved") else {
        panic!("it was not done before")
    };
    assert_eq!(moved, 3 + 3 + 2 + 3 + 4);
    let cost = |what: &str| {
        let figure = figures.iter().find(|figure| figure.what == what).expect("counted");
        figure.cost.as_ref().map(ToString::to_string).expect("summed")
    };
    assert_eq!(cost("charges pending"), "0.1000000000000000000000000000000000001");
    assert_eq!(cost("charges posted"), "123456789012345678901234567890.000000000000000000000000000001");
    let mut target = connect(&database).await;
    let [there, here] = everything(&source, &mut target).await;
    assert_eq!(there, here);
    assert!(there["charges"].iter().any(|line| line.contains(ODD) && line.contains("=9=")), "{there:?}");
    // What is told apart by columns that are not compared there.
    let leased: i64 = sqlx::query_scalar(
        "SELECT (SELECT COUNT(*) FROM charges WHERE leased_until <> 0) + (SELECT COUNT(*) FROM tasks WHERE leased_until <> 0)
             + (SELECT COUNT(*) FROM workflows WHERE leased_until <> 0)",
    )
    .fetch_one(&mut target)
    .await
    .expect("counted");
    assert_eq!(leased, 0);
    let life: (i64, Option<i64>, i64) = sqlx::query_as("SELECT born_at, compared_at, pruned_before FROM ledger")
        .fetch_one(&mut target)
        .await
        .expect("read");
    assert_eq!(life, (ms(at(0)), Some(1_800_000_077_000), 1_700_000_000_000));
    let gaps: Vec<(i64, i64)> =
        sqlx::query_as("SELECT since, until FROM gaps ORDER BY since").fetch_all(&mut target).await.expect("read");
    assert_eq!(gaps, [(60, 61), (62, 63), (ms(at(2)), ms(at(2)))]);
}

#[tokio::test]
async fn every_column_moves_but_the_leases() {
    let source = Source::new(0).await;
    let mut file = source.connect().await;
    for table in &TABLES {
        let mut columns: Vec<String> =
            sqlx::query_scalar("SELECT name FROM pragma_table_info(?) WHERE name <> 'leased_until'")
                .bind(table.name)
                .fetch_all(&mut file)
                .await
                .expect("asked");
        columns.sort_unstable();
        let names = table.names();
        let mut names: Vec<&str> = names.split(", ").collect();
        names.sort_unstable();
        assert_eq!(names, columns, "{}", table.name);
    }
    // And every table, but for what is little and what is nobody's.
    let mut tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN ('ledger', 'gaps', 'moved', '_sqlx_migrations')",
    )
    .fetch_all(&mut file)
    .await
    .expect("asked");
    tables.sort_unstable();
    let mut moved = TABLES.map(|table| table.name);
    moved.sort_unstable();
    assert_eq!(tables, moved);
}

#[tokio::test]
async fn a_move_that_is_cut_anywhere_goes_on_where_it_was_and_ends_the_same() {
    if !PostgresStore::is_there() {
        return;
    }
    let (source, database) = (Source::new(12_000).await, database().await);
    let path = source.path();
    // Each start is cut at what it tells first, or one word later: in front of a batch, in it, or behind it.
    let (mut starts, mut resumed_at) = (0, Vec::new());
    let outcome = loop {
        starts += 1;
        let (cut, mut is_cut) = tokio::sync::mpsc::unbounded_channel();
        let mut told = 0;
        let moving = migrating::migrate(&path, &database, at(100), |progress| {
            if let Progress::Resumed { moved } = progress {
                resumed_at.push(moved);
            }
            told += u32::from(matches!(progress, Progress::Rows { .. } | Progress::Comparing));
            if told > starts % 2 {
                let _ = cut.send(());
            }
        });
        tokio::select! {
            biased;
            Some(()) = is_cut.recv() => {}
            outcome = moving => break outcome.expect("moved"),
        }
        assert!(starts < 30, "it gets on");
        let said = PostgresLedger::open(&database, at(101)).await.expect_err("half of it").to_string();
        assert!(said.contains("a ledger is being moved into it") && said.contains("migrate-from sqlite:"), "{said}");
        let said = PostgresBooks::open(&database).await.expect_err("half of it").to_string();
        assert!(said.contains("a ledger is being moved into it"), "{said}");
        assert!(source.refuses().await.contains("it was moved to postgres://"));
    };
    assert!(starts > 4 && resumed_at.is_sorted() && resumed_at.len() > 2, "{starts} starts, {resumed_at:?}");
    let Outcome::Done { moved, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(moved, 3 + 3 + 2 + 12_003 + 4);
    let mut target = connect(&database).await;
    let [there, here] = everything(&source, &mut target).await;
    assert_eq!(there, here);
    // Once more, and nothing changes, not even for those that use it by now.
    PostgresLedger::open(&database, at(102)).await.expect("it can be used").close().await;
    sqlx::query("INSERT INTO replicas VALUES ('one', 'i', 5, 0)").execute(&mut target).await.expect("one");
    sqlx::query("UPDATE charges SET state = 'posted' WHERE state = 'pending'")
        .execute(&mut target)
        .await
        .expect("posted");
    let outcome = migrate(&source.path(), &database).await.expect("nothing to do");
    assert!(matches!(outcome, Outcome::WasDone { moved: 12_015, .. }), "{outcome:?}");
    let pending: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM charges WHERE state = 'pending'")
        .fetch_one(&mut target)
        .await
        .expect("counted");
    assert_eq!(pending, 0);
}

#[tokio::test]
async fn a_source_that_cannot_be_moved_is_refused_in_one_line() {
    if !PostgresStore::is_there() {
        return;
    }
    let (source, database) = (Source::new(0).await, database().await);
    let other = |name: &str| source.dir.path().join(name);
    assert!(refusal(&other("none.db"), &database).await.contains("there is no such file"));
    assert!(!other("none.db.lock").exists() && !other("none.db").exists());
    std::fs::write(other("text.db"), "not a database, and long enough to be taken for one at first sight".repeat(20))
        .expect("written");
    assert!(refusal(&other("text.db"), &database).await.contains("not a database"));
    let serve = SqliteLedger::open(&source.path(), at(1)).await.expect("opens");
    assert!(refusal(&source.path(), &database).await.contains("another tollgate process uses it"));
    serve.close().await;
    drop(serve);
    source
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time)
             VALUES (9999, 'from the future', 0, 1, x'00', 0)",
        )
        .await;
    assert!(refusal(&source.path(), &database).await.contains("newer version"));
    source.execute("DELETE FROM _sqlx_migrations WHERE version = 9999").await;
    migrate(&source.path(), &database).await.expect("nothing is in its way any more");
}

#[tokio::test]
async fn nobody_else_begins_on_the_source_while_it_is_moved_and_it_can_be_taken_back() {
    if !PostgresStore::is_there() {
        return;
    }
    let (source, target, another) = (Source::new(0).await, database().await, database().await);
    let mut refused = None;
    let path = source.path();
    migrating::migrate(&path, &target, at(100), |progress| {
        // The lock file, whatever the mark says.
        if progress == Progress::Comparing {
            let lock = std::fs::File::open(path.with_extension("db.lock")).expect("there");
            refused = Some(lock.try_lock().is_err());
        }
    })
    .await
    .expect("moved");
    assert_eq!(refused, Some(true));
    let said = source.refuses().await;
    assert!(said.contains("'DELETE FROM moved'") && !said.contains("secret"), "{said}");
    assert!(refusal(&path, &another).await.contains("'DELETE FROM moved'"));
    // Looking is free; changing would be seen by nobody.
    let books = SqliteBooks::open(&path).await.expect("opens");
    books.standing().await.expect("read");
    let retried = books.retry(crate::ledger::books::Retry::All, i64::MIN, at(101), 10).await;
    assert!(retried.expect_err("given away").to_string().contains("was moved to"));
    books.close().await;
    SqliteBooks::look(&path).await.expect_err("serve could not use it");
    source.execute("DELETE FROM moved").await;
    let ledger = SqliteLedger::open(&path, at(102)).await.expect("taken back");
    assert!(ledger.has_gap(at(100), at(101)).await.expect("read"), "who submitted meanwhile is not known here");
    ledger.close().await;
    drop(ledger);
    assert!(refusal(&path, &target).await.contains("was used again since"), "and is not mixed with what was moved");
}

#[tokio::test]
async fn a_target_that_is_somebody_elses_is_refused_in_one_line() {
    if !PostgresStore::is_there() {
        return;
    }
    let source = Source::new(0).await;
    let fixture = Fixture::<PostgresStore>::new().await;
    let database = &fixture.store.database;
    fixture.store.execute("INSERT INTO replicas VALUES ('one', 'i', 5, 0)").await;
    let said = refusal(&source.path(), database).await;
    assert!(said.contains("replica one uses it") && said.contains("stop each"), "{said}");
    fixture.store.execute("DELETE FROM replicas").await;
    fixture.workflow("wfl-own", &alice()).await;
    assert!(refusal(&source.path(), database).await.contains("it has principals of its own"));
    SqliteLedger::open(&source.path(), at(1)).await.expect("left as it was").close().await;

    let database = super::database().await;
    migrate(&source.path(), &database).await.expect("moved");
    let other = Source::new(0).await;
    other.execute("UPDATE ledger SET born_at = born_at + 1").await;
    assert!(refusal(&other.path(), &database).await.contains("another ledger was moved"));
}

#[tokio::test]
async fn a_difference_is_named_and_the_move_is_not_done() {
    if !PostgresStore::is_there() {
        return;
    }
    let (source, database) = (Source::new(0).await, database().await);
    let (cut, mut is_cut) = tokio::sync::mpsc::unbounded_channel();
    let path = source.path();
    tokio::select! {
        biased;
        Some(()) = is_cut.recv() => {}
        _ = migrating::migrate(&path, &database, at(100), |progress| {
            if progress == Progress::Comparing { let _ = cut.send(()); }
        }) => panic!("cut before its end"),
    }
    let mut target = connect(&database).await;
    let change = |statement: &'static str| sqlx::query(statement);
    change("UPDATE charges SET cost = '0.10000000000000000000000000000000000011' WHERE task_id = 'tsk-1'")
        .execute(&mut target)
        .await
        .expect("changed");
    change("DELETE FROM tasks WHERE task_id = 'tsk-gone'").execute(&mut target).await.expect("changed");
    let said = refusal(&path, &database).await;
    assert!(said.contains("charges pending: 1 of $0.1000000000000000000000000000000000001 there, 1 of $"), "{said}");
    assert!(said.contains("tasks gone: 1 there, 0 here") && said.contains("not done"), "{said}");
    PostgresLedger::open(&database, at(101)).await.expect_err("not done");
}

#[tokio::test]
async fn what_is_pending_is_posted_from_here_and_what_is_posted_is_not_posted_again() {
    if !PostgresStore::is_there() {
        return;
    }
    let (source, database) = (Source::new(0).await, database().await);
    migrate(&source.path(), &database).await.expect("moved");
    let fixture = Fixture { store: PostgresStore::open_in(database).await };
    let due = fixture.due_charges(200).await;
    assert_eq!(due.iter().map(|charge| charge.task_id.as_str()).collect::<Vec<_>>(), ["tsk-1"]);
    assert_eq!(due[0].cost, COST);
    // A new charge comes behind those that were moved.
    fixture.workflow("wfl-new", &alice()).await;
    assert_eq!(fixture.settle("tsk-new", "wfl-new", "wrk-9").await, charged("alice"));
    let filter = crate::ledger::books::Filter { states: vec![ChargeState::Pending], ..Default::default() };
    let newest = fixture.store.books.charges(&filter, None, 1).await.expect("read");
    assert_eq!((newest[0].task_id.as_str(), newest[0].number), ("tsk-new", 1002));
}
