//! The contract suite for SQLite, and what only SQLite can get wrong.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use sqlx::AssertSqlSafe;

use super::*;
use crate::access_log::Intake;
use crate::access_log::event::Event;
use crate::drive::News;
use crate::ledger::books::{Books, Found};
use crate::ledger::contract::{Fixture, Store, alice, at, charged, suite};
use crate::ledger::records::BACKLOG;
use crate::ledger::unrecorded::Unrecorded;
use crate::ledger::{Ledger, NewSubmission};
use crate::telemetry::Metrics;

mod work_done;

suite!(SqliteStore);

struct SqliteStore {
    ledger: SqliteLedger,
    books: SqliteBooks,
    dir: tempfile::TempDir,
}

impl SqliteStore {
    async fn open_in(dir: tempfile::TempDir) -> Self {
        let path = dir.path().join("ledger.db");
        let ledger = SqliteLedger::open(&path, at(0)).await.expect("opens");
        Self { ledger, books: SqliteBooks::open(&path).await.expect("opens"), dir }
    }

    /// Lets the database grow no further, or again; SQLite then fails as it does when the disk is full.
    async fn disk_is_full(&self, full: bool) {
        let limit = if full { "PRAGMA max_page_count = 1" } else { "PRAGMA max_page_count = 1073741823" };
        // On every connection that there may be: a full disk has only one.
        sqlx::query(limit).execute(&self.ledger.write).await.expect("set");
    }
}

impl Store for SqliteStore {
    const TAKEN_OVER_AFTER: i64 = 0;

    fn is_there() -> bool {
        true
    }

    async fn fresh() -> Self {
        Self::open_in(tempfile::tempdir().expect("temp dir")).await
    }

    async fn killed_and_restarted(self) -> Self {
        // Dropped without a close, as a kill would.
        drop((self.ledger, self.books));
        Self::open_in(self.dir).await
    }

    fn ledger(&self) -> &dyn Ledger {
        &self.ledger
    }

    fn books(&self) -> &dyn Books {
        &self.books
    }
}

#[tokio::test]
async fn only_its_owner_can_read_a_ledger() {
    let fixture = Fixture::<SqliteStore>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let mut files = 0;
    for file in std::fs::read_dir(fixture.store.dir.path()).expect("listed") {
        let file = file.expect("an entry");
        let mode = file.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", file.path());
        files += 1;
    }
    assert!(files >= 3, "the database, its log and its lock");
}

