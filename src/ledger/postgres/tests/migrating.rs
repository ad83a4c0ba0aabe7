//! A SQLite ledger that moves here.

mod source;

use std::path::Path;

use sqlx::Connection as _;

use self::source::{COST, ODD, Source, everything};
use super::super::migrating::{self, Error, Outcome, Progress, TABLES};
use super::{PostgresStore, database};
use crate::config;
use crate::ledger::books::{Books as _, ChargeState};
use crate::ledger::contract::{Fixture, Store as _, alice, at, charged};
use crate::ledger::postgres::*;
use crate::ledger::sqlite::{SqliteBooks, SqliteLedger};
use crate::ledger::unrecorded::Unrecorded;
use crate::ledger::{Ledger as _, Pick, ms};

async fn migrate(path: &Path, database: &config::Postgres) -> Result<Outcome, Error> {
    migrating::migrate(path, database, at(100), |_| {}).await
}

/// Ends a move as a kill would, when every row is there and nothing has been compared.
async fn all_but_the_end(path: &Path, database: &config::Postgres) {
    let (cut, mut is_cut) = tokio::sync::mpsc::unbounded_channel();
    tokio::select! {
        biased;
        Some(()) = is_cut.recv() => {}
        _ = migrating::migrate(path, database, at(100), |progress| {
            if progress == Progress::Comparing { let _ = cut.send(()); }
        }) => panic!("cut before its end"),
    }
}

async fn refusal(path: &Path, database: &config::Postgres) -> String {
    let error = migrate(path, database).await.expect_err("refused").to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

async fn connect(database: &config::Postgres) -> PgConnection {
    PgConnection::connect_with(&database.connect_options()).await.expect("connected")
}

#[tokio::test]
async fn every_table_and_every_odd_text_moves_digit_for_digit() {
    if !PostgresStore::is_there() {
        return;
    }
    let (source, database) = (Source::new(0).await, database().await);
    // Of a process that was killed.
    Unrecorded::open(&source.path(), at(0)).begin(at(2)).await;
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
    assert_eq!(gaps, [(60, 61), (62, 63), (ms(at(2)), ms(at(100)))]);
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
    let path = source.path();
    all_but_the_end(&path, &database).await;
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

#[tokio::test]
async fn whoever_had_opened_the_target_before_claims_nothing_until_all_is_there() {
    if !PostgresStore::is_there() {
        return;
    }
    let (source, database) = (Source::new(0).await, database().await);
    let before = PostgresLedger::open(&database, at(0)).await.expect("empty");
    all_but_the_end(&source.path(), &database).await;
    let (now, lease) = (at(2_000_000_000), Duration::from_mins(1));
    let claimed = async || before.claim_charges(now, lease, Pick::Due(10)).await.expect("claimed").len();
    assert_eq!(claimed().await, 0);
    assert!(before.claim_tasks(now, lease, Pick::Due(10)).await.expect("claimed").is_empty());
    assert!(before.claim_workflows(now, lease, Pick::Due(10)).await.expect("claimed").is_empty());
    migrate(&source.path(), &database).await.expect("moved");
    assert_eq!(claimed().await, 1);
    assert!(!before.claim_tasks(now, lease, Pick::Due(10)).await.expect("claimed").is_empty());
    before.close().await;
}
