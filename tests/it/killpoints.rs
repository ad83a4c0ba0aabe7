//! Kill -9 exactly between two moves, from Check to the record of a post: each test stops the world at one point by a fault
//! on the other side, sees that it is there, kills, and heals. What was run is billed once, to the right person.

use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::task::JoinHandle;
use tollgate_local::stack::{ACME, ALICE, Relay, wait_for};
use tollgate_local::standin::{Fault, FlowMeshHappened, Outcome, same_amount};

use crate::harness::{Answer, Edge, SOON, answer};

/// Long enough for whatever is done while FlowMesh or Runmesh takes its time.
const SLOW: Duration = Duration::from_secs(2);

/// Submits one task in the background.
fn submitting(edge: &Edge) -> JoinHandle<Answer> {
    tokio::spawn(answer(edge.submission(ALICE.token, 1)))
}

/// The 201, and what it says about the task.
async fn task_of(submitting: JoinHandle<Answer>) -> String {
    let answer = submitting.await.expect("answered");
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.json()["tasks"][0]["task_id"].as_str().expect("a task").to_owned()
}

async fn kill(edge: &Edge) {
    edge.stack.tollgate.kill_hard().await.expect("killed");
}

async fn restart(edge: &mut Edge) {
    edge.stack.tollgate.restart().await.expect("restarted");
    edge.stack.envoy.wait_for_tollgate(SOON).await.expect("healthy again");
}

/// Ends the only task and waits for its entry.
async fn billed_to_alice(edge: Edge, task: &str) {
    edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    let entries = edge.entries(1).await;
    assert_eq!((entries[0].task_id.as_str(), entries[0].user_sub.as_str()), (task, ALICE.sub));
    assert!(same_amount(&entries[0].cost, &edge.stack.flowmesh.truth()[0].total_cost));
    edge.finish().await;
}

async fn flowmesh_saw(edge: &Edge, method: &str, path: &str) {
    wait_for(format!("FlowMesh to see {method} {path}"), SOON, async || {
        let requests = edge.stack.flowmesh.requests();
        requests.iter().any(|seen| seen.method == method && seen.path_and_query.starts_with(path)).then_some(())
    })
    .await
    .expect("seen");
}

async fn has_a_workflow(edge: &Edge) {
    wait_for("a workflow", SOON, async || (!edge.stack.flowmesh.workflows().is_empty()).then_some(()))
        .await
        .expect("made");
}

