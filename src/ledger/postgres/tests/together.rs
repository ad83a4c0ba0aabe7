//! Several replicas at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;

use super::*;
use crate::ledger::contract::{LEASE, alice, usage};
use crate::ledger::{Pick, Settled, Settlement, Work};

/// Two ledgers on one database, as two replicas have them; `None` without a PostgreSQL.
async fn two() -> Option<(Fixture<PostgresStore>, PostgresLedger)> {
    if !PostgresStore::is_there() {
        return None;
    }
    let store = PostgresStore::fresh().await;
    let other = PostgresLedger::open(&store.database, at(0)).await.expect("opens");
    Some((Fixture { store }, other))
}

#[tokio::test]
async fn ten_replicas_that_start_at_once_make_one_ledger() {
    if !PostgresStore::is_there() {
        return;
    }
    let database = database().await;
    let mut starting = JoinSet::new();
    for second in 0..10 {
        let database = database.clone();
        starting.spawn(async move { PostgresLedger::open(&database, at(second)).await.expect("opens") });
    }
    let replicas = starting.join_all().await;
    let mut born = BTreeSet::new();
    for replica in &replicas {
        born.insert(replica.born_at().await.expect("read"));
    }
    assert_eq!(born.len(), 1, "one of them made it, and the others have the same");
    let steps: i64 = replicas[0]
        .number("SELECT COUNT(*) FROM _sqlx_migrations WHERE success")
        .await
        .expect("read")
        .expect("a number");
    assert_eq!(usize::try_from(steps).expect("few"), MIGRATIONS.iter().count());
}

#[tokio::test]
async fn what_several_claim_at_once_is_claimed_by_one_each() {
    let Some((fixture, other)) = two().await else { return };
    fixture.workflow("wfl-1", &alice()).await;
    for task in 0..200 {
        fixture.settle(&format!("tsk-{task}"), "wfl-1", &format!("wrk-{task}")).await;
    }
    let (first, second) = (&fixture.store.ledger, &other);
    let mut claimed: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..8 {
        let (ours, theirs) = tokio::join!(
            first.claim_charges(at(20), LEASE, Pick::Due(20)),
            second.claim_charges(at(20), LEASE, Pick::Due(20)),
        );
        for charge in ours.expect("claimed").into_iter().chain(theirs.expect("claimed")) {
            *claimed.entry(charge.task_id).or_default() += 1;
        }
    }
    assert_eq!(claimed.len(), 200);
    assert!(claimed.values().all(|times| *times == 1), "{claimed:?}");
}

#[tokio::test]
async fn what_several_settle_and_record_at_once_is_one_charge_each_and_its_owners() {
    let Some((fixture, other)) = two().await else { return };
    let ledgers = [
        std::sync::Arc::new(other),
        std::sync::Arc::new(PostgresLedger::open(&fixture.store.database, at(0)).await.expect("opens")),
    ];
    for workflow in 0..20 {
        fixture.ledger().note_workflows(&[(format!("wfl-{workflow}"), Some(at(1)))], at(1)).await.expect("noted");
        // Its owner was looked for in vain: whoever settles first writes a charge that is held.
        let held = crate::ledger::contract::held("no submission was open at its time");
        fixture.ledger().attribute(&format!("wfl-{workflow}"), &held, None, at(1)).await.expect("committed");
        fixture.submit(&alice(), &format!("r{workflow}"), 1).await;
    }
    let mut moves = JoinSet::new();
    for workflow in 0..20 {
        for ledger in &ledgers {
            let settling = ledger.clone();
            moves.spawn(async move {
                let usage = usage(&format!("wrk-{workflow}"));
                let (task, workflow) = (format!("tsk-{workflow}"), format!("wfl-{workflow}"));
                settling.settle(&task, Some(&workflow), &usage, at(5)).await.map(Some)
            });
            let recording = ledger.clone();
            moves.spawn(async move {
                let event = crate::access_log::event::Event::Submitted {
                    submission_id: format!("sub-r{workflow}"),
                    principal_id: "alice".into(),
                    workflow_id: format!("wfl-{workflow}"),
                    at: at(5),
                };
                recording.record(&[event], at(5)).await.map(|_| None)
            });
        }
    }
    let mut settled = 0;
    while let Some(moved) = moves.join_next().await {
        match moved.expect("no panic").expect("committed") {
            Some(Settled::Charged { .. } | Settled::Held { .. }) => settled += 1,
            Some(Settled::Already) | None => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(settled, 20, "each once, whoever was first");
    let backlog = fixture.backlog().await;
    assert_eq!((backlog.pending_charges, backlog.held_charges, backlog.held_workflows), (20, 0, 0), "{backlog:?}");
}

/// What the planner would do, a step a line.
async fn plan(store: &PostgresStore, statement: &str, bound: &[i64]) -> String {
    // As with a custom plan: what is bound is known.
    let mut statement = statement.to_owned();
    for (n, value) in bound.iter().enumerate().rev() {
        statement = statement.replace(&format!("${}", n + 1), &value.to_string());
    }
    let mut lent = store.ledger.store.get().await.expect("a connection");
    let steps: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!("EXPLAIN {statement}")))
        .fetch_all(&mut *lent)
        .await
        .expect("explained");
    lent.give_back();
    steps.join("\n")
}

