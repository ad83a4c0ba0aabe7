//! From a task's end to its entry at Runmesh.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tollgate_local::stack::{ACME, ALICE, BOB, wait_for};
use tollgate_local::standin::{Fault, Outcome, Status};

use crate::harness::{Edge, SOON, answer};

#[tokio::test]
async fn a_finished_task_becomes_exactly_one_entry_with_the_agreed_fields() {
    let edge = Edge::start().await;
    let (workflow, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    let entries = edge.entries(1).await;
    let truth = edge.stack.flowmesh.truth();
    let raw = &entries[0].raw;
    let keys: Vec<&str> = raw.as_object().expect("an object").keys().map(String::as_str).collect();
    let agreed = ["cost", "costPerHour", "durationSec", "taskId", "taskStatus", "userEmail", "userSub", "workflowId"];
    assert_eq!(keys, agreed);
    assert_eq!(raw["userEmail"], ALICE.email);
    assert_eq!(raw["userSub"], ALICE.sub);
    assert_eq!(raw["taskId"], tasks[0]);
    assert_eq!(raw["workflowId"], workflow);
    assert_eq!(raw["taskStatus"], "DONE");
    assert_eq!(raw["cost"], truth[0].total_cost);
    assert_eq!(edge.stack.runmesh.posts().len(), 1);
    edge.finish().await;
}

#[tokio::test]
async fn a_task_of_which_only_a_poll_tells_is_billed_whatever_its_end() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 3).await;
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(72.5, 1.5));
    edge.stack.flowmesh.complete(&tasks[1], Outcome::failed(10.0, 2.4));
    edge.stack.flowmesh.complete(&tasks[2], Outcome::after(Status::Cancelled, 3.0, 0.1));
    for task in &tasks {
        answer(edge.get(&format!("/api/v1/tasks/{task}?view=status")).bearer_auth(ALICE.token)).await;
    }
    edge.entries(3).await;
    edge.finish().await;
}

#[tokio::test]
async fn an_older_flowmesh_without_status_views_is_billed_as_well() {
    let edge = Edge::start().await;
    edge.stack.flowmesh.options(|options| options.understands_view_status = false);
    let (workflow, tasks) = edge.submit(ALICE.token, 2).await;
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(1.0, 1.5));
    answer(edge.get(&format!("/api/v1/tasks/{}", tasks[0])).bearer_auth(ALICE.token)).await;
    edge.entries(1).await;
    edge.stack.flowmesh.complete(&tasks[1], Outcome::done(2.0, 1.5));
    answer(edge.get(&format!("/api/v1/workflows/{workflow}")).bearer_auth(ALICE.token)).await;
    edge.entries(2).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_task_that_nobody_looks_at_is_billed_by_the_sweep() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(72.5, 1.5));
    edge.entries(1).await;
    edge.metric("tollgate_open_workflows", 0.0).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_result_comes_before_the_terminal_status_and_is_asked_after_until_then() {
    let edge = Edge::start().await;
    edge.stack.flowmesh.options(|options| options.terminal_delay = Duration::from_secs(2));
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_failed_workflow_whose_other_tasks_still_run_is_followed_to_the_end() {
    let edge = Edge::start().await;
    let (workflow, tasks) = edge.submit(ALICE.token, 2).await;
    edge.stack.flowmesh.complete(&tasks[0], Outcome::failed(1.0, 1.5));
    let read = edge.get(&format!("/api/v1/workflows/{workflow}?view=status")).bearer_auth(ALICE.token);
    assert_eq!(answer(read).await.json()["status"], "FAILED");
    edge.entries(1).await;
    edge.metric("tollgate_open_workflows", 1.0).await;
    edge.stack.flowmesh.complete(&tasks[1], Outcome::done(5.0, 1.5));
    edge.entries(2).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_merged_batch_is_billed_once() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 3).await;
    let all: Vec<&str> = tasks.iter().map(String::as_str).collect();
    edge.stack.flowmesh.complete_merged(&all, Outcome::done(60.0, 1.5));
    for task in &tasks {
        answer(edge.get(&format!("/api/v1/tasks/{task}?view=status")).bearer_auth(ALICE.token)).await;
    }
    edge.entries(1).await;
    edge.metric("tollgate_open_workflows", 0.0).await;
    edge.finish().await;
}