/// Keeps Tollgate from writing until it is dropped; it reads on.
struct Locked(#[expect(dead_code, reason = "its end is the end of the lock")] SqliteConnection);

impl Locked {
    async fn ledger_of(edge: &Edge) -> Self {
        let path = edge.dir.path().join("ledger.db");
        let mut ledger = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.expect("opened");
        sqlx::query("BEGIN IMMEDIATE").execute(&mut ledger).await.expect("locked");
        Self(ledger)
    }
}

#[tokio::test]
async fn killed_in_the_middle_of_a_check_before_its_row_is_written() {
    let mut edge = Edge::start().await;
    edge.stack.runmesh.fail_checks_with(Fault::Hang);
    let submitting = submitting(&edge);
    wait_for("the preflight", SOON, async || (!edge.stack.runmesh.checks().is_empty()).then_some(()))
        .await
        .expect("asked");
    kill(&edge).await;
    edge.stack.runmesh.heal();
    restart(&mut edge).await;
    // Envoy asks again.
    let task = task_of(submitting).await;
    billed_to_alice(edge, &task).await;
}

#[tokio::test]
async fn killed_between_the_row_of_a_submission_and_its_ok() {
    let mut edge = Edge::start().await;
    let dir = edge.dir.path().canonicalize().expect("a path");
    let (relay, _) =
        Relay::start(&dir.join("relay.sock"), edge.stack.tollgate.grpc(), fastrand::Rng::new()).expect("listens");
    edge.change_bootstrap(&[("grpc.sock", "relay.sock")]).await;
    let answered = relay.withhold("/envoy.service.auth.v3.Authorization/Check");
    let submitting = submitting(&edge);
    tokio::time::timeout(SOON, answered.notified()).await.expect("Check has answered");
    edge.metric("tollgate_open_submissions", 1.0).await;
    assert!(edge.stack.flowmesh.workflows().is_empty());
    kill(&edge).await;
    relay.release();
    restart(&mut edge).await;
    let task = task_of(submitting).await;
    edge.metric("tollgate_submissions_total{outcome=\"repeated\"}", 1.0).await;
    edge.metric("tollgate_open_submissions", 0.0).await;
    billed_to_alice(edge, &task).await;
}

#[tokio::test]
async fn killed_between_an_ok_and_the_work_of_flowmesh() {
    let mut edge = Edge::start().await;
    edge.stack.flowmesh.fail_on("POST /api/v1/workflows", Fault::Slow(SLOW));
    let submitting = submitting(&edge);
    flowmesh_saw(&edge, "POST", "/api/v1/workflows").await;
    kill(&edge).await;
    // Its log entry finds nobody.
    let task = task_of(submitting).await;
    restart(&mut edge).await;
    billed_to_alice(edge, &task).await;
}

#[tokio::test]
async fn killed_between_the_work_of_flowmesh_and_its_201() {
    let mut edge = Edge::start().await;
    edge.stack.flowmesh.options(|options| options.submit_delay = SLOW);
    let submitting = submitting(&edge);
    has_a_workflow(&edge).await;
    kill(&edge).await;
    restart(&mut edge).await;
    let task = task_of(submitting).await;
    billed_to_alice(edge, &task).await;
}

#[tokio::test]
async fn killed_between_a_log_entry_and_its_commit() {
    let mut edge = Edge::start().await;
    edge.stack.flowmesh.options(|options| options.submit_delay = SLOW);
    let submitting = submitting(&edge);
    has_a_workflow(&edge).await;
    let locked = Locked::ledger_of(&edge).await;
    let task = task_of(submitting).await;
    edge.metric("tollgate_log_entries_total{kind=\"submitted\"}", 1.0).await;
    kill(&edge).await;
    drop(locked);
    restart(&mut edge).await;
    edge.metric("tollgate_open_submissions", 0.0).await;
    billed_to_alice(edge, &task).await;
}

#[tokio::test]
async fn killed_between_the_end_of_a_task_and_the_answer_what_it_cost() {
    let mut edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let path = format!("/api/v1/tasks/{}", tasks[0]);
    edge.stack.flowmesh.fail_on(&format!("GET {path}"), Fault::Hang);
    edge.post_result(ACME.token, &tasks[0]).await;
    flowmesh_saw(&edge, "GET", &path).await;
    kill(&edge).await;
    edge.stack.flowmesh.heal();
    restart(&mut edge).await;
    billed_to_alice(edge, &tasks[0]).await;
}

#[tokio::test]
async fn killed_between_the_answer_what_a_task_cost_and_its_charge() {
    let mut edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    let path = format!("/api/v1/tasks/{}", tasks[0]);
    edge.stack.flowmesh.fail_on(&format!("GET {path}"), Fault::Slow(SLOW));
    let mut answers = edge.stack.flowmesh.subscribe();
    flowmesh_saw(&edge, "GET", &path).await;
    let locked = Locked::ledger_of(&edge).await;
    let answered = async {
        while let Some(happened) = answers.recv().await {
            let FlowMeshHappened::Answered { seen, .. } = happened else { continue };
            if seen.path_and_query == path {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, answered).await.expect("answered");
    edge.metric("tollgate_charges_pending", 0.0).await;
    kill(&edge).await;
    drop(locked);
    edge.stack.flowmesh.heal();
    assert!(edge.stack.runmesh.posts().is_empty());
    restart(&mut edge).await;
    billed_to_alice(edge, &tasks[0]).await;
}

#[tokio::test]
async fn killed_between_a_charge_and_its_post() {
    let mut edge = Edge::start().await;
    edge.stack.runmesh.fail_entries_with(Fault::Hang);
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    wait_for("a post", SOON, async || (!edge.stack.runmesh.posts().is_empty()).then_some(())).await.expect("posted");
    assert!(edge.stack.runmesh.entries().is_empty());
    kill(&edge).await;
    edge.stack.runmesh.heal();
    restart(&mut edge).await;
    billed_to_alice(edge, &tasks[0]).await;
}

#[tokio::test]
async fn killed_between_the_word_of_runmesh_and_its_record() {
    let mut edge = Edge::start().await;
    edge.stack.runmesh.fail_entries_with(Fault::AfterEffect(Box::new(Fault::Slow(SLOW))));
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    let locked = Locked::ledger_of(&edge).await;
    edge.metric("tollgate_posts_total{outcome=\"posted\"}", 1.0).await;
    edge.metric("tollgate_charges_pending", 1.0).await;
    kill(&edge).await;
    drop(locked);
    edge.stack.runmesh.heal();
    restart(&mut edge).await;
    wait_for("the second post", SOON, async || (edge.stack.runmesh.posts().len() == 2).then_some(()))
        .await
        .expect("posted again");
    billed_to_alice(edge, &tasks[0]).await;
}

#[tokio::test]
async fn an_envoy_killed_between_the_work_of_flowmesh_and_its_201() {
    let mut edge = Edge::start().await;
    edge.stack.flowmesh.options(|options| options.submit_delay = SLOW);
    let request = edge.submission(ALICE.token, 1);
    let submitting = tokio::spawn(request.send());
    has_a_workflow(&edge).await;
    edge.stack.envoy.kill_hard().await.expect("killed");
    assert!(submitting.await.expect("joined").is_err(), "nobody answers");
    edge.stack.envoy.restart().await.expect("restarted");
    let task = edge.stack.flowmesh.tasks().remove(0).task_id;
    billed_to_alice(edge, &task).await;
}