#[tokio::test]
async fn with_100_000_open_workflows_work_is_claimed_and_foreseen_by_partial_indexes() {
    if !PostgresStore::is_there() {
        return;
    }
    let store = PostgresStore::fresh().await;
    store
        .execute(
            "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at)
         SELECT 'wfl-' || n, 'open', n, n FROM generate_series(1, 100000) AS n",
        )
        .await;
    store
        .execute(
            "INSERT INTO tasks (task_id, workflow_id, state, settle_at)
         SELECT 'tsk-' || n, 'wfl-' || n, 'open', n FROM generate_series(1, 100000) AS n",
        )
        .await;
    store.execute("INSERT INTO principals VALUES ('alice', 'alice@example.com', 1)").await;
    store.execute(
        "INSERT INTO charges (task_id, principal_id, cost, duration_sec, cost_per_hour, task_status, state, post_at, created_at)
         SELECT 'tsk-' || n, 'alice', '0.42', 1, '1.5', 'DONE', CASE WHEN n < 50000 THEN 'pending' ELSE 'posted' END, n, n
         FROM generate_series(1, 100000) AS n",
    )
    .await;
    for analysed in [false, true] {
        if analysed {
            store.execute("ANALYZE").await;
        }
        for (work, due, leased) in [
            (Work::Tasks, "tasks_due", "tasks_leased"),
            (Work::Workflows, "workflows_due", "workflows_leased"),
            (Work::Charges, "charges_due", "charges_leased"),
        ] {
            let claiming = plan(&store, &due::claim(work, Pick::Due(10)).0, &[200_000, 300_000, 10]).await;
            assert!(claiming.contains(&format!("Index Scan using {due}")), "{claiming}");
            let table = due.trim_end_matches("_due");
            let reads_all = claiming.contains(&format!("Seq Scan on {table}"));
            assert!(!reads_all && !claiming.contains("Sort"), "{claiming}");
            let next = plan(&store, due::next(work), &[]).await;
            assert!(next.contains(due) && !next.contains("Seq Scan"), "{next}");
            // That little is leased it knows when it has looked, which it does by itself within a minute.
            assert!(!analysed || next.contains(leased), "{next}");
        }
    }
    for query in glance::queries() {
        let shown = plan(&store, &query, &[20]).await;
        assert!(!shown.contains("Seq Scan on charges") && !shown.contains("Sort"), "{shown}");
    }
}

