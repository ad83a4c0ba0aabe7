//! People: they submit, poll, cancel, and sometimes go away before they are answered.

use std::{sync::Arc, time::Duration};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::world::{World, millis};

/// How long after its answer a submission's log entry is surely committed, when nothing is wrong.
const COMMITTED: Duration = Duration::from_millis(1500);
/// More patience than any fault of ours lasts.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a person knows to be theirs.
#[derive(Default)]
struct Known {
    workflows: Vec<(String, Vec<String>)>,
}

/// Works until it is over.
pub(super) async fn person(world: Arc<World>, person: usize, mut random: fastrand::Rng) {
    let mut known = Known::default();
    // In a calm round one person is there for everybody while things get lost.
    let longest = if world.floor.is_calm() && world.floor.takes_risks(person) { 250 } else { 800 };
    while world.pause(millis(&mut random, 20..longest)).await {
        match random.u32(0..100) {
            0..50 => {
                let tasks = random.usize(1..7);
                if let Some(made) = submit(&world, person, tasks, &mut random).await {
                    known.workflows.push(made);
                }
            }
            50..55 => refused(&world, person, &mut random).await,
            55..90 => poll(&world, person, &known, &mut random).await,
            90..95 => cancel(&world, person, &known, &mut random).await,
            _ => {
                let _ = world.http.get(format!("{}/api/v1/workflows", world.edge)).bearer_auth("nobody").send().await;
            }
        }
    }
}

/// A person's request with one of their tokens.
fn request(world: &World, person: usize, method: Method, path: &str, random: &mut fastrand::Rng) -> RequestBuilder {
    let tokens = &world.people[person].tokens;
    let token = &tokens[random.usize(0..tokens.len())];
    world.http.request(method, format!("{}{path}", world.edge)).bearer_auth(token)
}

/// Submits so many tasks; its workflow and tasks, when it was told of them.
pub(super) async fn submit(
    world: &Arc<World>,
    person: usize,
    tasks: usize,
    random: &mut fastrand::Rng,
) -> Option<(String, Vec<String>)> {
    let request = request(world, person, Method::POST, "/api/v1/workflows", random);
    // Some go away before they are answered.
    let impatient = world.floor.takes_risks(person) && random.f64() < 0.08;
    let patience = if impatient { millis(random, 3..400) } else { PATIENCE };
    send(world, person, tasks, request.timeout(patience), random.bool()).await
}

async fn send(
    world: &Arc<World>,
    person: usize,
    tasks: usize,
    request: RequestBuilder,
    yaml: bool,
) -> Option<(String, Vec<String>)> {
    let submitting = world.floor.submit(person).await;
    let number = world.record.sending(person);
    let names: Vec<String> = (0..tasks).map(|task| World::task_name(number, task)).collect();
    let request = if yaml {
        let lines: Vec<String> = names.iter().map(|name| format!("- name: {name}\n")).collect();
        request.header("content-type", "text/plain").body(lines.concat())
    } else {
        let tasks: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        request.json(&json!({"tasks": tasks}))
    };
    let made = answered(world, number, request).await;
    tokio::spawn(async move {
        tokio::time::sleep(COMMITTED).await;
        drop(submitting);
    });
    made
}

async fn answered(world: &World, number: usize, request: RequestBuilder) -> Option<(String, Vec<String>)> {
    let whole = async {
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.bytes().await.ok()?))
    };
    let Some((status, body)) = whole.await else {
        world.record.tick("submissions unanswered", 1);
        return None;
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let workflow = text(&body["workflow_id"]);
    world.record.answered(number, status, workflow.clone());
    match status {
        201 => world.record.tick("submissions accepted", 1),
        500.. => world.record.tick("submissions failed", 1),
        _ => world.record.tick("submissions refused", 1),
    }
    if status != 201 {
        return None;
    }
    world.accepted.notify_waiters();
    let tasks = body["tasks"].as_array()?.iter().filter_map(|task| text(&task["task_id"])).collect();
    Some((workflow?, tasks))
}

/// A submission that FlowMesh refuses.
async fn refused(world: &Arc<World>, person: usize, random: &mut fastrand::Rng) {
    let submitting = world.floor.submit(person).await;
    let request = request(world, person, Method::POST, "/api/v1/workflows", random);
    let number = world.record.sending(person);
    let request = request.header("content-type", "application/json").body("{\"tasks\": [");
    answered(world, number, request.timeout(PATIENCE)).await;
    tokio::spawn(async move {
        tokio::time::sleep(COMMITTED).await;
        drop(submitting);
    });
}

async fn poll(world: &Arc<World>, person: usize, known: &Known, random: &mut fastrand::Rng) {
    let Some((workflow, tasks)) = random.choice(&known.workflows) else { return };
    let path = match random.u32(0..5) {
        0 => format!("/api/v1/workflows/{workflow}?view=status"),
        1 => format!("/api/v1/workflows/{workflow}"),
        view => {
            let Some(task) = random.choice(tasks) else { return };
            match view {
                2 => format!("/api/v1/tasks/{task}"),
                3 => format!("/api/v1/results/{task}"),
                _ => format!("/api/v1/tasks/{task}?view=status"),
            }
        }
    };
    let _ = request(world, person, Method::GET, &path, random).send().await;
}

async fn cancel(world: &Arc<World>, person: usize, known: &Known, random: &mut fastrand::Rng) {
    let Some((workflow, _)) = random.choice(&known.workflows) else { return };
    let path = format!("/api/v1/workflows/{workflow}/cancel");
    let _ = request(world, person, Method::POST, &path, random).send().await;
}

/// Once everything is healed: whoever knows of a workflow looks at it once more, as people do.
pub(super) async fn look_again(world: &Arc<World>, random: &mut fastrand::Rng) {
    for submission in world.record.submissions() {
        let Some(workflow) = &submission.workflow else { continue };
        let path = format!("/api/v1/workflows/{workflow}?view=status");
        let _ = request(world, submission.person, Method::GET, &path, random).send().await;
    }
}

/// Submits with the tokens that know an e-mail address which the others do not.
pub(super) async fn show_addresses(world: &Arc<World>) {
    for (person, late) in world.people.iter().enumerate() {
        let Some(late) = &late.late else { continue };
        // What was cached or paused by an outage may need a moment.
        for _ in 0..20 {
            let request = world.http.post(format!("{}/api/v1/workflows", world.edge)).bearer_auth(late);
            if send(world, person, 1, request.timeout(PATIENCE), false).await.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
