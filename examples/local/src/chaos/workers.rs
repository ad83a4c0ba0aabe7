//! Workers: they post results, or FlowMesh ends tasks without anybody telling.

use std::sync::Arc;

use serde_json::{Number, json};

use super::world::{World, millis};
use crate::{
    stack::ACME,
    standin::{Outcome, Status, Task},
};

/// Ends tasks until it is over.
pub(super) async fn work(world: Arc<World>, mut random: fastrand::Rng) {
    while world.pause(millis(&mut random, 50..400)).await {
        let open = open_tasks(&world);
        for _ in 0..random.usize(0..4) {
            let Some(task) = random.choice(&open) else { break };
            match random.u32(0..100) {
                0..45 => {
                    tokio::spawn(post_result(world.clone(), task.clone(), random.f64() < 0.2));
                }
                45..85 => {
                    world.flowmesh.complete(&task.task_id, outcome(&mut random));
                }
                _ => merge(&world, task, &open, &mut random),
            }
        }
    }
}

/// Ends everything that still runs.
pub(super) fn end_everything(world: &World, random: &mut fastrand::Rng) {
    for task in open_tasks(world) {
        world.flowmesh.complete(&task.task_id, outcome(random));
    }
}

fn open_tasks(world: &World) -> Vec<Task> {
    world.flowmesh.tasks().into_iter().filter(|task| !task.status.is_terminal()).collect()
}

async fn post_result(world: Arc<World>, task: Task, failed: bool) {
    let error = if failed { json!("out of memory") } else { json!(null) };
    let body = json!({"task_id": task.task_id, "worker_id": task.assigned_worker, "metadata": {},
        "received_at": "2026-11-22T08:00:00Z", "result": {"error": error}});
    let request = world.http.post(format!("{}/api/v1/results", world.edge)).bearer_auth(ACME.token).json(&body);
    // One that fails is not repeated: then FlowMesh ends the task later, and nobody tells.
    if request.send().await.is_ok_and(|answer| answer.status() == 200) {
        world.record.tick("results posted", 1);
    }
}

/// One execution for several tasks: of one person's workflows mostly, sometimes of anybody's.
fn merge(world: &World, first: &Task, open: &[Task], random: &mut fastrand::Rng) {
    let anybody = random.f64() < 0.2;
    let whose = world.person_of(first);
    let others = open.iter().filter(|other| other.task_id != first.task_id);
    let mut others: Vec<&Task> = others.filter(|other| anybody || world.person_of(other) == whose).collect();
    random.shuffle(&mut others);
    let mut batch = vec![first.task_id.as_str()];
    batch.extend(others.iter().take(random.usize(1..5)).map(|task| task.task_id.as_str()));
    if world.flowmesh.complete_merged(&batch, outcome(random)) > 1 {
        world.record.tick("merged batches", 1);
    }
}

/// An end with a cost of any magnitude.
fn outcome(random: &mut fastrand::Rng) -> Outcome {
    let status = match random.u32(0..10) {
        0..7 => Status::Done,
        7..9 => Status::Failed,
        _ => Status::Cancelled,
    };
    if random.f64() < 0.1 {
        return Outcome::without_usage(status);
    }
    let runtime = random.f64() * 10_f64.powi(random.i32(-3..6));
    let mut outcome = Outcome::after(status, runtime, random.f64() * 10_f64.powi(random.i32(-2..3)));
    match random.u32(0..6) {
        0 => outcome.total_cost = Number::from(random.u64(0..1_000_000)),
        1 => outcome.total_cost = number(random.f64() * 10_f64.powi(random.i32(-12..9))),
        2 => outcome.total_cost = number(0.0),
        _ => {}
    }
    outcome
}

fn number(value: f64) -> Number {
    Number::from_f64(value).unwrap_or_else(|| Number::from(0))
}
