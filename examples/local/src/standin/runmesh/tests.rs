use super::{super::testing::client, *};

const SECRET: &str = "bridge";

async fn start() -> Runmesh {
    Runmesh::start("127.0.0.1:0", "/Runmesh/", SECRET).await.unwrap()
}

async fn post(runmesh: &Runmesh, endpoint: &str, secret: &str, body: &Value) -> reqwest::Result<(u16, Value)> {
    let response = client()
        .post(format!("{}/billing/{endpoint}", runmesh.billing_url()))
        .header("X-Bridge-Secret", secret)
        .json(body)
        .send()
        .await?;
    Ok((response.status().as_u16(), response.json().await?))
}

fn entry(task_id: &str) -> Value {
    json!({
        "userEmail": "alice@example.com", "userSub": "user-1", "taskId": task_id,
        "workflowId": null, "cost": "0.42", "durationSec": 12, "costPerHour": 1.5,
        "taskStatus": "DONE",
    })
}

#[tokio::test]
async fn an_entry_moves_money_once_however_often_it_is_posted() {
    let runmesh = start().await;
    for task in ["tsk-1", "tsk-2", "tsk-1"] {
        let (status, body) = post(&runmesh, "flowmesh-entry", SECRET, &entry(task)).await.unwrap();
        assert_eq!((status, &body["code"]), (200, &json!(200)));
    }
    let tasks: Vec<_> = runmesh.entries().into_iter().map(|e| e.task_id).collect();
    assert_eq!(tasks, ["tsk-1", "tsk-2"]);
    assert_eq!(runmesh.posts().len(), 3);
    let first = &runmesh.entries()[0];
    assert_eq!((first.cost.as_str(), first.duration_sec), ("0.42", 12));
    assert_eq!(first.workflow_id, None);
    assert_eq!(runmesh.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn one_task_with_different_contents_is_a_violation_and_changes_nothing() {
    let runmesh = start().await;
    post(&runmesh, "flowmesh-entry", SECRET, &entry("tsk-1")).await.unwrap();
    let mut other = entry("tsk-1");
    other["cost"] = "0.43".into();
    let (status, _) = post(&runmesh, "flowmesh-entry", SECRET, &other).await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(runmesh.entries().len(), 1);
    assert_eq!(runmesh.entries()[0].cost, "0.42");
    assert_eq!(runmesh.violations().len(), 1);
    assert!(runmesh.violations()[0].contains("different contents"));
}

#[tokio::test]
async fn whatever_departs_from_the_contract_is_refused_and_recorded() {
    let runmesh = start().await;
    let departures = [
        ("cost", json!(0.42)),
        ("cost", json!("4.2e-1")),
        ("cost", json!("-1")),
        ("durationSec", json!(12.0)),
        ("durationSec", json!("12")),
        ("costPerHour", json!("1.5")),
        ("taskStatus", json!("SUCCEEDED")),
        ("taskStatus", json!("done")),
        ("workflowId", json!("")),
        ("userEmail", Value::Null),
        ("supplierId", json!("acme")),
    ];
    let count = departures.len();
    for (key, value) in departures {
        let mut body = entry("tsk-1");
        body[key] = value;
        let (status, _) = post(&runmesh, "flowmesh-entry", SECRET, &body).await.unwrap();
        assert_eq!(status, 400, "{body}");
    }
    let mut missing = entry("tsk-1");
    missing.as_object_mut().unwrap().remove("userSub");
    post(&runmesh, "flowmesh-entry", SECRET, &missing).await.unwrap();
    assert_eq!(runmesh.violations().len(), count + 1);
    assert_eq!(runmesh.posts().len(), count + 1);
    assert!(runmesh.entries().is_empty());
}

#[tokio::test]
async fn a_wrong_secret_is_401_and_leaves_no_trace_but_a_violation() {
    let runmesh = start().await;
    let (status, _) = post(&runmesh, "flowmesh-entry", "guess", &entry("tsk-1")).await.unwrap();
    assert_eq!(status, 401);
    assert!(runmesh.posts().is_empty() && runmesh.entries().is_empty());
    assert_eq!(runmesh.violations().len(), 1);
}

#[tokio::test]
async fn a_balance_suffices_when_it_covers_the_amount() {
    let runmesh = start().await;
    runmesh.set_balance("poor@example.com", "0.009");
    runmesh.set_balance("exact@example.com", "0.01");
    let mut account = runmesh.subscribe();
    for (email, sufficient, balance) in
        [("new@example.com", true, "5.00"), ("poor@example.com", false, "0.009"), ("exact@example.com", true, "0.01")]
    {
        let body = json!({"userEmail": email, "requiredAmount": "0.01"});
        let (status, answer) = post(&runmesh, "check-balance", SECRET, &body).await.unwrap();
        assert_eq!(status, 200);
        let data = json!({"sufficient": sufficient, "balance": balance});
        assert_eq!(answer["data"], data);
    }
    assert_eq!(runmesh.checks().len(), 3);
    assert_eq!(account.recv().await.unwrap().to_string(), "preflight new@example.com: $5.00 for $0.01, enough");
}

#[tokio::test]
async fn an_entry_whose_answer_is_lost_is_stored_and_its_repeat_has_no_effect() {
    let runmesh = start().await;
    runmesh.fail_entries_with(Fault::lost_answer().times(1));
    assert!(post(&runmesh, "flowmesh-entry", SECRET, &entry("tsk-1")).await.is_err());
    assert_eq!(runmesh.entries().len(), 1);
    let (status, _) = post(&runmesh, "flowmesh-entry", SECRET, &entry("tsk-1")).await.unwrap();
    assert_eq!(status, 200);
    assert_eq!((runmesh.entries().len(), runmesh.posts().len()), (1, 2));
    assert!(runmesh.violations().is_empty());
}

#[tokio::test]
async fn a_fault_of_one_endpoint_leaves_the_other_alone_and_stores_nothing() {
    let runmesh = start().await;
    let failure = r#"{"code":500,"msg":"ledger locked"}"#;
    runmesh.fail_entries_with(Fault::Body(failure.to_owned()));
    let (status, answer) = post(&runmesh, "flowmesh-entry", SECRET, &entry("tsk-1")).await.unwrap();
    assert_eq!((status, &answer["code"]), (200, &json!(500)));
    assert!(runmesh.entries().is_empty());
    assert_eq!(runmesh.posts().len(), 1);
    let body = json!({"userEmail": "a@example.com", "requiredAmount": "0.01"});
    let (_, answer) = post(&runmesh, "check-balance", SECRET, &body).await.unwrap();
    assert_eq!(answer["code"], 200);

    runmesh.heal();
    post(&runmesh, "flowmesh-entry", SECRET, &entry("tsk-1")).await.unwrap();
    assert_eq!(runmesh.entries().len(), 1);
}
