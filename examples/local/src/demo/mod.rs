//! `tollgate-local demo`: the whole scenario, each step in one line.
//!
//! The scenario knows only a [`World`]. What was there before in one that is not new is left aside, so it may be played
//! again and again with the same composed stack.

mod billing;
mod compose;
mod edge;
mod narrator;
mod outages;
mod world;

use std::{
    collections::{HashMap, HashSet},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};
use tollgate_local::{
    stack::{ACME, Person, http_client, wait_for},
    standin::TruthEntry,
};

use crate::{Binaries, account::Printer, stop::Stop};
use narrator::Narrator;
use world::World;

/// What Tollgate has still to find out or to post.
const FIGURES: [&str; 6] = [
    "tollgate_open_submissions",
    "tollgate_open_workflows",
    "tollgate_held_workflows",
    "tollgate_due_tasks",
    "tollgate_charges_pending",
    "tollgate_charges_held",
];

#[derive(Args)]
pub struct DemoOptions {
    #[command(flatten)]
    binaries: Binaries,
    /// Play with the running stack of this compose project instead, which nobody else uses meanwhile. Kills, stops and
    /// starts its containers by the docker command; reaches the stand-ins by their addresses on the project's network,
    /// so it wants a Linux host
    #[arg(long, value_name = "PROJECT")]
    compose: Option<String>,
}

