use std::time::Duration;

use serde_json::{Value, json};

use super::{Control, FlowMesh, LumId, Runmesh, StandIn};
use crate::{
    cast::{self, ALICE, BRIDGE_SECRET, PAUPER},
    stack::http_client,
    standin::{Outcome, Status},
};

const ANY: &str = "127.0.0.1:0";

async fn control(standin: StandIn) -> (reqwest::Client, Control) {
    (http_client().unwrap(), Control::start(ANY, standin).await.unwrap())
}

#[tokio::test]
async fn what_flowmesh_is_told_over_the_wire_is_what_it_does() {
    let flowmesh = cast::flowmesh(ANY).await.unwrap();
    let (http, listener) = control(StandIn::FlowMesh(flowmesh.clone())).await;
    let control = FlowMesh::new(&http, &listener.url());
    let (workflow, tasks) = flowmesh.submit(3);
    assert_eq!(control.workflows().await.unwrap()[0].workflow_id, workflow);
    let workers: Vec<_> = control.workers().await.unwrap().into_iter().map(|worker| worker.id).collect();
    assert_eq!(workers, ["wrk-acme-1", "wrk-borealis-1"]);
    assert_eq!(control.task(&tasks[0]).await.unwrap().unwrap().status, Status::Dispatched);
    assert!(control.task("tsk-none").await.unwrap().is_none());

    // A cost that needs all the digits of a double, and a merged batch.
    assert_eq!(control.complete(&tasks[..2], Outcome::done(72.5, 1.7)).await.unwrap(), 2);
    assert_eq!(control.complete(&tasks[..1], Outcome::done(1.0, 1.0)).await.unwrap(), 0, "it had ended");
    assert_eq!(control.complete(&tasks[2..], Outcome::failed(3.25, 2.4)).await.unwrap(), 1);
    let truth = control.truth().await.unwrap();
    assert_eq!(truth, flowmesh.truth());
    assert_eq!((truth.len(), truth[0].task_ids.len()), (2, 2));
    assert_eq!(control.task(&tasks[1]).await.unwrap().unwrap().usages, flowmesh.task(&tasks[1]).unwrap().usages);

    for (path, body, status, said) in [
        ("dispatch-delay", json!({"seconds": -1}), 400, "-1 seconds: "),
        ("dispatch-delay", json!({"second": 1}), 422, "missing field `seconds`"),
        ("truth", json!({}), 405, "another method"),
    ] {
        let answer = http.post(format!("{}/{path}", listener.url())).json(&body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path} {body}");
        let detail: Value = answer.json().await.unwrap();
        assert!(detail["detail"].as_str().unwrap().contains(said), "{detail}");
    }
    control.set_dispatch_delay(Duration::from_hours(1)).await.unwrap();
    let (_, waiting) = flowmesh.submit(1);
    assert_eq!(control.task(&waiting[0]).await.unwrap().unwrap().status, Status::Pending);
    control.set_dispatch_delay(Duration::ZERO).await.unwrap();
    assert_eq!(control.task(&waiting[0]).await.unwrap().unwrap().status, Status::Dispatched);
}

#[tokio::test]
async fn requests_are_counted_by_method_and_path_and_the_control_does_not_count_itself() {
    let flowmesh = cast::flowmesh(ANY).await.unwrap();
    let (http, listener) = control(StandIn::FlowMesh(flowmesh.clone())).await;
    let control = FlowMesh::new(&http, &listener.url());
    let get = |path: &str| http.get(format!("{}{path}", flowmesh.url())).header("x-flowmesh-org-id", "o").send();
    assert_eq!(control.request_count().await.unwrap(), 0);
    for path in ["/healthz", "/api/v1/workflows", "/api/v1/workflows?limit=1&view=status"] {
        get(path).await.unwrap();
    }
    assert_eq!(control.request_count().await.unwrap(), 3);
    let of = control.requests_of("GET", "/api/v1/workflows?limit=1&view=status").await.unwrap();
    let last = of.last.unwrap();
    assert_eq!((of.count, last.header("x-flowmesh-org-id")), (1, Some("o")));
    let of = control.requests_of("POST", "/healthz").await.unwrap();
    assert!(of.count == 0 && of.last.is_none());
}

