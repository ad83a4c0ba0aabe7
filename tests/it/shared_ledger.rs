//! Several Tollgates on one PostgreSQL, and a PostgreSQL that is away or slow: one thing at a time, where `chaos` has it all at
//! once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::{Metadata, RequestMethod};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties,
};
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use envoy_types::pb::google::protobuf::{Struct, UInt32Value, Value, value::Kind};
use serde_json::json;
use sqlx::Connection;
use tollgate_local::stack::{ACME, ALICE, Tollgate, wait_for};
use tollgate_local::standin::{Fault, Outcome};

use crate::harness::direct::{self, channel, request, status};
use crate::harness::documented::{Exposed, families};
use crate::harness::{Direct, SOON, Shared, answer, binary};
use crate::log_service::{message, send_until_held_up, stream_on};

/// More than any Check may take while the ledger is in trouble, on a machine that has other things to do.
pub const WITHOUT_LEDGER: Duration = Duration::from_secs(3);
pub const SUBMISSIONS_FAILED: &str = "tollgate_submissions_total{outcome=\"failed\"}";

/// A field of what Check attaches to a request.
fn attached(response: &CheckResponse, key: &str) -> String {
    let fields = &response.dynamic_metadata.as_ref().expect("metadata").fields;
    match fields.get(key).and_then(|value| value.kind.clone()) {
        Some(Kind::StringValue(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}

pub fn fields(fields: &[(&str, &str)]) -> Struct {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    Struct { fields: fields.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect() }
}

/// The log entry of a submission that made a workflow.
pub fn submitted(checked: &CheckResponse, workflow: &str) -> HttpAccessLogEntry {
    let (submission, principal) = (attached(checked, "submission_id"), attached(checked, "principal_id"));
    let ours = fields(&[("record", "yes"), ("submission_id", &submission), ("principal_id", &principal)]);
    let filter_metadata = HashMap::from([
        ("envoy.filters.http.ext_authz".to_owned(), ours),
        ("flowmesh.response".to_owned(), fields(&[("workflow_id", workflow)])),
    ]);
    HttpAccessLogEntry {
        common_properties: Some(AccessLogCommon {
            metadata: Some(Metadata { filter_metadata, ..Metadata::default() }),
            ..AccessLogCommon::default()
        }),
        request: Some(HttpRequestProperties {
            request_method: RequestMethod::Post.into(),
            path: "/api/v1/workflows".to_owned(),
            ..HttpRequestProperties::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: Some(UInt32Value { value: 201 }),
            ..HttpResponseProperties::default()
        }),
        ..HttpAccessLogEntry::default()
    }
}

/// Submits by Check alone, at the Tollgate behind this socket.
async fn check_submission(at: &mut Direct, token: &str) -> CheckResponse {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("x-request-id", "00000000-0000-4000-8000-000000000001")];
    let checked = at.check(request("POST", "/api/v1/workflows", &headers)).await;
    assert_eq!(status(&checked), 200, "{checked:?}");
    checked
}

/// Which of these is on duty, once one alone is.
async fn on_duty(tollgates: &[&Tollgate], patience: Duration) -> usize {
    let looking = async || {
        let mut mine = Vec::new();
        for (at, tollgate) in tollgates.iter().enumerate() {
            if tollgate.metric("tollgate_replica_on_duty").await == Some(1.0) {
                mine.push(at);
            }
        }
        assert!(mine.len() < 2, "one at a time");
        mine.first().copied()
    };
    wait_for("a replica to be on duty", patience, looking).await.expect("one is")
}

#[tokio::test]
async fn while_the_database_is_away_checks_are_answered_and_when_it_is_back_everything_is_billed() {
    let Some(shared) = Shared::start().await else { return };
    let edge = &shared.edge;
    let read = async || {
        let begun = Instant::now();
        assert_eq!(answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)).await.status, 200);
        begun.elapsed()
    };
    read().await;
    shared.postgres.stop().expect("stopped");
    for _ in 0..10 {
        let took = read().await;
        assert!(took < Duration::from_millis(500), "what is in memory waits for nothing: {took:?}");
    }
    let begun = Instant::now();
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    assert!(begun.elapsed() < WITHOUT_LEDGER, "{:?}", begun.elapsed());
    edge.says("goes through without a row in the ledger").await;
    let ready = answer(edge.http.get(format!("{}/readyz", edge.stack.tollgate.admin_url()))).await;
    assert_eq!(ready.status, 503);
    assert_ne!(ready.json()["parts"]["ledger"], "ok", "{}", ready.body);
    assert_eq!(ready.json()["parts"]["listeners"], "ok", "{}", ready.body);
    // What alarms of an outage is about must be there during one; what is in the ledger nobody knows then.
    edge.metric("tollgate_ledger_readable", 0.0).await;
    edge.metric(SUBMISSIONS_FAILED, 1.0).await;
    let figures = answer(edge.http.get(format!("{}/metrics", edge.stack.tollgate.admin_url()))).await;
    let figures = Exposed::parse(&figures.body);
    for (name, family) in families().into_iter().filter(|(_, family)| family.of_billing || family.of_replicas) {
        assert_eq!(figures.kinds.contains_key(&name), !family.in_ledger, "{name}");
    }

    let stream = stream_on(channel(edge).await);
    let sent = send_until_held_up(&stream).await;

    shared.postgres.start().expect("started");
    let all = f64::from(u32::try_from(sent).expect("small"));
    let taken = async || edge.stack.tollgate.metric("tollgate_log_entries_total").await.filter(|taken| *taken >= all);
    wait_for("all of them to be taken", SOON * 2, taken).await.expect("taken");
    edge.metric("tollgate_intake_queued_events", 0.0).await;
    edge.metric("tollgate_ledger_readable", 1.0).await;
    edge.metric("tollgate_charges_pending", 0.0).await;
    edge.metric(SUBMISSIONS_FAILED, 1.0).await;
    edge.metric("tollgate_ledger_errors_total{kind=\"open_submission\"}", 1.0).await;
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    let entries = edge.entries(1).await;
    assert_eq!((entries[0].task_id.as_str(), entries[0].user_sub.as_str()), (tasks[0].as_str(), ALICE.sub));
    wait_for("a ready Tollgate", SOON, async || edge.stack.tollgate.is_ready().await.then_some(()))
        .await
        .expect("ready");
    edge.assert_billed_as_truth(&edge.stack.flowmesh.truth());
    shared.edge.finish_unbilled().await;
}

