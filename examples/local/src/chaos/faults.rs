//! What goes wrong. Faults overlap, but each thing has one at a time.

use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::json;

use super::{
    shared, tollgates,
    world::{World, ago, millis},
};
use crate::{stack::Meddling, standin::Fault};

/// How long after a start Envoy may take to send its log entries again.
pub(super) const RECOVERED: Duration = Duration::from_secs(1);
/// How long Tollgate or Envoy may take to come back, when the ledger cannot be written for a part of it.
pub(super) const REVIVAL: Duration = Duration::from_mins(1);

/// What a fault is about. Each has a slot, so that two do not undo each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Tollgate,
    Envoy,
    Runmesh,
    FlowMesh,
    LumId,
    Log,
    Disk,
    Postgres,
    Network,
}

/// How often what is drawn, with one Tollgate.
const ALONE: &[(Target, u32)] = &[
    (Target::Tollgate, 26),
    (Target::Envoy, 12),
    (Target::Runmesh, 18),
    (Target::FlowMesh, 18),
    (Target::LumId, 8),
    (Target::Log, 14),
    (Target::Disk, 4),
];
/// With several that share a ledger.
const SHARED: &[(Target, u32)] = &[
    (Target::Tollgate, 26),
    (Target::Envoy, 8),
    (Target::Runmesh, 12),
    (Target::FlowMesh, 12),
    (Target::LumId, 6),
    (Target::Log, 10),
    (Target::Postgres, 13),
    (Target::Network, 13),
];

/// Lets things fail until it is over, and returns when each of them is back.
pub(super) async fn rage(world: &World, mut random: fastrand::Rng) {
    let mut running = FuturesUnordered::new();
    let mut busy: Vec<Target> = Vec::new();
    loop {
        let pause = millis(&mut random, 100..1500);
        let again = tokio::time::Instant::now() + pause;
        // What goes on goes on during the pause.
        while let Ok(Some(ended)) = tokio::time::timeout_at(again, running.next()).await {
            busy.retain(|other| *other != ended);
        }
        tokio::time::sleep_until(again).await;
        if world.over.is_cancelled() {
            break;
        }
        let target = draw(if world.shared.is_some() { SHARED } else { ALONE }, &mut random);
        let possible = match target {
            Target::Log => !world.relays.is_empty(),
            Target::Network => world.shared.as_ref().is_some_and(|shared| !shared.nodes.is_empty()),
            Target::Disk => world.disk.is_some(),
            _ => true,
        };
        let random = random.fork();
        if possible && !busy.contains(&target) {
            busy.push(target);
            running.push(async move {
                befall(world, target, random).await;
                target
            });
        }
    }
    while running.next().await.is_some() {}
}

fn draw(targets: &[(Target, u32)], random: &mut fastrand::Rng) -> Target {
    let mut dice = random.u32(0..targets.iter().map(|(_, weight)| weight).sum());
    for (target, weight) in targets {
        if dice < *weight {
            return *target;
        }
        dice -= weight;
    }
    Target::Tollgate
}

async fn befall(world: &World, target: Target, mut random: fastrand::Rng) {
    let random = &mut random;
    match target {
        Target::Tollgate => tollgates::befall(world, random).await,
        Target::Envoy => envoy(world, random).await,
        Target::Runmesh => runmesh(world, random).await,
        Target::FlowMesh => flowmesh(world, random).await,
        Target::LumId => lum_id(world, random).await,
        Target::Log => log(world, random).await,
        Target::Disk => disk(world, random).await,
        Target::Postgres => shared::postgres(world, random).await,
        Target::Network => shared::network(world, random).await,
    }
}

/// How long an outage lasts.
pub(super) fn outage(world: &World, random: &mut fastrand::Rng) -> Duration {
    world.outage.mul_f64(0.1 + 0.9 * random.f64())
}

