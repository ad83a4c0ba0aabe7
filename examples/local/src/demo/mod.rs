//! `tollgate-local demo`: the whole scenario, each step in one line.

mod billing;
mod edge;
mod narrator;
mod outages;

use std::{collections::HashMap, process::ExitCode, time::Duration, time::Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tollgate_local::{
    stack::{ACME, Person, Ports, Stack, StackOptions, free_port, http_client, wait_for},
    standin::TruthEntry,
};

use crate::{Binaries, account::Printer};
use narrator::Narrator;

/// How long a charge may take without outages in between: twice the interval of the first sweep.
const CHARGE_LIMIT: Duration = Duration::from_secs(15);

/// Plays everything.
pub async fn demo(binaries: &Binaries) -> Result<ExitCode> {
    let started = Instant::now();
    let printer = Printer::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let folder = tempfile::Builder::new().prefix("tollgate-").tempdir().context("no temporary folder")?;
    let options = StackOptions {
        tollgate: binaries.tollgate()?,
        envoy: binaries.envoy()?,
        // Envoy is started anew on the way, and must come back where it was.
        ports: Ports { edge: free_port()?, ..Ports::default() },
        dir: folder.path().to_owned(),
        // What the sweep finds by itself it finds within seconds rather than minutes.
        settings: vec![("TOLLGATE_RECONCILE_GRACE_SECS", "1".to_owned())],
        tollgate_output: None,
        envoy_output: None,
    };
    printer.plain("Starting lum.id, Runmesh and FlowMesh stand-ins, Tollgate and Envoy on free ports.");
    let played = async {
        let stack = Stack::start(options).await?;
        let mut demo = Demo {
            stack,
            http: http_client()?,
            narrator: Narrator::new(printer),
            first: None,
            submitters: HashMap::new(),
        };
        demo.play().await;
        demo.narrator.outcome("orderly stop", demo.stack.stop().await);
        anyhow::Ok(demo.narrator.summary(started.elapsed()))
    };
    // What still runs when this is cut short is killed as it is dropped.
    tokio::select! {
        all_well = played => Ok(if all_well? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        _ = interrupt.recv() => Ok(ExitCode::FAILURE),
        _ = terminate.recv() => Ok(ExitCode::FAILURE),
    }
}

struct Demo {
    stack: Stack,
    http: reqwest::Client,
    narrator: Narrator,
    /// What alice submitted first.
    first: Option<Submitted>,
    /// Who submitted which workflow.
    submitters: HashMap<String, Person>,
}

/// A submission that was answered with 201.
struct Submitted {
    workflow_id: String,
    task_ids: Vec<String>,
}

/// An answer at the edge.
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("none")
    }

    /// Status and body.
    fn whole(&self) -> String {
        format!("{} {}", self.status, self.body)
    }
}

impl Demo {
    async fn play(&mut self) {
        self.narrator.heading("The way in");
        let result = self.identity().await;
        self.narrator.unless_broken("identity", result);
        let result = self.guard().await;
        self.narrator.unless_broken("guard", result);
        self.narrator.heading("Billing");
        let result = self.failed_task().await;
        self.narrator.unless_broken("failed task", result);
        let result = self.one_task().await;
        self.narrator.unless_broken("one task", result);
        let result = self.nothing_ran().await;
        self.narrator.unless_broken("cancelled workflow", result);
        let result = self.merged_batch().await;
        self.narrator.unless_broken("merged batch", result);
        self.narrator.heading("Outages");
        let result = self.runmesh_down().await;
        self.narrator.unless_broken("Runmesh down", result);
        let result = self.tollgate_killed().await;
        self.narrator.unless_broken("Tollgate killed", result);
        let result = self.envoy_killed().await;
        self.narrator.unless_broken("Envoy killed", result);
        let result = self.lum_id_down().await;
        self.narrator.unless_broken("lum.id down", result);
        let result = self.tollgate_stopped().await;
        self.narrator.unless_broken("Tollgate stopped", result);
        self.narrator.heading("The account");
        let result = self.balance_of_books().await;
        self.narrator.unless_broken("account", result);
    }

