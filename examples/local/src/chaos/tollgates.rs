//! What goes wrong with Tollgate itself: one of several, or all of them.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::MutexGuard;

use super::{
    faults::{RECOVERED, REVIVAL, outage},
    world::{World, ago, millis},
};
use crate::stack::Tollgate;

/// Tollgates that are nobody else's meanwhile, by number.
type Ours<'a> = Vec<(usize, MutexGuard<'a, Tollgate>)>;

pub(super) async fn befall(world: &World, random: &mut fastrand::Rng) {
    let which = some(world, random);
    match random.u32(0..10) {
        0..3 => {
            let _floor = world.floor.clear().await;
            kill(world, &which, "Tollgate killed", millis(random, 0..1500)).await;
        }
        3..6 => {
            let _floor = world.floor.clear().await;
            // Right after somebody got a 201.
            let _ = tokio::time::timeout(Duration::from_secs(3), world.accepted.notified()).await;
            tokio::time::sleep(Duration::from_millis(random.u64(0..120))).await;
            kill(world, &which, "Tollgate killed after a 201", millis(random, 0..300)).await;
        }
        6 => {
            let _floor = world.floor.clear().await;
            for _ in 0..3 {
                kill(world, &which, "Tollgate killed in a burst", millis(random, 0..200)).await;
                tokio::time::sleep(millis(random, 0..800)).await;
            }
        }
        7 if world.shared.is_some() => freeze_for_long(world, which[0], outage(world, random)).await,
        7 => {
            let tollgate = world.tollgates[which[0]].lock().await;
            let time = millis(random, 200..3000);
            world.record.count("Tollgate frozen", format_args!("{time:?}"));
            let _ = tollgate.process().freeze();
            tokio::time::sleep(time).await;
            let _ = tollgate.process().thaw();
        }
        _ => {
            let _floor = world.floor.clear().await;
            stop(world, &which, millis(random, 0..500)).await;
        }
    }
}

/// One of several mostly, and sometimes all.
fn some(world: &World, random: &mut fastrand::Rng) -> Vec<usize> {
    match world.tollgates.len() {
        1 => vec![0],
        several if random.f64() < 0.2 => (0..several).collect(),
        several => vec![random.usize(0..several)],
    }
}

async fn ours<'a>(world: &'a World, which: &[usize]) -> Ours<'a> {
    let mut ours = Vec::new();
    for number in which {
        ours.push((*number, world.tollgates[*number].lock().await));
    }
    ours
}

/// Since when entries may be lost that these received.
fn uncommitted(world: &World, which: &[usize]) -> Instant {
    let lately = ago(Duration::from_secs(1));
    which.iter().map(|number| world.record.uncommitted_since(*number, lately)).min().unwrap_or(lately)
}

async fn kill(world: &World, which: &[usize], kind: &'static str, pause: Duration) {
    let mut ours = ours(world, which).await;
    let from = uncommitted(world, which);
    let kind = if which.len() > 1 { "all Tollgates killed" } else { kind };
    world.record.count(kind, format_args!("{which:?}, for {pause:?}"));
    for (number, tollgate) in &ours {
        if let Err(error) = tollgate.kill_hard().await {
            world.record.fail(format_args!("{error:#}"));
        }
        world.record.killed(*number);
    }
    tokio::time::sleep(pause).await;
    join_all(ours.iter_mut().map(|(number, tollgate)| revive(world, *number, tollgate))).await;
    tokio::time::sleep(RECOVERED).await;
    world.record.lost_between(from, Instant::now());
}

async fn stop(world: &World, which: &[usize], pause: Duration) {
    let mut ours = ours(world, which).await;
    let from = uncommitted(world, which);
    let kind = if which.len() > 1 { "all Tollgates stopped" } else { "Tollgate stopped" };
    world.record.count(kind, format_args!("{which:?}, for {pause:?}"));
    let stopping = async |number: usize, tollgate: &Tollgate| match tollgate.terminate().await {
        Ok(status) if status.success() => {}
        Ok(status) if world.record.was_unwritable_lately(number) => {
            // What it had received could not be committed.
            world.record.killed(number);
            world.record.count("stops that were not clean", status);
        }
        Ok(status) => {
            let lines = tollgate.process().last_lines();
            world.record.fail(format_args!("a stop was not clean, {status}; {lines}"));
        }
        Err(error) => world.record.fail(format_args!("{error:#}")),
    };
    join_all(ours.iter().map(|(number, tollgate)| stopping(*number, tollgate))).await;
    tokio::time::sleep(pause).await;
    join_all(ours.iter_mut().map(|(number, tollgate)| revive(world, *number, tollgate))).await;
    tokio::time::sleep(RECOVERED).await;
    world.record.lost_between(from, Instant::now());
}

/// Long enough for Envoy to give it up, and what it was asked and told with it.
async fn freeze_for_long(world: &World, which: usize, time: Duration) {
    let _floor = world.floor.clear().await;
    let tollgate = world.tollgates[which].lock().await;
    let from = uncommitted(world, &[which]);
    world.record.count("Tollgate frozen", format_args!("{which}, {time:?}"));
    let _ = tollgate.process().freeze();
    tokio::time::sleep(time).await;
    let _ = tollgate.process().thaw();
    tokio::time::sleep(RECOVERED).await;
    world.record.lost_between(from, Instant::now());
}

/// Starts Tollgate again, as its supervisor would: until it runs.
async fn revive(world: &World, number: usize, tollgate: &mut Tollgate) {
    let deadline = Instant::now() + REVIVAL;
    while let Err(error) = tollgate.restart().await {
        if Instant::now() > deadline {
            world.record.fail(format_args!("Tollgate does not start: {error:#}"));
            return;
        }
        world.record.count("starts that failed", format_args!("{error:#}"));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    world.record.note(format_args!("Tollgate {number} runs"));
}