#[tokio::test]
async fn nobody_waits_for_long_for_a_writer_that_hangs() {
    let Some((fixture, other)) = two().await else { return };
    let mut database = fixture.store.database.clone();
    database.statement_timeout = Duration::from_secs(1);
    let impatient = PostgresLedger::open(&database, at(0)).await.expect("opens");
    let hanging = other.store.write().await.expect("begun");
    let begun = std::time::Instant::now();
    let error = impatient.note_gap(at(1), at(2)).await.expect_err("somebody writes").to_string();
    assert!(error.contains("lock timeout") || error.contains("took too long"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Reading, claiming and whatever else does not write goes on meanwhile.
    assert_eq!(impatient.claim_charges(at(1), LEASE, Pick::Due(1)).await.expect("claimed"), []);
    impatient.backlog().await.expect("counted");
    drop(hanging);
    impatient.note_gap(at(1), at(2)).await.expect("committed");
}

#[tokio::test]
async fn whoever_hangs_in_a_transaction_is_cut_off_by_the_server() {
    let Some((fixture, _)) = two().await else { return };
    let mut database = fixture.store.database.clone();
    database.statement_timeout = Duration::from_secs(1);
    let frozen = PostgresLedger::open(&database, at(0)).await.expect("opens");
    let mut hanging = frozen.store.write().await.expect("begun");
    // The others have more patience than that.
    fixture.ledger().note_gap(at(1), at(2)).await.expect("committed");
    let error = sqlx::query("SELECT 1").execute(hanging.tx()).await.expect_err("cut off");
    assert!(!error.to_string().is_empty());
    drop(hanging);
    frozen.note_gap(at(3), at(4)).await.expect("committed, on another connection");
}

#[tokio::test]
async fn who_is_never_silent_and_writes_for_too_long_all_the_same_gives_way() {
    let Some((fixture, _)) = two().await else { return };
    let store = &fixture.store.ledger.store;
    let slow = async {
        let mut writing = store.write().await?;
        for _ in 0..40 {
            sqlx::query("SELECT pg_sleep(0.5)").execute(writing.tx()).await?;
        }
        writing.commit().await?;
        Ok::<_, Error>(())
    };
    let begun = std::time::Instant::now();
    let error = store.pool.bounded(slow).await.expect_err("it takes 20 s").to_string();
    assert!(error.contains("too slow for what others wait for"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    fixture.ledger().note_gap(at(1), at(2)).await.expect("committed");
    // One after the other each has its own time.
    let several = async {
        for _ in 0..3 {
            let mut writing = store.write().await?;
            sqlx::query("SELECT pg_sleep(2)").execute(writing.tx()).await?;
            writing.commit().await?;
        }
        Ok::<_, Error>(())
    };
    store.pool.bounded(several).await.expect("committed");
}

#[tokio::test]
async fn a_connection_whose_work_went_wrong_or_was_given_up_is_not_used_again() {
    let Some((fixture, _)) = two().await else { return };
    let store = &fixture.store.ledger.store;
    let mut lent = store.get().await.expect("a connection");
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *lent).await.expect("read");
    sqlx::raw_sql("BEGIN").execute(&mut *lent).await.expect("begun");
    drop(lent);
    for task in ["tsk-1", "tsk-2"] {
        let settled = fixture.ledger().settle(task, None, &Settlement::Nothing, at(1)).await;
        assert_eq!(settled.expect("committed"), Settled::Nothing);
    }
    let mut lent = store.get().await.expect("a connection");
    let another: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *lent).await.expect("read");
    assert_ne!(backend, another);
}

#[tokio::test]
async fn an_owner_that_comes_between_a_claim_and_its_correction_is_not_lost() {
    let Some((fixture, _)) = two().await else { return };
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    let store = &fixture.store.ledger.store;
    // As it was read when it was claimed: without an owner. By now it has one.
    assert_eq!(fixture.due_charges(20).await.len(), 1);
    crate::ledger::postgres::charges::correct(store, &[], &[("tsk-1".into(), Some("wfl-1".into()))], at(21))
        .await
        .expect("committed");
    let due = fixture.due_charges(21).await;
    assert_eq!(due[0].principal_id, "alice");
}