#[tokio::test]
async fn what_never_ran_costs_nothing() {
    let edge = Edge::start().await;
    edge.stack.flowmesh.options(|options| options.dispatch_delay = Duration::from_mins(10));
    let (workflow, _) = edge.submit(ALICE.token, 2).await;
    let cancel = edge.post(&format!("/api/v1/workflows/{workflow}/cancel")).bearer_auth(ALICE.token);
    assert_eq!(answer(cancel).await.status, 200);
    edge.metric("tollgate_open_workflows", 0.0).await;
    assert!(edge.stack.runmesh.posts().is_empty());
    edge.finish().await;
}

#[tokio::test]
async fn runmesh_out_of_order_delays_an_entry_and_never_doubles_it() {
    let edge = Edge::start().await;
    for fault in [
        Fault::status(500),
        Fault::Body(r#"{"code": 500, "msg": "no"}"#.to_owned()),
        Fault::status(401),
        Fault::retry_after(429, 1),
        Fault::lost_answer(),
        Fault::Close,
    ] {
        let billed = edge.stack.runmesh.entries().len();
        edge.stack.runmesh.fail_entries_with(fault.times(2));
        let (_, tasks) = edge.submit(ALICE.token, 1).await;
        edge.post_result(ACME.token, &tasks[0]).await;
        edge.entries(billed + 1).await;
        edge.quiet().await;
    }
    assert!(edge.stack.runmesh.posts().len() > edge.stack.runmesh.entries().len(), "answers were lost");
    edge.finish().await;
}

#[tokio::test]
async fn what_runmesh_refuses_for_good_is_kept_and_not_posted_again() {
    let edge = Edge::start().await;
    edge.stack.runmesh.fail_entries_with(Fault::status(422));
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.metric("tollgate_charges_rejected", 1.0).await;
    edge.stack.runmesh.heal();
    let (_, tasks) = edge.submit(BOB.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    assert_eq!(edge.entries(1).await[0].user_email, BOB.email);
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn flowmesh_out_of_reach_for_settling_delays_an_entry() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.stack.flowmesh.fail_on("GET /api/v1/tasks/", Fault::status(500).times(2));
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_charge_without_an_e_mail_waits_for_one() {
    let edge = Edge::start().await;
    edge.stack.lum_id.user("lm_pat_live_nomail", "user-nomail", None, &["*"]);
    let (_, tasks) = edge.submit("lm_pat_live_nomail", 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.metric("tollgate_charges_held", 1.0).await;
    edge.stack.lum_id.user("lm_pat_live_nomail2", "user-nomail", Some("now@example.com"), &["*"]);
    edge.submit("lm_pat_live_nomail2", 1).await;
    let entries = edge.entries(1).await;
    assert_eq!((entries[0].task_id.as_str(), entries[0].user_email.as_str()), (tasks[0].as_str(), "now@example.com"));
    edge.finish().await;
}

#[tokio::test]
async fn a_charge_without_an_e_mail_goes_out_when_its_owner_is_seen_with_one_anywhere() {
    let edge = Edge::start().await;
    edge.stack.lum_id.user("lm_pat_live_nomail", "user-nomail", None, &["*"]);
    let (_, tasks) = edge.submit("lm_pat_live_nomail", 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.metric("tollgate_charges_held", 1.0).await;
    edge.stack.lum_id.user("lm_pat_live_mail", "user-nomail", Some("now@example.com"), &["*"]);
    wait_for("a read to release it", SOON, async || {
        answer(edge.get("/api/v1/tasks").bearer_auth("lm_pat_live_mail")).await;
        (!edge.stack.runmesh.entries().is_empty()).then_some(())
    })
    .await
    .expect("released");
    assert_eq!(edge.stack.runmesh.entries()[0].user_email, "now@example.com");
    edge.finish().await;
}

/// Sends a submission and goes away as soon as FlowMesh has so many, before the answer.
async fn submit_and_leave(edge: &Edge, token: &str, workflows: usize) {
    let mut stream = edge.connect().await;
    let request = format!(
        "POST /api/v1/workflows HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: text/plain\r\n\
         content-length: 9\r\n\r\n- name: a"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    wait_for(format!("FlowMesh to have {workflows} workflows"), SOON, async || {
        (edge.stack.flowmesh.workflows().len() == workflows).then_some(())
    })
    .await
    .expect("submitted");
}

#[tokio::test]
async fn a_client_that_left_before_the_answer_is_billed_all_the_same() {
    let edge = Edge::start().await;
    edge.stack.flowmesh.options(|options| options.submit_delay = Duration::from_secs(2));
    submit_and_leave(&edge, ALICE.token, 1).await;
    let task = edge.stack.flowmesh.tasks().pop().expect("a task");
    edge.stack.flowmesh.complete(&task.task_id, Outcome::done(10.0, 1.5));
    assert_eq!(edge.entries(1).await[0].user_sub, ALICE.sub);
    edge.finish().await;
}

#[tokio::test]
async fn two_who_left_at_once_are_held_and_never_guessed() {
    let edge = Edge::start().await;
    edge.stack.flowmesh.options(|options| options.submit_delay = Duration::from_secs(2));
    tokio::join!(submit_and_leave(&edge, ALICE.token, 2), submit_and_leave(&edge, BOB.token, 2));
    for task in edge.stack.flowmesh.tasks() {
        edge.stack.flowmesh.complete(&task.task_id, Outcome::done(10.0, 1.5));
    }
    edge.metric("tollgate_charges_held", 2.0).await;
    edge.metric("tollgate_held_workflows", 2.0).await;
    assert!(edge.stack.runmesh.posts().is_empty());
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn a_workflow_from_before_the_ledger_or_from_behind_the_edge_is_never_billed_to_anybody() {
    let edge = Edge::start().await;
    let (old, old_tasks) = edge.stack.flowmesh.submit(1);
    edge.stack.flowmesh.backdate(&old, Timestamp::now() - SignedDuration::from_hours(1));
    let (_, foreign_tasks) = edge.stack.flowmesh.submit(1);
    for task in [&old_tasks[0], &foreign_tasks[0]] {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
        answer(edge.get(&format!("/api/v1/tasks/{task}?view=status")).bearer_auth(ALICE.token)).await;
    }
    edge.metric("tollgate_charges_held", 1.0).await;
    edge.quiet().await;
    assert!(edge.stack.runmesh.posts().is_empty());
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn a_submission_that_failed_in_flowmesh_is_not_guessed_to_be_the_workflow_that_comes_next() {
    let edge = Edge::start().await;
    edge.stack.flowmesh.fail_on("POST /api/v1/workflows", Fault::status(500).times(1));
    assert_eq!(answer(edge.submission(BOB.token, 1)).await.status, 500);
    let (_, tasks) = edge.stack.flowmesh.submit(1);
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    edge.metric("tollgate_charges_held", 1.0).await;
    assert!(edge.stack.runmesh.posts().is_empty());
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn one_entry_that_runmesh_chokes_on_holds_nobody_elses_back() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(BOB.token, 12).await;
    edge.stack.runmesh.fail_entries_with(Fault::Body(r#"{"code": 500, "msg": "no"}"#.to_owned()).times(12));
    for task in &tasks {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
        answer(edge.get(&format!("/api/v1/tasks/{task}?view=status")).bearer_auth(BOB.token)).await;
    }
    wait_for("every entry to have failed once", SOON, async || (edge.stack.runmesh.posts().len() >= 12).then_some(()))
        .await
        .expect("posted");
    edge.metric("tollgate_posting_paused", 0.0).await;
    edge.entries(12).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_submission_that_flowmesh_refused_leaves_nothing_open() {
    let edge = Edge::start().await;
    let empty = edge.post("/api/v1/workflows").bearer_auth(ALICE.token).header("content-type", "text/plain").body("");
    assert_eq!(answer(empty).await.status, 422);
    edge.metric("tollgate_log_entries_total", 1.0).await;
    edge.metric("tollgate_open_submissions", 0.0).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_cost_that_cannot_be_read_is_not_taken_for_nothing() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let usage = json!({"usages": [{"started_at": "2026-11-22T08:00:02Z", "finished_at": "2026-11-22T08:00:03Z",
        "runtime_sec": 1.0, "hardware": {}, "cost_per_hour": 1.5, "total_cost": null, "status": "DONE"}]});
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(1.0, 1.5));
    edge.stack.flowmesh.set_task_json(&tasks[0], usage);
    answer(edge.get(&format!("/api/v1/tasks/{}?view=status", tasks[0])).bearer_auth(ALICE.token)).await;
    edge.metric("tollgate_held_tasks", 1.0).await;
    edge.metric("tollgate_due_tasks", 1.0).await;
    edge.says("is held, what it costs cannot be read").await;
    assert!(edge.stack.runmesh.posts().is_empty());
    edge.finish_unbilled().await;
}

/// Headers in which an answer reports the usage of a task, as the stand-in knows it.
fn usage_of(task: &str, cost: &str) -> Vec<(&'static str, String)> {
    vec![
        ("x-flowmesh-task-id", task.to_owned()),
        ("x-flowmesh-task-status", "DONE".to_owned()),
        ("x-flowmesh-task-cost", cost.to_owned()),
        ("x-flowmesh-task-runtime-sec", "72.5".to_owned()),
        ("x-flowmesh-task-cost-per-hour", "1.5".to_owned()),
    ]
}

#[tokio::test]
async fn usage_in_an_answer_is_billed_without_asking_flowmesh_and_the_client_does_not_see_it() {
    let edge = Edge::start().await;
    let (workflow, tasks) = edge.submit(ALICE.token, 1).await;
    // The sweep must have told whose the task is.
    answer(edge.get(&format!("/api/v1/workflows/{workflow}")).bearer_auth(ALICE.token)).await;
    let (task, path) = (tasks[0].as_str(), format!("/api/v1/tasks/{}", tasks[0]));
    wait_for("the sweep", SOON, async || {
        let swept = edge.stack.tollgate.metric(r#"tollgate_sweeps_total{outcome="open"}"#).await;
        swept.filter(|count| *count > 0.0)
    })
    .await
    .expect("swept");
    // From now on FlowMesh tells Tollgate nothing by itself.
    edge.stack.flowmesh.fail_on(&format!("GET {path}"), Fault::status(500));
    let headers = usage_of(task, "0.030208333333333334");
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    edge.stack.flowmesh.answer_with_headers("GET /api/v1/results/", &headers);
    let read = answer(edge.get(&format!("/api/v1/results/{task}/logs")).bearer_auth(ALICE.token)).await;
    assert!(!read.headers.iter().any(|(name, _)| name.starts_with("x-flowmesh-task-")), "{read:?}");
    let entries = edge.entries(1).await;
    assert_eq!((entries[0].task_id.as_str(), entries[0].cost.as_str()), (task, "0.030208333333333334"));
    assert_eq!((entries[0].user_sub.as_str(), entries[0].duration_sec), (ALICE.sub, 72));
    // The same again, and FlowMesh's own word, change nothing.
    edge.stack.flowmesh.heal();
    answer(edge.get(&format!("/api/v1/results/{task}/logs")).bearer_auth(ALICE.token)).await;
    edge.stack.flowmesh.complete(task, Outcome::done(72.5, 1.5));
    answer(edge.get(&format!("{path}?view=status")).bearer_auth(ALICE.token)).await;
    edge.quiet().await;
    assert_eq!(edge.stack.runmesh.posts().len(), 1);
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn usage_that_a_served_task_makes_up_is_nobodys_bill() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let headers = usage_of(&tasks[0], "9999");
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    edge.stack.flowmesh.answer_with_headers("GET /api/v1/serve/", &headers);
    let served = answer(edge.get(&format!("/api/v1/serve/tasks/{}/v1/models", tasks[0]))).await;
    assert_eq!(served.status, 200);
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(1.0, 1.5));
    answer(edge.get(&format!("/api/v1/tasks/{}?view=status", tasks[0])).bearer_auth(ALICE.token)).await;
    edge.entries(1).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_wrong_secret_pauses_posting_with_an_alarm_and_a_right_one_ends_the_pause() {
    let edge = Edge::start().await;
    edge.stack.runmesh.fail_entries_with(Fault::status(401));
    let (_, tasks) = edge.submit(ALICE.token, 3).await;
    for task in &tasks {
        edge.post_result(ACME.token, task).await;
    }
    edge.metric("tollgate_posting_paused", 1.0).await;
    edge.says("ALARM").await;
    edge.metric("tollgate_charges_rejected", 0.0).await;
    edge.stack.runmesh.heal();
    edge.entries(3).await;
    edge.metric("tollgate_posting_paused", 0.0).await;
    edge.finish().await;
}