/// Plays everything.
pub async fn demo(options: &DemoOptions) -> Result<ExitCode> {
    let started = Instant::now();
    let printer = Printer::new();
    let mut stop = Stop::listen()?;
    let http = http_client()?;
    let played = async {
        let world = if let Some(project) = &options.compose {
            printer.plain(format_args!("Playing with the containers of compose project {project}."));
            World::composed(project, &http).await?
        } else {
            printer.plain("Starting lum.id, Runmesh and FlowMesh stand-ins, Tollgate and Envoy on free ports.");
            World::local(&options.binaries, &http).await?
        };
        let before = Before::look(&world).await?;
        let (narrator, submitters) = (Narrator::new(printer), HashMap::new());
        let mut demo = Demo { world, http, narrator, before, first: None, submitters };
        demo.recovered().await?;
        demo.play().await;
        anyhow::Ok(demo.narrator.summary(started.elapsed()))
    };
    // Processes that still run when this is cut short are killed as they are dropped. Containers are left as they are;
    // the next run starts them.
    tokio::select! {
        all_well = played => Ok(if all_well? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        () = stop.asked() => Ok(ExitCode::FAILURE),
    }
}

struct Demo {
    world: World,
    http: reqwest::Client,
    narrator: Narrator,
    before: Before,
    /// What alice submitted first.
    first: Option<Submitted>,
    /// Who submitted which workflow.
    submitters: HashMap<String, Person>,
}

/// What was there before.
struct Before {
    workflows: HashSet<String>,
    entries: usize,
    lum_id_violations: usize,
    runmesh_violations: usize,
    /// In the order of [`FIGURES`].
    figures: [f64; FIGURES.len()],
}

impl Before {
    /// Undoes what a scenario that was cut short has left behind, and looks what is there.
    async fn look(world: &World) -> Result<Self> {
        world.lum_id.resume().await?;
        world.runmesh.resume().await?;
        world.flowmesh.set_dispatch_delay(Duration::ZERO).await?;
        // A charge that FlowMesh has forgotten could not be told from one of this scenario later on. One that is not
        // posted for long is of no matter: it is hardly posted just then.
        let _ = wait_for("older charges to be posted", world.charge_limit, async || {
            world.tollgate.metric("tollgate_charges_pending").await.filter(|pending| *pending == 0.0)
        })
        .await;
        let mut figures = [0.0; FIGURES.len()];
        for (name, figure) in FIGURES.iter().zip(&mut figures) {
            *figure = world.tollgate.metric(name).await.with_context(|| format!("Tollgate has no metric {name}"))?;
        }
        let workflows = world.flowmesh.workflows().await?;
        Ok(Self {
            workflows: workflows.into_iter().map(|workflow| workflow.workflow_id).collect(),
            entries: world.runmesh.entries().await?.len(),
            lum_id_violations: world.lum_id.violations().await?.len(),
            runmesh_violations: world.runmesh.violations().await?.len(),
            figures,
        })
    }
}

/// A token of which nobody has ever heard, Tollgate's memory for refused ones included.
fn unseen_token() -> String {
    format!("never-seen-before-{:016x}", fastrand::u64(..))
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
        let result = self.tollgate_dies().await;
        self.narrator.unless_broken("Tollgate died", result);
        let result = self.envoy_killed().await;
        self.narrator.unless_broken("Envoy killed", result);
        let result = self.lum_id_down().await;
        self.narrator.unless_broken("lum.id down", result);
        let result = self.tollgate_stopped().await;
        self.narrator.unless_broken("Tollgate stopped", result);
        self.narrator.heading("The account");
        let result = self.balance_of_books().await;
        self.narrator.unless_broken("account", result);
        self.narrator.outcome("orderly stop", self.world.stop().await);
        let result = self.as_it_was().await;
        self.narrator.unless_broken("start after the stop", result);
    }

    /// A composed stack goes on after the scenario.
    async fn as_it_was(&mut self) -> Result<()> {
        if self.world.tollgate.container().is_none() {
            return Ok(());
        }
        self.world.tollgate.restart().await?;
        self.world.envoy.restart().await?;
        let answer = self.recovered().await?;
        self.narrator.compare("started again; a read", 200, answer.status);
        Ok(())
    }

    fn request(&self, method: &str, path: &str, token: Option<&str>) -> Result<reqwest::RequestBuilder> {
        let method = method.parse().context("no such method")?;
        let request = self.http.request(method, format!("{}{path}", self.world.envoy.edge_url()));
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
        let worker = self.world.flowmesh.task(task_id).await?.and_then(|task| task.assigned_worker);
        let body = json!({"task_id": task_id, "metadata": {}, "result": {"loss": 0.1}, "worker_id": worker});
        let request = self.request("POST", "/api/v1/results", Some(ACME.token))?;
        self.send(request.json(&body)).await
    }

    /// Waits for the entry of a task and compares it with what FlowMesh says about the task.
    async fn expect_entry(&mut self, step: &str, task_ids: &[String], limit: Duration) -> Result<()> {
        let arrived = wait_for(format!("the billing entry of {}", task_ids.join(", ")), limit, async || {
            self.world.runmesh.entries().await.ok()?.into_iter().find(|entry| task_ids.contains(&entry.task_id))
        });
        let entry = arrived.await?;
        let truth = self.world.flowmesh.truth().await?;
        let expected = match truth.iter().find(|truth| truth.task_ids.contains(&entry.task_id)) {
            Some(truth) => self.expected_entry(truth, &entry.task_id).await?,
            None => Value::Null,
        };
        self.narrator.compare_as(step, (&in_short(&expected), &in_short(&entry.raw)), (&expected, &entry.raw));
        Ok(())
    }

    /// What Runmesh ought to get for an execution, under this one of its tasks.
    async fn expected_entry(&self, truth: &TruthEntry, task_id: &str) -> Result<Value> {
        let task = self.world.flowmesh.task(task_id).await?;
        let workflow_id = task.map_or_else(|| truth.workflow_id.clone(), |task| task.workflow_id);
        let submitter = self.submitters.get(&workflow_id);
        Ok(json!({
            "userEmail": submitter.map(|person| person.email),
            "userSub": submitter.map(|person| person.sub),
            "taskId": task_id,
            "workflowId": workflow_id,
            "cost": truth.total_cost,
            "durationSec": Duration::try_from_secs_f64(truth.runtime_sec).ok().map(|time| time.as_secs()),
            "costPerHour": truth.cost_per_hour,
            "taskStatus": truth.status,
        }))
    }
}

/// A billing entry for one line.
fn in_short(entry: &Value) -> String {
    let text = |key: &str| entry[key].as_str().unwrap_or("?");
    format!("{} ${} {}", text("userSub"), text("cost"), text("taskStatus"))
}