#[tokio::test]
async fn what_runmesh_took_comes_over_the_wire_as_it_was_posted() {
    let runmesh = cast::runmesh(ANY, BRIDGE_SECRET).await.unwrap();
    let (http, listener) = control(StandIn::Runmesh(runmesh.clone())).await;
    let control = Runmesh::new(&http, &listener.url());
    let post = |path: &str, body: Value| {
        let url = format!("{}/billing/{path}", runmesh.billing_url());
        http.post(url).header("x-bridge-secret", BRIDGE_SECRET).json(&body).send()
    };
    let entry = json!({"userEmail": ALICE.email, "userSub": ALICE.sub, "taskId": "tsk-1", "workflowId": null,
        "cost": "0.030208333333333334", "durationSec": 72, "costPerHour": 1.7, "taskStatus": "DONE"});
    assert_eq!(post("flowmesh-entry", entry.clone()).await.unwrap().status(), 200);
    let entries = control.entries().await.unwrap();
    assert_eq!(entries, runmesh.entries());
    assert_eq!(entries[0].raw, entry);

    let question = json!({"userEmail": PAUPER.email, "requiredAmount": "0.01"});
    let sufficient = async || {
        let answer = post("check-balance", question.clone()).await.unwrap();
        answer.json::<Value>().await.unwrap()["data"]["sufficient"] == true
    };
    assert!(!sufficient().await, "everybody's balance is known");
    control.set_balance(PAUPER.email, "1.00").await.unwrap();
    assert!(sufficient().await);
    let refused = control.set_balance(PAUPER.email, "a lot").await.unwrap_err().to_string();
    assert!(refused.contains(r#"400 Bad Request {"detail":"\"a lot\" is no amount"}"#), "{refused}");
    assert_eq!(control.checks().await.unwrap(), [question.clone(), question]);

    assert_eq!(control.violations().await.unwrap(), Vec::<String>::new());
    http.get(format!("{}/nothing", runmesh.url())).send().await.unwrap();
    assert_eq!(control.violations().await.unwrap(), runmesh.violations());
    assert_eq!(runmesh.violations().len(), 1);
}

#[tokio::test]
async fn a_stand_in_plays_dead_and_comes_back_while_its_control_goes_on() {
    let lum_id = cast::lum_id(ANY).await.unwrap();
    let (http, listener) = control(StandIn::LumId(lum_id.clone())).await;
    let control = LumId::new(&http, &listener.url());
    let ask = async || {
        let request = http.post(format!("{}/oauth/introspect", lum_id.url())).form(&[("token", ALICE.token)]);
        anyhow::Ok(request.send().await?.json::<Value>().await?["active"] == true)
    };
    assert!(ask().await.unwrap());
    assert_eq!(control.introspection_count().await.unwrap(), 1);
    control.stop().await.unwrap();
    assert!(ask().await.is_err());
    let health = http.get(format!("{}/healthz", listener.url())).send().await.unwrap();
    assert_eq!((health.status().as_u16(), health.text().await.unwrap()), (200, r#"{"standin":"lum.id"}"#.to_owned()));
    control.resume().await.unwrap();
    assert!(ask().await.unwrap());
    control.revoke(ALICE.token).await.unwrap();
    assert!(!ask().await.unwrap());
    assert_eq!(control.violations().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn what_one_stand_in_cannot_do_is_refused_by_name_and_a_stopped_control_is_gone() {
    let (http, listener) = control(StandIn::LumId(cast::lum_id(ANY).await.unwrap())).await;
    let url = listener.url();
    let error = Runmesh::new(&http, &url).set_balance("a@example.com", "1").await.unwrap_err().to_string();
    assert!(error.contains(r#"404 Not Found {"detail":"lum.id has no such control"}"#), "{error}");
    listener.stop().await;
    let error = LumId::new(&http, &url).violations().await.unwrap_err().to_string();
    assert_eq!(error, format!("GET {url}/violations"));
}
