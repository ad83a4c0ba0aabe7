//! What goes wrong where several Tollgates share a PostgreSQL: the database, and the network in between.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    faults::{RECOVERED, REVIVAL, outage},
    world::{World, ago},
};
use crate::stack::{Cut, Node, Postgres};

/// How long everybody may take to be at work again.
const SETTLING: Duration = Duration::from_secs(12);
/// Rows that were waiting in memory are committed so long after a Tollgate is ready again.
const COMMITTED: Duration = Duration::from_secs(1);

/// What the Tollgates of a round share.
pub(super) struct Shared {
    pub postgres: Arc<Postgres>,
    /// The machine of each; none where the round has no network of its own.
    pub nodes: Vec<Node>,
}

pub(super) async fn postgres(world: &World, random: &mut fastrand::Rng) {
    let Some(shared) = &world.shared else { return };
    let _floor = world.floor.clear().await;
    let crash = random.bool();
    let (kind, time) = match (random.u32(0..3), crash) {
        (0, false) => ("PostgreSQL restarted", Duration::ZERO),
        (0, true) => ("PostgreSQL crashed", Duration::ZERO),
        _ => ("PostgreSQL away", outage(world, random)),
    };
    world.record.count(kind, format_args!("{time:?}, crash {crash}"));
    let span = world.record.unwritable(None);
    let down = if crash { Postgres::crash } else { Postgres::stop };
    manage(world, &shared.postgres, down).await;
    tokio::time::sleep(time).await;
    manage(world, &shared.postgres, Postgres::start).await;
    world.record.writable(span);
    world.record.note("PostgreSQL runs");
    settled(world).await;
}

async fn manage(world: &World, postgres: &Arc<Postgres>, what: fn(&Postgres) -> Result<()>) {
    let postgres = postgres.clone();
    let done = tokio::task::spawn_blocking(move || what(&postgres)).await;
    if let Err(error) = done.unwrap_or_else(|error| Err(error.into())) {
        world.record.fail(format_args!("PostgreSQL: {error:#}"));
    }
}

pub(super) async fn network(world: &World, random: &mut fastrand::Rng) {
    let Some(shared) = &world.shared else { return };
    let _floor = world.floor.clear().await;
    let which = random.usize(0..shared.nodes.len());
    let (node, time) = (&shared.nodes[which], outage(world, random));
    let (kind, cuts) = drawn(random);
    world.record.count(kind, format_args!("Tollgate {which}, {time:?}"));
    let from = ago(RECOVERED);
    // One way is enough: nothing is known to be committed without its answer, though it may be.
    let unwritable = cuts.iter().any(|cut| matches!(cut, Cut::ToDatabase | Cut::FromDatabase));
    let unheard = cuts.iter().any(|cut| matches!(cut, Cut::ToService | Cut::FromService));
    let span = unwritable.then(|| world.record.unwritable(Some(which)));
    for cut in cuts {
        noted(world, node.cut(*cut));
    }
    tokio::time::sleep(time).await;
    for cut in cuts {
        noted(world, node.heal(*cut));
    }
    world.record.note(format_args!("Tollgate {which} is connected"));
    if let Some(span) = span {
        world.record.writable(span);
    }
    settled(world).await;
    if unheard {
        world.record.lost_between(from, Instant::now());
    }
}

/// What is cut, both ways or one of them: what a Tollgate sends, or what is sent to it.
fn drawn(random: &mut fastrand::Rng) -> (&'static str, &'static [Cut]) {
    use Cut::{FromDatabase, FromService, ToDatabase, ToService};
    match (random.u32(0..3), random.u32(0..3)) {
        (0, 0) => ("cut off from PostgreSQL", &[ToDatabase, FromDatabase]),
        (0, 1) => ("cut off on the way to PostgreSQL", &[ToDatabase]),
        (0, _) => ("cut off on the way from PostgreSQL", &[FromDatabase]),
        (1, 0) => ("cut off from Envoy", &[ToService, FromService]),
        (1, 1) => ("cut off on the way to Envoy", &[FromService]),
        (1, _) => ("cut off on the way from Envoy", &[ToService]),
        (_, 0) => ("cut off from both", &[ToDatabase, FromDatabase, ToService, FromService]),
        (_, 1) => ("cut off on the way to both", &[ToDatabase, FromService]),
        (_, _) => ("cut off on the way from both", &[FromDatabase, ToService]),
    }
}

fn noted(world: &World, done: Result<()>) {
    if let Err(error) = done {
        world.record.fail(format_args!("the network: {error:#}"));
    }
}

/// Waits until every Tollgate that is nobody else's matter has committed what it had, and Envoy takes it for healthy; not for ever,
/// because something else may be wrong by now.
async fn settled(world: &World) {
    let deadline = Instant::now() + SETTLING;
    while Instant::now() < deadline {
        let mut all = true;
        for tollgate in &world.tollgates {
            let Ok(tollgate) = tollgate.try_lock() else { continue };
            let queued = tollgate.metric("tollgate_intake_queued_events").await;
            all &= queued == Some(0.0) && tollgate.is_ready().await;
        }
        if let Ok(envoy) = world.envoy.try_lock() {
            all &= are_healthy(&envoy, world.tollgates.len()).await;
        }
        if all {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(COMMITTED).await;
}

/// Whether Envoy takes so many Tollgates for healthy.
async fn are_healthy(envoy: &crate::stack::Envoy, count: usize) -> bool {
    for cluster in ["tollgate_authz", "tollgate_als"] {
        let healthy = envoy.stat(&format!("cluster.{cluster}.membership_healthy")).await;
        if healthy.and_then(|healthy| usize::try_from(healthy).ok()) != Some(count) {
            return false;
        }
    }
    true
}

/// At the end: every Tollgate is ready, and Envoy asks each.
pub(super) async fn all_serve(world: &World) -> Result<()> {
    let envoy = world.envoy.lock().await;
    crate::stack::wait_for("every Tollgate to be ready, and healthy to Envoy", REVIVAL, async || {
        for tollgate in &world.tollgates {
            if !tollgate.lock().await.is_ready().await {
                return None;
            }
        }
        are_healthy(&envoy, world.tollgates.len()).await.then_some(())
    })
    .await
}
