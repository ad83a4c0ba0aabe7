//! Who owns the hardware that a request is about.

use std::time::{Duration, Instant};

use serde_json::json;
use tollgate_local::stack::{ACME, ALICE};
use tollgate_local::standin::Fault;

use crate::harness::{Edge, answer};

/// The supplier header of the last request to a path that FlowMesh got with an identity.
fn supplier_at(edge: &Edge, path: &str) -> Option<String> {
    let requests = edge.stack.flowmesh.requests();
    let seen = requests
        .iter()
        .rfind(|seen| seen.path_and_query == path && seen.header("x-flowmesh-principal-id").is_some())
        .unwrap_or_else(|| panic!("nothing came to {path}"));
    seen.header("x-flowmesh-supplier-id").map(str::to_owned)
}

#[tokio::test]
async fn a_request_about_a_worker_or_a_task_carries_the_namespace_of_the_hardware() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let task = edge.stack.flowmesh.task(&tasks[0]).expect("known");
    let worker = task.assigned_worker.expect("assigned");
    let namespace = edge.stack.flowmesh.workers().into_iter().find(|known| known.id == worker).map(|w| w.namespace);
    for path in [
        format!("/api/v1/workers/{worker}"),
        format!("/api/v1/tasks/{}", tasks[0]),
        format!("/api/v1/tasks/{}/logs", tasks[0]),
        format!("/api/v1/results/{}/logs", tasks[0]),
    ] {
        let request = edge.get(&path).bearer_auth(ALICE.token).header("x-flowmesh-supplier-id", "spoofed");
        answer(request).await;
        assert_eq!(supplier_at(&edge, &path), namespace, "{path}");
    }
    answer(edge.get("/api/v1/workers").bearer_auth(ALICE.token)).await;
    assert_eq!(supplier_at(&edge, "/api/v1/workers"), None, "a list is about nobody's worker");
    edge.finish().await;
}

#[tokio::test]
async fn a_result_names_its_supplier_even_when_its_worker_comes_after_megabytes() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let worker = edge.stack.flowmesh.task(&tasks[0]).and_then(|task| task.assigned_worker).expect("assigned");
    let namespace = edge.stack.flowmesh.workers().into_iter().find(|known| known.id == worker).map(|w| w.namespace);
    let body = format!(
        r#"{{"task_id":"{}","result":{{"text":"{}"}},"worker_id":"{worker}","metadata":{{}}}}"#,
        tasks[0],
        "x".repeat(3 * 1024 * 1024)
    );
    let length = body.len();
    let request = edge.post("/api/v1/results").bearer_auth(ACME.token).header("content-type", "application/json");
    assert_eq!(answer(request.body(body)).await.status, 200);
    assert_eq!(supplier_at(&edge, "/api/v1/results"), namespace);
    let seen = edge.stack.flowmesh.requests().into_iter().rfind(|seen| seen.path_and_query == "/api/v1/results");
    assert_eq!(usize::try_from(seen.expect("arrived").body_len), Ok(length), "all of the body arrived");
    let entries = edge.entries(1).await;
    assert_eq!(entries[0].task_id, tasks[0], "and its task was settled");
    edge.finish().await;
}

#[tokio::test]
async fn a_flowmesh_that_hangs_neither_delays_nor_refuses_a_request_for_want_of_a_supplier() {
    let edge = Edge::start().await;
    edge.stack.flowmesh.fail_on("GET /api/v1/workers/wrk-new", Fault::Hang);
    let started = Instant::now();
    for _ in 0..20 {
        let request = edge.post("/api/v1/workers/wrk-new/cordon").bearer_auth(ALICE.token).json(&json!({}));
        answer(request).await;
    }
    assert!(started.elapsed() < Duration::from_secs(2), "all twenty of them: {:?}", started.elapsed());
    assert_eq!(supplier_at(&edge, "/api/v1/workers/wrk-new/cordon"), None);
    let counted = async |outcome: &str| {
        let series = format!("tollgate_supplier_lookups_total{{outcome=\"{outcome}\"}}");
        edge.stack.tollgate.metric(&series).await.unwrap_or_default()
    };
    assert!((counted("timeout").await + counted("paused").await - 20.0).abs() < f64::EPSILON, "each is counted");
    edge.finish().await;
}

#[tokio::test]
async fn a_worker_that_comes_later_is_found_on_the_first_request_about_it() {
    let edge = Edge::start().await;
    edge.stack.flowmesh.add_worker("wrk-late", "late", "late-gpus", 1.0);
    answer(edge.get("/api/v1/workers/wrk-late").bearer_auth(ALICE.token)).await;
    assert_eq!(supplier_at(&edge, "/api/v1/workers/wrk-late").as_deref(), Some("late-gpus"));
    edge.finish().await;
}

#[tokio::test]
async fn a_route_may_fix_the_supplier_and_a_client_may_not() {
    let mut edge = Edge::start().await;
    let shipped = "                match: {prefix: /}\n                route: {cluster: flowmesh, timeout: 60s}\n";
    let fixed = format!(
        "{shipped}                typed_per_filter_config: {{envoy.filters.http.ext_authz: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, check_settings: \
         {{context_extensions: {{supplier: fixed-gpus}}}}}}}}\n"
    );
    edge.replace_envoy(shipped, &fixed).await;
    for path in ["/api/v1/nodes", "/api/v1/workers/wrk-acme-1"] {
        let request = edge.get(path).bearer_auth(ALICE.token).header("x-flowmesh-supplier-id", "mine");
        answer(request).await;
        assert_eq!(supplier_at(&edge, path).as_deref(), Some("fixed-gpus"), "{path}");
    }
    edge.finish().await;
}
