//! A database that is slow for a while, and more log entries than fit anywhere: what waits is bounded, nobody is kept waiting
//! by it, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use sqlx::{Connection, PgConnection};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tollgate_local::stack::{ALICE, BOB, wait_for};
use tollgate_local::standin::Outcome;

use crate::harness::direct::{channel, read_from, request, status};
use crate::harness::shared::LOCK;
use crate::harness::{Direct, Edge, Memory, SOON, Shared};
use crate::log_service::{look_at, message, stream_on};
use crate::shared_ledger::{SUBMISSIONS_FAILED, WITHOUT_LEDGER, fields, submitted};

/// Connections with a stream each, as many as an Envoy with so many workers has.
const STREAMS: usize = 16;
/// What each brings: some 380 MiB of all, which is far more than fits anywhere on the way.
const MESSAGES: usize = 60;
const ENTRIES: usize = 100;
const PADDING: usize = 4096;
const ALL: usize = STREAMS * MESSAGES * ENTRIES;
/// Tasks of which one stream tells.
const TASKS: usize = 4;
/// `intake_queue` and `intake_batch`: what waits, and what is being committed.
const BOUND: usize = 4096 + 2048;
/// The database is slow until so many events have gone by, so that all that bounds them was full several times over.
const LONG_ENOUGH: usize = 5 * BOUND;
/// What Tollgate may hold more at its worst. For each stream: HTTP/2's window, 1 MiB by hyper's default, and a message of 400 KiB
/// that is put together in a buffer that doubles, and is then read; 32 MiB at most for all of them. Events without their
/// entries are some hundred bytes each, so a few MiB for the queue and for a batch with its JSON. The rest is the allocator's.
const GROWTH_MIB: u64 = 64;
/// For how long somebody else has the writers' lock, again and again. In between each that waits for it writes once. The longest
/// is more than the others wait, who begin anew then.
const HELD: [Duration; 4] = [SHORT, SHORT, SHORT, LONG];
const SHORT: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_millis(2500);
/// For the rest, once the database is as fast as ever.
const CAUGHT_UP: Duration = Duration::from_mins(1);

/// A finished look at a task that has ended, as large as they come.
fn ended(task: &str) -> HttpAccessLogEntry {
    let mut entry = look_at(task, 0);
    let metadata = entry.common_properties.as_mut().and_then(|common| common.metadata.as_mut()).expect("set");
    metadata.filter_metadata.insert("flowmesh.response".to_owned(), fields(&[("status", "DONE")]));
    entry.request.as_mut().expect("set").path = format!("/api/v1/tasks/{task}?x={}", "x".repeat(PADDING));
    entry
}

/// Keeps the database slow until it is told to stop, on two connections: who has the lock next stands in line for it by then, so
/// that others get it for one transaction each.
async fn slow_down(mut locked: PgConnection, mut next: PgConnection, stop: &CancellationToken) {
    for held in HELD.into_iter().cycle() {
        let holding = async {
            let stopped = timeout(held, stop.cancelled()).await.is_ok();
            sqlx::raw_sql("ROLLBACK").execute(&mut locked).await.expect("ended");
            stopped
        };
        let (locking, stopped) = tokio::join!(sqlx::raw_sql(LOCK).execute(&mut next), holding);
        locking.expect("locked");
        std::mem::swap(&mut locked, &mut next);
        if stopped {
            return locked.close().await.expect("ended");
        }
    }
}

/// Sends all that one stream has to tell, as fast as it is taken.
async fn pour(stream: mpsc::Sender<StreamAccessLogsMessage>, number: usize, sent: Arc<AtomicUsize>) {
    for _ in 0..MESSAGES {
        let entries = (0..ENTRIES).map(|n| ended(&format!("tsk-flood-{number}-{}", n % TASKS))).collect();
        stream.send(message(entries)).await.expect("the stream is open");
        sent.fetch_add(ENTRIES, Ordering::Relaxed);
    }
}

/// Asks all the time: for reads, and for submissions that make a workflow each, of which the log is told on a stream that is held
/// up like the others. Returns the longest that an answer took, and the tasks.
async fn ask(
    edge: &Edge,
    stream: &mpsc::Sender<StreamAccessLogsMessage>,
    stop: &CancellationToken,
) -> (Duration, Vec<String>) {
    let mut direct = Direct::connect(edge).await;
    let (mut longest, mut made, mut telling) = (Duration::ZERO, Vec::new(), JoinSet::new());
    while !stop.is_cancelled() {
        let begun = Instant::now();
        assert_eq!(status(&direct.check(read_from("192.0.2.1", BOB.token)).await), 200);
        longest = longest.max(begun.elapsed());
        let (bearer, id) = (format!("Bearer {}", ALICE.token), uuid::Uuid::now_v7().to_string());
        let headers = [("authorization", bearer.as_str()), ("x-request-id", id.as_str())];
        let begun = Instant::now();
        let checked = direct.check(request("POST", "/api/v1/workflows", &headers)).await;
        longest = longest.max(begun.elapsed());
        assert_eq!(status(&checked), 200, "{checked:?}");
        let (workflow, mut tasks) = edge.stack.flowmesh.submit(1);
        assert!(edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5)));
        made.append(&mut tasks);
        let (stream, entry) = (stream.clone(), submitted(&checked, &workflow));
        telling.spawn(async move { stream.send(message(vec![entry])).await });
    }
    while let Some(told) = telling.join_next().await {
        told.expect("no panic").expect("the stream is open");
    }
    (longest, made)
}