#[tokio::test]
async fn the_log_entry_of_a_submission_may_reach_another_replica_and_before_the_row() {
    let Some(shared) = Shared::start().await else { return };
    let other = shared.another("other").await;
    let flowmesh = &shared.edge.stack.flowmesh;

    // Its row does not come in time, and whoever has it in memory hangs.
    let locked = shared.lock().await;
    let mut asked = Direct::connect_to(shared.socket("other")).await;
    let checked = check_submission(&mut asked, ALICE.token).await;
    shared.metric(&other, SUBMISSIONS_FAILED, 1.0).await;
    other.process().freeze().expect("frozen");
    locked.close().await.expect("ended");
    let unlocked = Instant::now();
    let (workflow, tasks) = flowmesh.submit(1);
    stream_on(channel(&shared.edge).await).send(message(vec![submitted(&checked, &workflow)])).await.expect("sent");
    flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    // The one that hangs gets the lock that it waited for, and keeps it for two seconds, on one connection after the other.
    shared.edge.says("is user-alice's").await;
    assert!(unlocked.elapsed() < Duration::from_secs(9), "{:?}", unlocked.elapsed());
    // Her address is in its memory.
    shared.edge.metric("tollgate_charges_held", 1.0).await;
    other.process().thaw().expect("thawed");
    let entries = shared.edge.entries(1).await;
    assert_eq!((entries[0].task_id.as_str(), entries[0].user_sub.as_str()), (tasks[0].as_str(), ALICE.sub));
    // The row that comes late is of a submission that is known to be over.
    shared.metric(&other, "tollgate_intake_queued_events", 0.0).await;
    shared.metric(&other, "tollgate_open_submissions", 0.0).await;
    shared.edge.finish().await;
}

