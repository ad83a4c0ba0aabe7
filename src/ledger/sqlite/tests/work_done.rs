//! How much SQLite has to do for what is done often.

use futures_util::future::join_all;

use super::*;
use crate::ledger::contract::{LEASE, usage};
use crate::ledger::sqlite::due;
use crate::ledger::{Pick, Settled, Settlement, Work};

/// The steps of a statement that touch a table.
async fn plan(store: &SqliteStore, statement: &str) -> Vec<String> {
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")))
        .fetch_all(&store.ledger.read)
        .await
        .expect("explained");
    plan.into_iter().map(|(.., step)| step).collect()
}

/// How many transactions there are in the write-ahead log: a frame that ends one tells the size of the database.
fn transactions(store: &SqliteStore) -> usize {
    let log = std::fs::read(store.dir.path().join("ledger.db-wal")).expect("read");
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
    let page = number(&log[8..12]) as usize;
    // Frames of an earlier round of the log have another salt.
    log[32..].chunks_exact(24 + page).filter(|frame| frame[8..16] == log[16..24] && number(&frame[4..8]) > 0).count()
}

#[tokio::test]
async fn with_100_000_open_workflows_work_is_claimed_and_foreseen_by_partial_indexes() {
    let fixture = Fixture::<SqliteStore>::new().await;
    let store = &fixture.store;
    for rows in [
        "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at) SELECT 'wfl-' || n, 'open', n, n FROM numbers",
        "INSERT INTO tasks (task_id, workflow_id, state, settle_at) SELECT 'tsk-' || n, 'wfl-' || n, 'open', n FROM numbers",
        "INSERT INTO charges (task_id, cost, duration_sec, cost_per_hour, task_status, state, post_at, created_at)
         SELECT 'tsk-' || n, '0.42', 1, '1.5', 'DONE', IIF(n < 50000, 'pending', 'posted'), n, n FROM numbers",
    ] {
        let all = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000) ";
        let (columns, select) = rows.split_once(" SELECT ").expect("a SELECT");
        sqlx::query(AssertSqlSafe(format!("{columns} {all} SELECT {select}")))
            .execute(&store.ledger.write)
            .await
            .expect("written");
    }
    for (work, due, leased) in [
        (Work::Tasks, "tasks_due", "tasks_leased"),
        (Work::Workflows, "workflows_due", "workflows_leased"),
        (Work::Charges, "charges_due", "charges_leased"),
    ] {
        let claiming = plan(store, &due::claim(work, Pick::Due(10)).0).await;
        assert!(claiming.iter().any(|step| step.starts_with("SEARCH") && step.contains(due)), "{claiming:#?}");
        assert!(
            !claiming.iter().any(|step| step.starts_with("SCAN") || step.contains("TEMP B-TREE FOR")),
            "{claiming:#?}"
        );
        let next = plan(store, due::next(work)).await;
        for index in [due, leased] {
            assert!(next.iter().any(|step| step.contains(index)), "{index}: {next:#?}");
        }
        assert!(!next.iter().any(|step| step.contains("TEMP B-TREE FOR")), "{next:#?}");
    }
    // With some of them leased, and their leases over.
    assert_eq!(fixture.ledger().claim_workflows(at(0), LEASE, Pick::Due(7)).await.expect("claimed").len(), 7);
    assert_eq!(fixture.ledger().next_due(Work::Workflows).await.expect("read"), Some(time(8)));
    let everything = fixture.ledger().claim_workflows(at(61), LEASE, Pick::Due(200_000)).await.expect("claimed");
    assert_eq!(everything.len(), 100_000);
    assert_eq!(fixture.ledger().next_due(Work::Workflows).await.expect("read"), Some(at(121)));
}

#[tokio::test]
async fn a_start_lifts_leases_by_an_index() {
    let fixture = Fixture::<SqliteStore>::new().await;
    for (lift, index) in LIFTS.into_iter().zip(["workflows_leased", "tasks_leased", "charges_leased"]) {
        let plan = plan(&fixture.store, lift).await;
        assert!(plan.iter().any(|step| step.contains(index)), "{plan:?}");
    }
}

#[tokio::test]
async fn what_comes_at_once_is_one_transaction_however_much_it_is() {
    let fixture = Fixture::<SqliteStore>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let tasks: Vec<String> = (0..200).map(|n| format!("tsk-{n}")).collect();
    for some in [&tasks[..20], &tasks[20..]] {
        let ledger = fixture.ledger();
        let before = transactions(&fixture.store);
        let settled = join_all(some.iter().map(|task| fixture.settle(task, "wfl-1", task))).await;
        assert!(settled.iter().all(|settled| *settled == charged("alice")));
        assert_eq!(transactions(&fixture.store) - before, 1, "they all came before anything was written");
        let due = ledger.claim_charges(at(10), LEASE, Pick::Due(200)).await.expect("claimed");
        assert_eq!(due.len(), some.len());
        let before = transactions(&fixture.store);
        for posted in join_all(due.iter().map(|due| ledger.posted(due, at(11)))).await {
            posted.expect("committed");
        }
        assert_eq!(transactions(&fixture.store) - before, 1);
    }
    assert_eq!(fixture.posted_charges().await, 200);
}

#[tokio::test]
async fn a_row_that_the_schema_does_not_take_keeps_back_none_that_comes_with_it() {
    let fixture = Fixture::<SqliteStore>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let settling =
        (0..30).map(|n| {
            let Settlement::Usage(mut usage) = usage(&format!("wrk-{n}")) else { unreachable!() };
            if n == 17 {
                usage.task_status = "NO SUCH STATUS".to_owned();
            }
            let fixture = &fixture;
            async move {
                fixture.ledger().settle(&format!("tsk-{n}"), Some("wfl-1"), &Settlement::Usage(usage), at(10)).await
            }
        });
    for (n, settled) in join_all(settling).await.into_iter().enumerate() {
        assert_eq!(settled.is_err(), n == 17, "{n}: {settled:?}");
    }
    assert_eq!(fixture.backlog().await.pending_charges, 29);
}

#[tokio::test]
async fn what_a_full_disk_did_not_take_in_a_group_is_taken_after_it_and_once() {
    let fixture = Fixture::<SqliteStore>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.store.disk_is_full(true).await;
    let tasks: Vec<String> = (0..200).map(|n| format!("tsk-{n}-{}", "x".repeat(100))).collect();
    let settle = async || {
        let settling =
            tasks.iter().map(async |task| fixture.ledger().settle(task, Some("wfl-1"), &usage(task), at(10)).await);
        join_all(settling).await
    };
    let settled = settle().await;
    let refused = settled.iter().filter(|settled| settled.is_err()).count();
    assert!(refused > 100, "the disk was full: {refused}");
    let taken = usize::try_from(fixture.backlog().await.pending_charges).expect("few");
    assert_eq!(taken, 200 - refused, "what was said to be done, and no more");
    fixture.store.disk_is_full(false).await;
    let is = |settled: &Result<Settled, Error>, expected: &Settled| {
        settled.as_ref().is_ok_and(|settled| settled == expected)
    };
    let settled = settle().await;
    assert_eq!(settled.iter().filter(|settled| is(settled, &charged("alice"))).count(), refused);
    assert_eq!(settled.iter().filter(|settled| is(settled, &Settled::Already)).count(), 200 - refused);
    assert_eq!(fixture.backlog().await.pending_charges, 200);
}
