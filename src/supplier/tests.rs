use serde_json::json;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::config::{BaseUrl, Flowmesh};
use crate::upstream::Http;

async fn suppliers(limits: &Limits, worker: ResponseTemplate, task: ResponseTemplate) -> (MockServer, Suppliers) {
    let server = MockServer::start().await;
    Mock::given(path("/api/v1/workers/wrk-1")).respond_with(worker).mount(&server).await;
    Mock::given(path("/api/v1/tasks/tsk-1")).respond_with(task).mount(&server).await;
    let config = Flowmesh { base_url: BaseUrl::of_test(&server.uri()), api_key: None };
    let http = Http::new(&config.base_url, Duration::from_secs(5)).expect("client");
    (server, Suppliers::new(FlowMesh::new(http, config), limits, Metrics::unread()))
}

fn worker() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({"id": "wrk-1", "namespace": "acme"}))
}

fn task() -> ResponseTemplate {
    let task = json!({"task_id": "tsk-1", "workflow_id": "wfl-1", "status": "DISPATCHED", "assigned_worker": "wrk-1"});
    ResponseTemplate::new(200).set_body_json(task)
}

async fn calls(server: &MockServer) -> usize {
    server.received_requests().await.unwrap_or_default().len()
}

fn counted(suppliers: &Suppliers, outcome: &'static str) -> u64 {
    suppliers.0.metrics.suppliers.get_or_create(&OutcomeLabels { outcome }).get()
}

#[tokio::test]
async fn what_many_ask_for_at_once_is_looked_up_once_and_remembered() {
    let (server, suppliers) = suppliers(&Limits::default(), worker(), task()).await;
    let mut lookups = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let suppliers = suppliers.clone();
        lookups.spawn(async move { suppliers.resolve(Subject::Task("tsk-1")).await });
    }
    while let Some(found) = lookups.join_next().await {
        assert_eq!(found.expect("no panic").as_deref(), Some("acme"));
    }
    assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await.as_deref(), Some("acme"));
    assert_eq!(calls(&server).await, 2, "the task once and the worker once");
}

#[tokio::test]
async fn what_takes_longer_than_a_request_waits_is_there_for_the_next_one() {
    let limits = Limits { supplier_timeout: Duration::from_millis(50), ..Limits::default() };
    let slow = worker().set_delay(Duration::from_millis(200));
    let (server, suppliers) = suppliers(&limits, slow, task()).await;
    assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await, None);
    let started = Instant::now();
    while suppliers.resolve(Subject::Worker("wrk-1")).await.is_none() {
        assert!(started.elapsed() < Duration::from_secs(10), "the look-up never ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(calls(&server).await, 1);
}

#[tokio::test]
async fn while_flowmesh_does_not_answer_nobody_waits_for_it() {
    let hangs = ResponseTemplate::new(200).set_delay(Duration::from_secs(5));
    let (server, suppliers) = suppliers(&Limits::default(), worker(), hangs).await;
    let started = Instant::now();
    for _ in 0..50 {
        assert_eq!(suppliers.resolve(Subject::Task("tsk-1")).await, None);
    }
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    assert_eq!(calls(&server).await, 1);
    assert_eq!((counted(&suppliers, "timeout"), counted(&suppliers, "paused")), (1, 49));
}

#[tokio::test]
async fn one_huge_task_hides_no_other_supplier() {
    let huge = ResponseTemplate::new(200).set_body_string("x".repeat(2 << 20));
    let (server, suppliers) = suppliers(&Limits::default(), worker(), huge).await;
    for _ in 0..3 {
        assert_eq!(suppliers.resolve(Subject::Task("tsk-1")).await, None);
    }
    assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await.as_deref(), Some("acme"));
    assert_eq!(calls(&server).await, 2, "the huge one is not read again and again");
}

#[tokio::test]
async fn when_several_look_ups_take_too_long_nobody_waits_for_any_but_a_charge() {
    let hangs = ResponseTemplate::new(200).set_delay(Duration::from_secs(5));
    let (server, suppliers) = suppliers(&Limits::default(), worker(), task()).await;
    Mock::given(wiremock::matchers::path_regex("slow")).respond_with(hangs).mount(&server).await;
    for id in ["slow-1", "slow-2", "slow-3"] {
        assert_eq!(suppliers.resolve(Subject::Task(id)).await, None);
    }
    assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await, None);
    assert_eq!((counted(&suppliers, "timeout"), counted(&suppliers, "paused")), (3, 1));
    assert_eq!(suppliers.of_charge("wrk-1").await.as_deref(), Some("acme"));
    assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await.as_deref(), Some("acme"), "known now");
}

#[tokio::test]
async fn an_unknown_worker_and_a_name_that_is_no_header_value_are_no_supplier() {
    let unknown = ResponseTemplate::new(404).set_body_json(json!({"detail": "worker not found"}));
    let odd = ResponseTemplate::new(200).set_body_json(json!({"id": "wrk-1", "namespace": "a\r\nx-admin: 1"}));
    for answer in [unknown, odd] {
        let (server, suppliers) = suppliers(&Limits::default(), answer, task()).await;
        for _ in 0..3 {
            assert_eq!(suppliers.resolve(Subject::Worker("wrk-1")).await, None);
        }
        assert_eq!(calls(&server).await, 1, "that, too, is remembered for a while");
        assert_eq!(counted(&suppliers, "none"), 3);
    }
}

#[tokio::test]
async fn look_ups_in_flight_are_bounded() {
    let limits = Limits { supplier_lookups_in_flight: 1, ..Limits::default() };
    let slow = |response: ResponseTemplate| response.set_delay(Duration::from_millis(100));
    let (server, suppliers) = suppliers(&limits, slow(worker()), slow(task())).await;
    let (of_task, of_worker) =
        tokio::join!(suppliers.resolve(Subject::Task("tsk-1")), suppliers.resolve(Subject::Worker("wrk-1")));
    assert_eq!((of_task.as_deref(), of_worker.as_deref()), (Some("acme"), Some("acme")));
    assert_eq!(calls(&server).await, 2);
    assert!(suppliers.figures().1 <= 1);
}