#[tokio::test]
async fn the_log_entry_of_a_submission_may_reach_another_replica_long_after_its_workflow_was_seen() {
    let Some(shared) = Shared::start().await else { return };
    let _other = shared.another("other").await;
    let mut asked = Direct::connect_to(shared.socket("other")).await;
    let checked = check_submission(&mut asked, ALICE.token).await;
    let (workflow, tasks) = shared.edge.stack.flowmesh.submit(1);
    shared.edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    // Seen by a client, and matched: hers was the only submission.
    let seen =
        answer(shared.edge.get(&format!("/api/v1/workflows/{workflow}?view=status")).bearer_auth(ALICE.token)).await;
    assert_eq!(seen.status, 200);
    shared.edge.entries(1).await;
    stream_on(channel(&shared.edge).await).send(message(vec![submitted(&checked, &workflow)])).await.expect("sent");
    shared.edge.metric("tollgate_log_entries_total{kind=\"submitted\"}", 1.0).await;
    shared.edge.metric("tollgate_open_submissions", 0.0).await;
    assert_eq!(shared.edge.entries(1).await[0].user_sub, ALICE.sub);
    shared.edge.finish().await;
}

#[tokio::test]
async fn what_is_to_be_forgotten_is_forgotten_by_every_replica_within_a_second() {
    let Some(shared) = Shared::start().await else { return };
    let edge = &shared.edge;
    let other = shared.another("other").await;
    shared.metric(&other, "tollgate_replicas", 2.0).await;
    let mut asked = Direct::connect_to(shared.socket("other")).await;
    let alice = direct::read_from("192.0.2.1", ALICE.token);
    assert_eq!(status(&asked.check(alice.clone()).await), 200);
    edge.stack.lum_id.revoke(ALICE.token);
    assert_eq!(status(&asked.check(alice.clone()).await), 200, "remembered");
    let purge = edge.http.post(format!("{}/cache/purge", edge.stack.tollgate.admin_url())).json(&json!({"all": true}));
    assert_eq!(answer(purge).await.status, 200);
    let refused = wait_for("a refusal", Duration::from_millis(1500), async || {
        let mut asked = asked.clone();
        (status(&asked.check(alice.clone()).await) == 401).then_some(())
    });
    refused.await.expect("forgotten");

    // One of which nobody was notified.
    let acme = direct::read_from("192.0.2.1", ACME.token);
    assert_eq!(status(&asked.check(acme.clone()).await), 200);
    edge.stack.lum_id.revoke(ACME.token);
    sqlx::query("INSERT INTO purges (what) VALUES ('{\"all\": true}')")
        .execute(&mut shared.ledger().await)
        .await
        .expect("inserted");
    let refused = wait_for("a refusal", Duration::from_millis(2500), async || {
        let mut asked = asked.clone();
        (status(&asked.check(acme.clone()).await) == 401).then_some(())
    });
    refused.await.expect("forgotten");
    drop(other);
    shared.edge.finish().await;
}

#[tokio::test]
async fn one_replica_at_a_time_is_on_duty_and_another_one_follows_when_it_stops_or_is_killed() {
    let Some(shared) = Shared::start().await else { return };
    let (mut second, mut third) = (shared.another("second").await, shared.another("third").await);
    let first = &shared.edge.stack.tollgate;
    assert_eq!(on_duty(&[first, &second, &third], SOON).await, 0, "it was there before the others");
    assert!(first.terminate().await.expect("stopped").success());
    // Whoever looks next has it: they look every second.
    let next = on_duty(&[&second, &third], Duration::from_secs(4)).await;
    let (holder, rest) = if next == 0 { (&mut second, &third) } else { (&mut third, &second) };
    holder.kill_hard().await.expect("killed");
    let killed = Instant::now();
    on_duty(&[rest], SOON).await;
    assert!(killed.elapsed() > Duration::from_secs(9), "nobody takes it from who may be there: {:?}", killed.elapsed());
    holder.restart().await.expect("restarted");
    for tollgate in [&second, &third] {
        assert!(tollgate.terminate().await.expect("stopped").success());
    }
    let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM replicas")
        .fetch_one(&mut shared.ledger().await)
        .await
        .expect("counted");
    assert_eq!(left, 0, "who stops in order says so");
    shared.edge.finish_unbilled().await;
}

#[tokio::test]
async fn what_a_killed_replica_was_posting_another_one_posts_and_it_is_billed_once() {
    let Some(shared) = Shared::start().await else { return };
    let edge = &shared.edge;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let effect = Fault::AfterEffect(Box::new(Fault::Hang));
    edge.stack.runmesh.fail_entries_with(effect);
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    let other = shared.another("other").await;
    edge.stack.tollgate.kill_hard().await.expect("killed");
    edge.stack.runmesh.heal();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(edge.stack.runmesh.posts().len(), 1, "it may be posting still");
    // As if the minute of its lease had passed.
    sqlx::query("UPDATE charges SET leased_until = leased_until - 60000")
        .execute(&mut shared.ledger().await)
        .await
        .expect("updated");
    shared.metric(&other, "tollgate_charges_pending", 0.0).await;
    shared.metric(&other, "tollgate_posts_total{outcome=\"posted\"}", 1.0).await;
    assert_eq!(edge.stack.runmesh.posts().len(), 2, "posted again, because nobody knew");
    edge.assert_billed_as_truth(&edge.stack.flowmesh.truth());
    shared.edge.finish_unbilled().await;
}