    fn request(&self, method: &str, path: &str, token: Option<&str>) -> Result<reqwest::RequestBuilder> {
        let method = method.parse().context("no such method")?;
        let request = self.http.request(method, format!("{}{path}", self.stack.envoy.edge_url()));
        Ok(match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let answer = request.send().await.context("no answer at the edge")?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.text().await.context("an answer at the edge broke off")?;
        Ok(Answer { status, headers, body })
    }

    async fn get(&self, path: &str, token: Option<&str>) -> Result<Answer> {
        self.send(self.request("GET", path, token)?).await
    }

    /// A submission of so many tasks, ready to be sent.
    fn submission(&self, person: &Person, tasks: usize) -> Result<reqwest::RequestBuilder> {
        let names: Vec<_> = (1..=tasks).map(|n| format!("- name: task-{n}\n")).collect();
        let request = self.request("POST", "/api/v1/workflows", Some(person.token))?;
        Ok(request.header("content-type", "text/plain").body(names.concat()))
    }

    /// Sends a submission, tells of its answer, and remembers whose it is.
    async fn submit(&mut self, step: &str, person: Person, request: reqwest::RequestBuilder) -> Result<Submitted> {
        let answer = self.send(request).await?;
        self.narrator.compare(step, 201, answer.status);
        let body: Value = serde_json::from_str(&answer.body).with_context(|| answer.whole())?;
        let workflow_id = body["workflow_id"].as_str().with_context(|| answer.whole())?.to_owned();
        let tasks = body["tasks"].as_array().with_context(|| answer.whole())?;
        let task_ids = tasks.iter().filter_map(|task| Some(task["task_id"].as_str()?.to_owned())).collect();
        self.submitters.insert(workflow_id.clone(), person);
        Ok(Submitted { workflow_id, task_ids })
    }

    /// The worker of a task posts its result through the edge.
    async fn post_result(&self, task_id: &str) -> Result<Answer> {
        let worker = self.stack.flowmesh.task(task_id).and_then(|task| task.assigned_worker);
        let body = json!({"task_id": task_id, "metadata": {}, "result": {"loss": 0.1}, "worker_id": worker});
        let request = self.request("POST", "/api/v1/results", Some(ACME.token))?;
        self.send(request.json(&body)).await
    }

    /// Waits for the entry of a task and compares it with what FlowMesh says about the task.
    async fn expect_entry(&mut self, step: &str, task_ids: &[String], limit: Duration) -> Result<()> {
        let arrived = wait_for(format!("the billing entry of {}", task_ids.join(", ")), limit, async || {
            self.stack.runmesh.entries().into_iter().find(|entry| task_ids.contains(&entry.task_id))
        });
        let entry = arrived.await?;
        let truth = self.stack.flowmesh.truth();
        let truth = truth.iter().find(|truth| truth.task_ids.contains(&entry.task_id));
        let expected = truth.map_or(Value::Null, |truth| self.expected_entry(truth, &entry.task_id));
        self.narrator.compare_as(step, (&in_short(&expected), &in_short(&entry.raw)), (&expected, &entry.raw));
        Ok(())
    }

    /// What Runmesh ought to get for an execution, under this one of its tasks.
    fn expected_entry(&self, truth: &TruthEntry, task_id: &str) -> Value {
        let task = self.stack.flowmesh.task(task_id);
        let workflow_id = task.map_or_else(|| truth.workflow_id.clone(), |task| task.workflow_id);
        let submitter = self.submitters.get(&workflow_id);
        json!({
            "userEmail": submitter.map(|person| person.email),
            "userSub": submitter.map(|person| person.sub),
            "taskId": task_id,
            "workflowId": workflow_id,
            "cost": truth.total_cost,
            "durationSec": Duration::try_from_secs_f64(truth.runtime_sec).ok().map(|time| time.as_secs()),
            "costPerHour": truth.cost_per_hour,
            "taskStatus": truth.status,
        })
    }
}

/// A billing entry for one line.
fn in_short(entry: &Value) -> String {
    let text = |key: &str| entry[key].as_str().unwrap_or("?");
    format!("{} ${} {}", text("userSub"), text("cost"), text("taskStatus"))
}