#[tokio::test]
async fn a_second_process_is_kept_out_and_says_why() {
    let fixture = Fixture::<SqliteStore>::new().await;
    let error = SqliteLedger::open(&fixture.store.dir.path().join("ledger.db"), at(1)).await.expect_err("in use");
    assert!(error.to_string().ends_with("another tollgate process uses it"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_ledger_is_an_error_that_names_it_and_is_left_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path: PathBuf = dir.path().join("ledger.db");
    std::fs::write(&path, "not a database, and long enough to be taken for one at first sight".repeat(20))
        .expect("written");
    let before = std::fs::read(&path).expect("read");
    let error = SqliteLedger::open(&path, at(0)).await.expect_err("no ledger").to_string();
    assert!(error.contains("ledger.db") && !error.contains('\n'), "{error}");
    assert_eq!(std::fs::read(&path).expect("read"), before);
    let error = SqliteLedger::open(&dir.path().join("no/such/dir.db"), at(0)).await.expect_err("no directory");
    assert!(error.to_string().contains("dir.db"), "{error}");
}

#[tokio::test]
async fn a_ledger_from_a_newer_version_is_refused() {
    let SqliteStore { ledger, dir, .. } = SqliteStore::fresh().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time)
         VALUES (9999, 'from the future', 0, 1, x'00', 0)",
    )
    .execute(&ledger.write)
    .await
    .expect("inserted");
    drop(ledger);
    let error = SqliteLedger::open(&dir.path().join("ledger.db"), at(0)).await.expect_err("newer").to_string();
    assert!(error.contains("9999"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_over_when_it_is_over() {
    let fixture = Fixture::<SqliteStore>::new().await;
    fixture.store.disk_is_full(true).await;
    let mut failed = 0;
    for request in 0..2000 {
        let id = format!("request-{request}-{}", "x".repeat(100));
        let row = NewSubmission { submission_id: &id, principal: &alice(), request_id: &id, at: at(1) };
        failed += usize::from(fixture.ledger().open_submission(row).await.is_err());
        if failed == 3 {
            break;
        }
    }
    assert_eq!(failed, 3, "the disk was full");
    fixture.store.disk_is_full(false).await;
    fixture.workflow("wfl-1", &alice()).await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
}

#[tokio::test]
async fn the_intake_keeps_what_a_full_disk_did_not_take() {
    let SqliteStore { ledger, dir, .. } = SqliteStore::fresh().await;
    let ledger = std::sync::Arc::new(ledger);
    sqlx::query("PRAGMA max_page_count = 1").execute(&ledger.write).await.expect("set");
    let (ways, queue) = crate::access_log::queue(4096, 16);
    let metrics = Metrics::unread();
    let intake = Intake::new(ledger.clone(), queue, News::default(), Unrecorded::default(), 512, metrics.clone());
    let running = tokio::spawn(intake.run());
    for task in 0..3000 {
        let task_id = format!("tsk-{task}-{}", "x".repeat(100));
        ways.log.send(Event::TaskEnded { task_id }).await.expect("queued");
    }
    let failures =
        || metrics.ledger_errors.get_or_create(&crate::telemetry::KindLabels { kind: "record_events" }).get();
    while failures() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sqlx::query("PRAGMA max_page_count = 1073741823").execute(&ledger.write).await.expect("set");
    drop(ways);
    running.await.expect("no panic").expect("all committed");
    assert_eq!(ledger.backlog().await.expect("counted").due_tasks, 3000);
    drop(dir);
}

#[tokio::test]
async fn the_intake_halves_what_is_too_much_for_the_ledger_and_loses_nothing() {
    let SqliteStore { ledger, dir, .. } = SqliteStore::fresh().await;
    let ledger = std::sync::Arc::new(ledger);
    // No row is refused; but more than 100 in one transaction, which have one time, are an error of the database's.
    sqlx::query(
        "CREATE TRIGGER too_much BEFORE INSERT ON tasks
         WHEN (SELECT COUNT(*) FROM tasks WHERE settle_at = NEW.settle_at) >= 100
         BEGIN SELECT abs(NEW.settle_at - NEW.settle_at - 9223372036854775807 - 1); END",
    )
    .execute(&ledger.write)
    .await
    .expect("made");
    let (ways, queue) = crate::access_log::queue(4096, 16);
    for task in 0..600 {
        ways.log.send(Event::TaskEnded { task_id: format!("tsk-{task}") }).await.expect("queued");
    }
    let metrics = Metrics::unread();
    let intake = Intake::new(ledger.clone(), queue, News::default(), Unrecorded::default(), 512, metrics.clone());
    let running = tokio::spawn(intake.run());
    let all = async {
        while ledger.backlog().await.expect("counted").due_tasks < 600 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), all).await.expect("each is committed");
    drop(ways);
    running.await.expect("no panic").expect("all committed");
    let refused = metrics.ledger_errors.get_or_create(&crate::telemetry::KindLabels { kind: "refused_event" }).get();
    assert_eq!((refused, metrics.intake_queued.get()), (0, -600), "none was queued by a stream");
    drop(dir);
}

#[tokio::test]
async fn no_query_of_the_console_sorts_or_reads_a_whole_table() {
    let fixture = Fixture::<SqliteStore>::new().await;
    for (n, query) in glance::queries().into_iter().enumerate() {
        let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}")))
            .bind(20)
            .fetch_all(&fixture.store.ledger.read)
            .await
            .expect("explained");
        let sorts = plan.iter().any(|(.., step)| step.contains("TEMP B-TREE"));
        // The latest charges are the end of the table itself, which is in their order.
        let reads_all = plan.iter().any(|(.., step)| step.starts_with("SCAN") && !step.contains(" USING INDEX "));
        assert!(!sorts && (!reads_all || n == 0), "{n}: {plan:?}");
    }
}

#[tokio::test]
async fn what_runs_often_uses_an_index_however_many_rows_are_done() {
    let fixture = Fixture::<SqliteStore>::new().await;
    for (query, index) in [
        ("SELECT * FROM tasks WHERE state = 'open' AND settle_at <= 1 ORDER BY settle_at", "tasks_due"),
        ("SELECT * FROM workflows WHERE state = 'open' AND sweep_at <= 1 ORDER BY sweep_at", "workflows_due"),
        ("SELECT * FROM charges WHERE state = 'pending' AND post_at <= 1 ORDER BY post_at", "charges_due"),
        (
            "SELECT * FROM charges WHERE workflow_id = 'w' AND (state = 'held' OR state = 'pending')",
            "charges_of_workflow",
        ),
        (
            "SELECT * FROM charges WHERE principal_id = 'p' AND state = 'held' AND hold_reason = 'no_email'",
            "charges_held_of",
        ),
        ("SELECT * FROM submissions WHERE state = 'open' AND opened_at BETWEEN 1 AND 2", "submissions_open"),
        ("SELECT * FROM workflows WHERE submission_id = 's'", "workflows_of_submission"),
        (
            "SELECT * FROM workflows WHERE attribution = 'held' AND state IN ('open', 'settled') AND noted_at >= 1",
            "workflows_held",
        ),
        ("SELECT COUNT(*) FROM charges WHERE state = 'pending'", "charges_pending"),
        ("SELECT COUNT(*) FROM charges WHERE state = 'held'", "charges_held"),
        ("SELECT COUNT(*) FROM charges WHERE state = 'rejected'", "charges_rejected"),
        ("SELECT COUNT(*) FROM tasks WHERE outcome = 'gone'", "tasks_gone"),
        (
            "SELECT * FROM charges WHERE state = 'posted' AND posted_at < 2 AND (posted_at, task_id) > (1, 't')
             ORDER BY posted_at, task_id",
            "charges_posted",
        ),
        (
            "SELECT noted_at, workflow_id FROM workflows WHERE (noted_at, workflow_id) > (1, 'w') AND noted_at < 2
             AND state <> 'open' ORDER BY noted_at, workflow_id",
            "workflows_over",
        ),
        (
            "SELECT opened_at, submission_id FROM submissions WHERE (opened_at, submission_id) > (1, 's')
             AND opened_at < 2 AND state <> 'open' ORDER BY opened_at, submission_id",
            "submissions_over",
        ),
        (
            "SELECT asked_at, task_id FROM tasks WHERE (asked_at, task_id) > (1, 't') AND asked_at < 2
             AND workflow_id IS NULL AND state = 'settled' ORDER BY asked_at, task_id",
            "tasks_of_workflow",
        ),
    ] {
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}")))
                .fetch_all(&fixture.store.ledger.read)
                .await
                .expect("explained");
        assert!(plan.iter().any(|(.., step)| step.contains(index)), "{query}: {plan:?}");
    }
}