#[tokio::test]
async fn a_replica_that_starts_while_the_database_is_away_answers_checks_and_is_ready_when_it_is_back() {
    let Some(shared) = Shared::start().await else { return };
    shared.postgres.crash().expect("crashed");
    let settings = shared.settings("other");
    let socket = shared.socket("other");
    let meanwhile = async {
        let listening = async || tokio::net::UnixStream::connect(&socket).await.ok();
        wait_for("its socket", SOON, listening).await.expect("listens");
        let mut asked = Direct::connect_to(socket.clone()).await;
        assert_eq!(status(&asked.check(direct::read_from("192.0.2.1", ALICE.token)).await), 200);
        check_submission(&mut asked, ALICE.token).await;
        let back = Instant::now();
        shared.postgres.start().expect("started");
        back
    };
    let starting = async {
        let other = Tollgate::start(binary(), &settings, None).await.expect("ready");
        (other, Instant::now())
    };
    let ((other, ready), back) = tokio::join!(starting, meanwhile);
    assert!(ready > back, "without its ledger it is not ready");
    // The row that it had in memory.
    shared.metric(&other, "tollgate_open_submissions", 1.0).await;
    shared.edge.finish().await;
}

#[tokio::test]
async fn a_database_that_hangs_keeps_neither_a_check_nor_a_page_waiting() {
    let Some(shared) = Shared::start().await else { return };
    let edge = &shared.edge;
    let (_, before) = edge.submit(ALICE.token, 1).await;
    let frozen = shared.postgres.freeze().expect("frozen");
    for (path, status, said) in
        [("/readyz", 503, "does not answer within 3s"), ("/metrics", 200, "\ntollgate_ledger_readable 0\n")]
    {
        let begun = Instant::now();
        let page = answer(edge.http.get(format!("{}{path}", edge.stack.tollgate.admin_url()))).await;
        assert_eq!(page.status, status, "{}", page.body);
        assert!(page.body.contains(said), "{}", page.body);
        // What a statement may take by itself is twice as long.
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    }
    let begun = Instant::now();
    let (_, meanwhile) = edge.submit(ALICE.token, 1).await;
    assert!(begun.elapsed() < WITHOUT_LEDGER, "{:?}", begun.elapsed());
    assert_eq!(answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)).await.status, 200);
    drop(frozen);
    edge.metric("tollgate_ledger_readable", 1.0).await;
    for task in before.iter().chain(&meanwhile) {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    }
    edge.entries(2).await;
    wait_for("a ready Tollgate", SOON, async || edge.stack.tollgate.is_ready().await.then_some(()))
        .await
        .expect("ready");
    shared.edge.finish().await;
}

#[tokio::test]
async fn a_database_that_is_slow_keeps_no_check_waiting_for_more_than_a_second_or_so() {
    let Some(shared) = Shared::start().await else { return };
    let edge = &shared.edge;
    edge.submit(ALICE.token, 1).await;
    let locked = shared.lock().await;
    for _ in 0..5 {
        let begun = Instant::now();
        edge.submit(ALICE.token, 1).await;
        assert!(begun.elapsed() < WITHOUT_LEDGER, "{:?}", begun.elapsed());
        let begun = Instant::now();
        assert_eq!(answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)).await.status, 200);
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    }
    edge.metric(SUBMISSIONS_FAILED, 5.0).await;
    locked.close().await.expect("ended");
    edge.metric("tollgate_intake_queued_events", 0.0).await;
    edge.metric("tollgate_open_submissions", 0.0).await;
    for task in edge.stack.flowmesh.tasks() {
        edge.stack.flowmesh.complete(&task.task_id, Outcome::done(10.0, 1.5));
        edge.post_result(ACME.token, &task.task_id).await;
    }
    edge.entries(6).await;
    shared.edge.finish().await;
}