async fn envoy(world: &World, random: &mut fastrand::Rng) {
    let _floor = world.floor.clear().await;
    let pause = millis(random, 0..1000);
    let mut envoy = world.envoy.lock().await;
    // It keeps entries for as long as there is no Tollgate.
    let from = ago(Duration::from_secs(5));
    world.record.count("Envoy killed", format_args!("for {pause:?}"));
    if let Err(error) = envoy.kill_hard().await {
        world.record.fail(format_args!("{error:#}"));
    }
    world.record.lost_between(from, Instant::now());
    tokio::time::sleep(pause).await;
    let deadline = Instant::now() + REVIVAL;
    while let Err(error) = envoy.restart().await {
        if Instant::now() > deadline {
            world.record.fail(format_args!("Envoy does not start: {error:#}"));
            return;
        }
        world.record.note(format_args!("Envoy does not start yet: {error:#}"));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    world.record.note("Envoy runs");
}

async fn runmesh(world: &World, random: &mut fastrand::Rng) {
    let time = outage(world, random);
    let (kind, fault) = match random.u32(0..10) {
        0 | 1 => {
            world.record.count("Runmesh down", format_args!("{time:?}"));
            world.runmesh.stop().await;
            tokio::time::sleep(time).await;
            resume(|| world.runmesh.resume()).await;
            return;
        }
        2 => ("Runmesh slow", Fault::Slow(millis(random, 200..3000))),
        3 => ("Runmesh 500", Fault::status(500)),
        4 => ("Runmesh 429", Fault::retry_after(429, random.u32(1..3))),
        5 => ("Runmesh 401", Fault::status(401)),
        6 => ("Runmesh envelope failure", Fault::Body(r#"{"code": 500, "msg": "no", "data": null}"#.to_owned())),
        7 => ("Runmesh 500 after effect", Fault::AfterEffect(Box::new(Fault::status(500)))),
        8 => ("Runmesh late after effect", Fault::AfterEffect(Box::new(Fault::Slow(millis(random, 200..12_000))))),
        _ => ("Runmesh answers lost", Fault::lost_answer()),
    };
    world.record.count(kind, format_args!("{time:?}, {fault:?}"));
    world.runmesh.fail_with(fault);
    tokio::time::sleep(time).await;
    world.runmesh.heal();
}

async fn resume<F: Future<Output = std::io::Result<()>>>(mut again: impl FnMut() -> F) {
    // Its port may be in use for a moment.
    for _ in 0..100 {
        if again().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn flowmesh(world: &World, random: &mut fastrand::Rng) {
    let time = outage(world, random);
    match random.u32(0..10) {
        0 | 1 => {
            // Whoever submits then may have submitted.
            let _floor = world.floor.clear().await;
            world.record.count("FlowMesh down", format_args!("{time:?}"));
            world.flowmesh.stop().await;
            tokio::time::sleep(time).await;
            resume(|| world.flowmesh.resume()).await;
        }
        2 => {
            let slow = millis(random, 200..2000);
            world.record.count("FlowMesh answers submissions late", format_args!("{time:?}, {slow:?}"));
            world.flowmesh.options(|options| options.submit_delay = slow);
            tokio::time::sleep(time).await;
            world.flowmesh.options(|options| options.submit_delay = Duration::ZERO);
        }
        3 | 4 => {
            let _floor = world.floor.clear().await;
            let fault = match random.u32(0..5) {
                0 => Fault::status(500),
                1 => Fault::Slow(millis(random, 100..2000)),
                2 => Fault::Close,
                3 => Fault::lost_answer(),
                _ => Fault::AfterEffect(Box::new(Fault::Close)),
            };
            world.record.count("FlowMesh fails submissions", format_args!("{time:?}, {fault:?}"));
            world.flowmesh.fail_on("POST /api/v1/workflows", fault);
            tokio::time::sleep(time).await;
            world.flowmesh.heal();
        }
        _ => {
            let what = random.choice(["GET /api/v1/tasks/", "GET /api/v1/workflows", "GET /api/v1/w", "GET /api/v1/"]);
            let what = what.unwrap_or("GET /");
            let fault = wrong_answer(random);
            world.record.count("FlowMesh answers wrongly", format_args!("{time:?}, {what}, {fault:?}"));
            world.flowmesh.fail_on(what, fault);
            tokio::time::sleep(time).await;
            world.flowmesh.heal();
        }
    }
}

fn wrong_answer(random: &mut fastrand::Rng) -> Fault {
    let body = |value: serde_json::Value| Fault::Body(value.to_string());
    match random.u32(0..9) {
        0 => Fault::status(500),
        1 => Fault::Slow(millis(random, 200..4000)),
        2 => Fault::Reset,
        3 => Fault::Close,
        4 => Fault::Status(404, json!({"detail": "Task not found"}).to_string(), Vec::new()),
        5 => Fault::Body("{\"task_id\": ".to_owned()),
        6 => body(json!({})),
        7 => body(json!([])),
        _ => body(json!(null)),
    }
}

async fn lum_id(world: &World, random: &mut fastrand::Rng) {
    let time = outage(world, random);
    let fault = match random.u32(0..5) {
        0 | 1 => {
            world.record.count("lum.id down", format_args!("{time:?}"));
            world.lum_id.stop().await;
            tokio::time::sleep(time).await;
            resume(|| world.lum_id.resume()).await;
            return;
        }
        2 => Fault::status(500),
        3 => Fault::Slow(millis(random, 200..4000)),
        _ => Fault::Body("{\"active\": \"yes\"}".to_owned()),
    };
    world.record.count("lum.id fails", format_args!("{time:?}, {fault:?}"));
    world.lum_id.fail_with(fault);
    tokio::time::sleep(time).await;
    world.lum_id.heal();
}

async fn log(world: &World, random: &mut fastrand::Rng) {
    let time = outage(world, random);
    let meddle = |how: Meddling| world.relays.iter().for_each(|relay| relay.meddle(how));
    match random.u32(0..4) {
        0 => {
            let count = random.usize(1..200);
            let Some(relay) = random.choice(&world.relays) else { return };
            match relay.replay(count).await {
                Ok(sent) => world.record.count("log entries replayed", sent),
                Err(error) => world.record.note(format_args!("nothing replayed: {error:#}")),
            }
        }
        1 => {
            world.record.count("log entries repeated", format_args!("{time:?}"));
            meddle(Meddling { repeat: 0.7, ..Meddling::default() });
            tokio::time::sleep(time).await;
            meddle(Meddling::default());
        }
        drop => {
            let _floor = world.floor.clear().await;
            let (kind, drop) = if drop == 2 { ("log entries lost", 1.0) } else { ("log entries mixed up", 0.2) };
            world.record.count(kind, format_args!("{time:?}"));
            meddle(Meddling { drop, repeat: 0.2, delay: 0.3 });
            tokio::time::sleep(time).await;
            meddle(Meddling::default());
            tokio::time::sleep(RECOVERED).await;
        }
    }
}

async fn disk(world: &World, random: &mut fastrand::Rng) {
    let Some(disk) = &world.disk else { return };
    let _floor = world.floor.clear().await;
    let time = outage(world, random);
    world.record.count("disk full", format_args!("{time:?}"));
    let full = world.record.unwritable(None);
    if let Err(error) = disk.fill() {
        world.record.note(format_args!("not filled: {error:#}"));
    }
    tokio::time::sleep(time).await;
    if let Err(error) = disk.empty() {
        world.record.fail(format_args!("{error:#}"));
    }
    world.record.writable(full);
    // The rows that could not be written are written by then, or lost with their process.
    tokio::time::sleep(Duration::from_secs(6)).await;
}
