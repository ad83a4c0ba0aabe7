use std::time::Duration;

use serde_json::json;

use super::{
    super::{
        same_amount,
        testing::{client, eventually},
    },
    *,
};

const QUICK: Duration = Duration::from_millis(50);

pub(super) async fn start() -> FlowMesh {
    let flowmesh = FlowMesh::start("127.0.0.1:0").await.unwrap();
    flowmesh.options(|options| options.terminal_delay = QUICK);
    flowmesh.add_worker("wrk-1", "gpu-a", "acme", 3600.0);
    flowmesh
}

async fn get(flowmesh: &FlowMesh, path: &str) -> (u16, Value) {
    let url = format!("{}{path}", flowmesh.url());
    let response = client().get(url).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn post(flowmesh: &FlowMesh, path: &str, body: Value) -> (u16, Value) {
    let url = format!("{}{path}", flowmesh.url());
    let response = client().post(url).json(&body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

pub(super) fn one(flowmesh: &FlowMesh) -> (String, String) {
    let (workflow, mut tasks) = flowmesh.submit(1);
    (workflow, tasks.remove(0))
}

#[tokio::test]
async fn a_submission_has_as_many_tasks_as_its_body_names() {
    let flowmesh = start().await;
    let body = json!({"tasks": [{"name": "a"}, {"name": "b"}]});
    let (status, answer) = post(&flowmesh, "/api/v1/workflows", body).await;
    assert_eq!((status, &answer["count"]), (201, &json!(2)));
    assert_eq!(answer["ok"], true);
    assert_eq!(answer["tasks"][1]["status"], "PENDING");
    let workflow = &flowmesh.workflows()[0];
    assert_eq!(answer["workflow_id"], workflow.workflow_id.as_str());
    assert_eq!(workflow.workflow_id.len(), "wfl-".len() + 12);
    assert_eq!(workflow.status, Status::Dispatched);
    assert_eq!(answer["tasks"][0]["task_id"], workflow.task_ids[0].as_str());

    let url = format!("{}/api/v1/workflows", flowmesh.url());
    for (yaml, count) in [("spec:\n  - name: a\n  - name: b\n", 2), ("x: 1", 1)] {
        let request = client().post(&url).header("Workflow-Format", "native");
        let answer: Value = request.body(yaml).send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["count"], count);
    }
    for (format, body, status) in [("native", "", 422), ("cwl", "x", 400)] {
        let request = client().post(&url).header("Workflow-Format", format);
        let response = request.body(body).send().await.unwrap();
        assert_eq!(response.status(), status);
        let answer: Value = response.json().await.unwrap();
        assert!(answer["detail"].is_string());
    }
    let (status, _) = post(&flowmesh, "/api/v1/workflows/validate", json!({})).await;
    assert_eq!((status, flowmesh.workflows().len()), (200, 3));
}

#[tokio::test]
async fn a_submission_exists_before_it_is_answered() {
    let flowmesh = start().await;
    flowmesh.options(|options| options.submit_delay = Duration::from_mins(1));
    let url = format!("{}/api/v1/workflows", flowmesh.url());
    let aborted = tokio::spawn(client().post(url).body("x: 1").send());
    eventually("the workflow exists", async || flowmesh.workflows().len() == 1).await;
    assert!(!aborted.is_finished());
    aborted.abort();
}

#[tokio::test]
async fn view_status_leaves_out_usages_and_counts_instead_of_listing() {
    let flowmesh = start().await;
    let (workflow, task) = one(&flowmesh);
    flowmesh.complete(&task, Outcome::done(72.5, 1.5));
    let (task_path, workflow_path) = (format!("/api/v1/tasks/{task}"), format!("/api/v1/workflows/{workflow}"));

    let (_, full) = get(&flowmesh, &task_path).await;
    // Read as text: a float may lose its last digit on the way through a JSON parser.
    let text = client().get(format!("{}{task_path}", flowmesh.url())).send().await.unwrap();
    let text = text.text().await.unwrap();
    assert!(text.contains("\"total_cost\":0.030208333333333334"), "{text}");
    assert_eq!(flowmesh.truth()[0].total_cost, "0.030208333333333334");
    assert_eq!(full["usages"][0]["runtime_sec"], 72.5);
    assert_eq!(full["usages"][0]["status"], "DONE");
    assert!(full["finished_ts"].is_f64() && full["submitted_ts"].is_f64());
    let (_, brief) = get(&flowmesh, &format!("{task_path}?view=status")).await;
    assert_eq!((brief.get("usages"), &brief["status"]), (None, &json!("DONE")));

    let (_, full) = get(&flowmesh, &workflow_path).await;
    assert_eq!(full["task_ids"], json!([task]));
    assert_eq!(full["completed_tasks"], json!([task]));
    let (_, brief) = get(&flowmesh, &format!("{workflow_path}?view=status")).await;
    assert_eq!(brief["completed_tasks"], 1);
    assert_eq!((&brief["failed_tasks"], &brief["status"]), (&json!(0), &json!("DONE")));

    flowmesh.options(|options| options.understands_view_status = false);
    let (_, older) = get(&flowmesh, &format!("{task_path}?view=status")).await;
    assert!(older["usages"].is_array());
    let (_, older) = get(&flowmesh, &format!("{workflow_path}?view=status")).await;
    assert_eq!(older["completed_tasks"], json!([task]));
}

#[tokio::test]
async fn a_workflow_is_failed_while_its_other_tasks_still_run() {
    let flowmesh = start().await;
    let (workflow, tasks) = flowmesh.submit(3);
    flowmesh.complete(&tasks[1], Outcome::failed(1.0, 2.0));
    let (_, info) = get(&flowmesh, &format!("/api/v1/workflows/{workflow}")).await;
    assert_eq!(info["status"], "FAILED");
    assert_eq!(info["failed_tasks"], json!([tasks[1]]));
    assert_eq!(info["dispatched_tasks"], json!([tasks[0], tasks[2]]));
    assert_eq!(flowmesh.task(&tasks[0]).unwrap().status, Status::Dispatched);
}

#[tokio::test]
async fn a_result_is_answered_at_once_and_the_terminal_status_follows_later() {
    let flowmesh = start().await;
    // Long enough for a busy machine to look in between.
    flowmesh.options(|options| options.terminal_delay = Duration::from_secs(2));
    let (_, tasks) = flowmesh.submit(2);
    for (task, result) in [(&tasks[0], json!({"x": 1})), (&tasks[1], json!({"error": "oom"}))] {
        let body = json!({"task_id": task, "worker_id": "wrk-1", "metadata": {},
            "received_at": "2026-11-22T08:00:00Z", "result": result});
        let (status, answer) = post(&flowmesh, "/api/v1/results", body).await;
        assert_eq!((status, &answer["ok"]), (200, &json!(true)));
        assert!(answer["path"].is_string());
    }
    let (_, info) = get(&flowmesh, &format!("/api/v1/tasks/{}", tasks[0])).await;
    assert_eq!((&info["status"], &info["usages"]), (&json!("DISPATCHED"), &json!([])));
    assert!(flowmesh.truth().is_empty());

    eventually("both end", async || flowmesh.tasks().iter().all(|task| task.status.is_terminal())).await;
    let (done, failed) = (&flowmesh.tasks()[0], &flowmesh.tasks()[1]);
    assert_eq!((done.status, failed.status), (Status::Done, Status::Failed));
    let usage = &done.usages[0];
    assert!((usage.cost_per_hour - 3600.0).abs() < f64::EPSILON);
    // At 3600 an hour, a second costs one.
    assert!((usage.total_cost.as_f64().unwrap() - usage.runtime_sec).abs() < 1e-9);
    assert_eq!(failed.usages[0].status, Status::Failed);
    assert_eq!(flowmesh.truth().len(), 2);

    let (status, _) = post(&flowmesh, "/api/v1/results", json!({"task_id": "tsk-x"})).await;
    assert_eq!(status, 404);
    let (_, result) = get(&flowmesh, &format!("/api/v1/results/{}", tasks[0])).await;
    assert_eq!(result["result"], json!({"x": 1}));
}

#[tokio::test]
async fn a_merged_batch_shows_one_execution_in_every_task_and_counts_once() {
    let flowmesh = start().await;
    let (_, first) = flowmesh.submit(2);
    let (_, second) = flowmesh.submit(2);
    let batch = [first[0].as_str(), first[1].as_str(), second[0].as_str()];
    assert_eq!(flowmesh.complete_merged(&batch, Outcome::done(10.0, 0.7)), 3);
    flowmesh.complete(&second[1], Outcome::done(10.0, 0.7));

    let (_, parent) = get(&flowmesh, &format!("/api/v1/tasks/{}", batch[0])).await;
    for task in &batch[1..] {
        let (_, child) = get(&flowmesh, &format!("/api/v1/tasks/{task}")).await;
        assert_eq!(child["usages"], parent["usages"]);
        assert_eq!(child["assigned_worker"], parent["assigned_worker"]);
        for link in ["parent_task_id", "merged_parent_id", "merged_children"] {
            assert!(child[link].is_null());
        }
    }
    let truth = flowmesh.truth();
    let tasks: Vec<_> = truth.iter().map(|entry| entry.task_ids.len()).collect();
    assert_eq!(tasks, [3, 1], "the other run of the same length is an execution of its own");
    assert!(same_amount(&truth[0].total_cost, "0.0019444444444444444"));
}

#[tokio::test]
async fn what_never_ran_has_no_usage_and_what_ran_until_cancelled_has_one() {
    let flowmesh = start().await;
    let (running, running_task) = one(&flowmesh);
    flowmesh.options(|options| options.dispatch_delay = Duration::from_mins(1));
    let (waiting, waiting_task) = one(&flowmesh);
    let cancel = |id: &str| format!("/api/v1/workflows/{id}/cancel");
    let (_, answer) = post(&flowmesh, &cancel(&waiting), Value::Null).await;
    assert_eq!(answer["status"], "CANCELLED");
    let (status, answer) = post(&flowmesh, &cancel(&running), Value::Null).await;
    assert_eq!((status, &answer["status"]), (200, &json!("DISPATCHED")));
    assert_eq!(flowmesh.task(&running_task).unwrap().status, Status::Cancelling);
    eventually("the running task is cancelled", async || {
        flowmesh.task(&running_task).unwrap().status == Status::Cancelled
    })
    .await;
    assert!(flowmesh.task(&waiting_task).unwrap().usages.is_empty());
    assert_eq!(flowmesh.truth().len(), 1);
    assert_eq!(flowmesh.truth()[0].status, "CANCELLED");

    let (_, failed) = one(&flowmesh);
    flowmesh.complete(&failed, Outcome::without_usage(Status::Failed));
    assert!(!flowmesh.complete(&failed, Outcome::done(1.0, 1.0)));
    assert_eq!(flowmesh.truth().len(), 1);
}

#[tokio::test]
async fn tasks_wait_for_a_worker_and_go_to_the_idle_one() {
    let flowmesh = FlowMesh::start("127.0.0.1:0").await.unwrap();
    let (workflow, task) = one(&flowmesh);
    let (_, info) = get(&flowmesh, &format!("/api/v1/workflows/{workflow}")).await;
    assert_eq!(info["status"], "PENDING");
    flowmesh.add_worker("wrk-1", "a", "acme", 1.0);
    flowmesh.add_worker("wrk-2", "b", "umbrella", 1.0);
    flowmesh.add_worker("wrk-3", "c", "umbrella", 1.0);
    let (status, _) = post(&flowmesh, "/api/v1/workers/wrk-3/cordon", Value::Null).await;
    assert_eq!(status, 200);
    flowmesh.submit(3);
    let workers: Vec<_> = flowmesh.tasks().into_iter().map(|t| t.assigned_worker).collect();
    let expected = ["wrk-1", "wrk-2", "wrk-1", "wrk-2"].map(|id| Some(id.to_owned()));
    assert_eq!(workers, expected);
    assert_eq!(flowmesh.task(&task).unwrap().status, Status::Dispatched);

    let (_, workers) = get(&flowmesh, "/api/v1/workers?namespace=umbrella").await;
    assert_eq!(workers.as_array().unwrap().len(), 2);
    let body = json!({"alias": "d", "namespace": "initech"});
    let (_, registered) = post(&flowmesh, "/api/v1/nodes/n1/workers/register", body).await;
    let path = format!("/api/v1/workers/{}", registered["id"].as_str().unwrap());
    assert_eq!(get(&flowmesh, &path).await.1["namespace"], "initech");
}

#[tokio::test]
async fn lists_filter_exactly_with_repeated_keys_as_alternatives() {
    let flowmesh = start().await;
    let (_, tasks) = flowmesh.submit(4);
    flowmesh.complete(&tasks[0], Outcome::done(1.0, 1.0));
    flowmesh.complete(&tasks[1], Outcome::failed(1.0, 1.0));
    flowmesh.unregister(&tasks[3]);
    let count = async |query: &str| {
        let (_, list) = get(&flowmesh, &format!("/api/v1/tasks?{query}")).await;
        list.as_array().unwrap().len()
    };
    assert_eq!(count("").await, 3);
    assert_eq!(count("status=DONE").await, 1);
    assert_eq!(count("status=DONE&status=FAILED").await, 2);
    assert_eq!(count("status=DON").await, 0);
    assert_eq!(count(&format!("status=DONE&task_id={}", tasks[1])).await, 0);
    assert_eq!(count("limit=2").await, 2);
    assert_eq!(count("no_such_field=1").await, 3);
}

#[tokio::test]
async fn a_script_can_patch_backdate_and_unregister() {
    let flowmesh = start().await;
    let (workflow, task) = one(&flowmesh);
    let path = format!("/api/v1/tasks/{task}");
    let long_ago: Timestamp = "2026-11-22T08:00:02Z".parse().unwrap();
    flowmesh.backdate(&workflow, long_ago);
    flowmesh.complete(&task, Outcome::done(1.0, 1.0));
    let odd = json!({"usages": [
        {"started_at": "a", "finished_at": "b", "runtime_sec": 1, "cost_per_hour": 2,
            "total_cost": 9, "status": "FAILED"},
        {"started_at": "c", "finished_at": "d", "runtime_sec": 1, "cost_per_hour": 2,
            "total_cost": 1.5e-7, "status": "DONE"}]});
    assert!(flowmesh.set_task_json(&task, odd));
    let (_, info) = get(&flowmesh, &path).await;
    assert_eq!(info["submitted_at"], "2026-11-22T08:00:02Z");
    assert_eq!(info["submitted_ts"], 1_795_334_402.0);
    assert_eq!(flowmesh.truth()[0].total_cost, "0.00000015");

    let text = r#"{"task_id":"t","status":"DONE","total":1.50}"#;
    flowmesh.set_task_text(&task, text);
    let response = client().get(format!("{}{path}", flowmesh.url())).send().await;
    assert_eq!(response.unwrap().text().await.unwrap(), text);
    assert!(flowmesh.truth().is_empty());

    flowmesh.unregister(&task);
    let (status, body) = get(&flowmesh, &path).await;
    assert_eq!((status, body), (404, json!({"detail": "task not found"})));
}

#[tokio::test]
async fn requests_are_recorded_as_they_were_sent() {
    let flowmesh = start().await;
    let mut account = flowmesh.subscribe();
    let response = client()
        .post(format!("{}/api/v1/results/tsk-1/files?token=secret&a=1", flowmesh.url()))
        .header("X-Twice", "1")
        .header("X-Twice", "2")
        .header("x-flowmesh-principal-id", "user-1")
        .body(vec![b'y'; 2_000_000])
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let seen = &flowmesh.requests()[0];
    assert_eq!(seen.method, "POST");
    assert_eq!(seen.path_and_query, "/api/v1/results/tsk-1/files?token=secret&a=1");
    assert_eq!(seen.header_values("x-twice"), ["1", "2"]);
    assert_eq!((seen.body_len, seen.body_prefix.len()), (2_000_000, 512));
    assert_eq!(
        account.recv().await.unwrap().to_string(),
        "POST /api/v1/results/tsk-1/files?token=…&a=1 → 200, principal user-1"
    );
}

#[tokio::test]
async fn a_restart_keeps_the_state_and_the_port() {
    let flowmesh = start().await;
    let (_, task) = one(&flowmesh);
    let path = format!("/api/v1/tasks/{task}");
    flowmesh.stop().await;
    let refused = client().get(format!("{}{path}", flowmesh.url())).send().await;
    assert!(refused.unwrap_err().is_connect());
    flowmesh.complete(&task, Outcome::done(1.0, 1.0));
    flowmesh.resume().await.unwrap();
    assert_eq!(get(&flowmesh, &path).await.1["status"], "DONE");
}

#[tokio::test]
async fn a_fault_can_be_bound_to_a_route_or_come_after_the_work_was_done() {
    let flowmesh = start().await;
    flowmesh.fail_on("GET /api/v1/tasks/", Fault::status(500));
    assert_eq!(get(&flowmesh, "/api/v1/tasks/tsk-1").await.0, 500);
    assert_eq!(get(&flowmesh, "/healthz").await.0, 200);
    flowmesh.heal();
    assert_eq!(get(&flowmesh, "/api/v1/tasks/tsk-1").await.0, 404);

    let submit = || {
        let url = format!("{}/api/v1/workflows", flowmesh.url());
        client().post(url).body("x: 1").send()
    };
    flowmesh.fail_with(Fault::status(503).times(1));
    assert_eq!(submit().await.unwrap().status(), 503);
    assert!(flowmesh.workflows().is_empty());
    flowmesh.fail_with(Fault::lost_answer());
    assert!(submit().await.unwrap().bytes().await.is_err());
    assert_eq!(flowmesh.workflows().len(), 1);
}

#[tokio::test]
async fn odd_paths_mean_what_starlette_makes_of_them() {
    let flowmesh = start().await;
    let (status, body) = get(&flowmesh, "/api/v1/nothing").await;
    assert_eq!((status, body), (404, json!({"detail": "Not Found"})));
    let (status, _) = post(&flowmesh, "/api%2Fv1/work%66lows", json!({})).await;
    assert_eq!(status, 201);
    // The client follows the redirect with the same method and body.
    let (status, _) = post(&flowmesh, "/api/v1/workflows/?a=b", json!({})).await;
    assert_eq!(status, 201);
    let url = format!("{}/api/v1/workflows", flowmesh.url());
    let response = client().delete(url).send().await.unwrap();
    assert_eq!(response.status(), 405);
    assert_eq!(flowmesh.requests().len(), 5);
}