#[tokio::test]
async fn a_scrape_looks_at_no_row_that_is_over_and_steps_to_the_oldest_of_the_others() {
    let fixture = Fixture::<SqliteStore>::new().await;
    let plan: Vec<(i64, i64, i64, String)> =
        sqlx::query_as(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {BACKLOG}")))
            .fetch_all(&fixture.store.ledger.read)
            .await
            .expect("explained");
    let steps: Vec<&str> = plan
        .iter()
        .map(|(.., step)| step.as_str())
        .filter(|step| step.starts_with("SEARCH ") || (step.starts_with("SCAN ") && *step != "SCAN CONSTANT ROW"))
        .collect();
    assert!(steps.len() >= 14, "{plan:?}");
    // Partial, so that it has live rows only.
    let partial: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql LIKE '% WHERE %'")
            .fetch_all(&fixture.store.ledger.read)
            .await
            .expect("read");
    for step in &steps {
        let index = step.split(" INDEX ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("none");
        assert!(partial.iter().any(|name| name == index), "{step}: {steps:#?}");
    }
    for index in ["charges_pending", "charges_held", "charges_rejected", "tasks_due", "workflows_open"] {
        let stepped = steps.iter().any(|step| step.starts_with("SEARCH") && step.contains(index));
        assert!(stepped, "{index}: {steps:#?}");
    }
}

/// Why the operator's side of a file cannot be opened, in one line that names it.
async fn why_not(path: &Path) -> String {
    let error = SqliteBooks::open(path).await.expect_err("cannot be opened").to_string();
    assert!(error.contains("ledger.db") && !error.contains('\n'), "{error}");
    error
}

#[tokio::test]
async fn the_operators_side_makes_no_ledger_and_touches_nothing_that_is_none() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("ledger.db");
    let error = why_not(&path).await;
    assert!(error.contains("there is no such file"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
    for content in ["", "not a database, and long enough to be taken for one at first sight"] {
        std::fs::write(&path, content.repeat(20)).expect("written");
        let error = why_not(&path).await;
        assert!(error.contains("it is no ledger") || error.contains("file is not a database"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), content.repeat(20));
    }
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    assert!(why_not(&path).await.contains("it is no file"));
}

#[tokio::test]
async fn a_damaged_ledger_is_an_error_of_one_line() {
    let SqliteStore { ledger, books, dir } = SqliteStore::fresh().await;
    books.close().await;
    ledger.close().await;
    drop((ledger, books));
    let path = dir.path().join("ledger.db");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[100..].fill(0xa5);
    std::fs::write(&path, bytes).expect("written");
    let error = why_not(&path).await;
    assert!(error.contains("malformed"), "{error}");
}

#[tokio::test]
async fn the_operators_side_of_another_version_says_so() {
    let store = SqliteStore::fresh().await;
    let path = store.dir.path().join("ledger.db");
    let change = async |statement: &'static str| {
        sqlx::query(statement).execute(&store.ledger.write).await.expect("changed");
    };
    change("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 3").await;
    assert!(why_not(&path).await.contains("newer version of Tollgate (its schema has step 9999)"));
    change("DELETE FROM _sqlx_migrations WHERE version = 9999").await;
    assert!(why_not(&path).await.contains("lacks step 3): start `tollgate serve` once"));
    assert_eq!(SqliteBooks::look(&path).await.expect("usable"), Found::Older);
}

#[tokio::test]
async fn a_ledger_that_somebody_keeps_locked_is_an_error_and_read_all_the_same() {
    let store = SqliteStore::fresh().await;
    let fixture = Fixture { store };
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    let path = fixture.store.dir.path().join("ledger.db");
    // With less patience than the real one has.
    let impatient = SqliteBooks::open_with(&path, Duration::from_millis(50)).await.expect("opens");
    let writing = fixture.store.ledger.begin().await.expect("begun");
    let error =
        impatient.retry(crate::ledger::books::Retry::All, i64::MIN, at(1), 1).await.expect_err("locked").to_string();
    assert!(error.contains("database is locked"), "{error}");
    assert_eq!(impatient.standing().await.expect("read").charges[0].rows, 1);
    drop(writing);
}