/// Looks on until enough went by; what waits is never more than may.
async fn look_on(edge: &Edge, sent: &AtomicUsize) {
    let most = f64::from(u32::try_from(BOUND + STREAMS).expect("small"));
    let enough = f64::from(u32::try_from(LONG_ENOUGH).expect("small"));
    let fullest = std::cell::Cell::new(0.0_f64);
    let gone_by = wait_for("enough to go by", SOON * 6, async || {
        let queued = edge.stack.tollgate.metric("tollgate_intake_queued_events").await?;
        assert!(queued <= most, "{queued} wait");
        fullest.set(fullest.get().max(queued));
        let taken = edge.stack.tollgate.metric("tollgate_log_entries_total").await?;
        // It is slow for submissions as well.
        let failed = edge.stack.tollgate.metric(SUBMISSIONS_FAILED).await?;
        (taken >= enough && failed > 2.0).then_some(())
    });
    gone_by.await.expect("it is slow, and goes on");
    assert!(fullest.get() >= 4096.0, "{} waited at most", fullest.get());
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < ALL, "who sends is held up");
}

// Who makes the database slow must not wait for those who pour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_slow_what_waits_is_bounded_and_every_log_event_is_recorded_once() {
    let Some(shared) = Shared::start().await else { return };
    let edge = &shared.edge;
    let (_, mut tasks) = edge.submit(ALICE.token, 1).await;
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    edge.metric("tollgate_log_entries_total", 1.0).await;
    let before = Memory::of(edge);
    let (locked, next) = (shared.lock().await, shared.ledger().await);

    let (stop, sent) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let (mut pouring, mut streams) = (JoinSet::new(), Vec::new());
    for number in 0..STREAMS {
        let stream = stream_on(channel(edge).await);
        pouring.spawn(pour(stream.clone(), number, sent.clone()));
        streams.push(stream);
    }
    let asking = async { tokio::join!(ask(edge, &streams[0], &stop), ask(edge, &streams[1], &stop)) };
    let looking_on = async {
        look_on(edge, &sent).await;
        before.assert_flat(edge, GROWTH_MIB);
        stop.cancel();
    };
    let ((first, second), (), ()) = tokio::join!(asking, slow_down(locked, next, &stop), looking_on);
    for (longest, made) in [first, second] {
        assert!(longest < WITHOUT_LEDGER, "a Check took {longest:?}");
        tasks.extend(made);
    }
    // However full of log events the intake is: none is left to its log entry alone.
    edge.metric("tollgate_submissions_total{outcome=\"given_up\"}", 0.0).await;

    let poured = timeout(CAUGHT_UP, pouring.join_all()).await;
    poured.expect("all of it is sent once the database is fast again");
    let told = ALL + tasks.len();
    let taken = async || {
        let taken = edge.stack.tollgate.metric("tollgate_log_entries_total").await?;
        (taken >= f64::from(u32::try_from(told).expect("small"))).then_some(taken)
    };
    let taken = wait_for("all of it to be taken", CAUGHT_UP, taken).await.expect("taken");
    assert!((taken - f64::from(u32::try_from(told).expect("small"))).abs() < f64::EPSILON, "{taken} of {told}");
    edge.metric("tollgate_intake_queued_events", 0.0).await;
    edge.metric("tollgate_open_submissions", 0.0).await;
    before.assert_flat(edge, GROWTH_MIB);

    // Each piece of evidence that a task ended is counted, but for the one that made its row.
    let recorded: i64 = sqlx::query_scalar("SELECT SUM(heard + 1)::bigint FROM tasks WHERE task_id LIKE 'tsk-flood-%'")
        .fetch_one(&mut shared.ledger().await)
        .await
        .expect("summed");
    assert_eq!(usize::try_from(recorded).expect("positive"), ALL);
    let owned: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM workflows WHERE attribution = 'log'")
        .fetch_one(&mut shared.ledger().await)
        .await
        .expect("counted");
    assert_eq!(usize::try_from(owned).expect("positive"), tasks.len());
    // What could not be said of work that was claimed is found out again when its lease ends, a minute later. As if it had.
    for table in ["tasks", "workflows"] {
        let update = format!("UPDATE {table} SET leased_until = leased_until - 60000");
        sqlx::raw_sql(sqlx::AssertSqlSafe(update)).execute(&mut shared.ledger().await).await.expect("updated");
    }
    edge.entries(tasks.len()).await;
    edge.assert_billed_as_truth(&edge.stack.flowmesh.truth());
    shared.edge.finish_unbilled().await;
}
