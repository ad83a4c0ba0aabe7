//! What works behind the access log, each by itself and told by the others only that there is news.

use std::sync::Arc;

use jiff::Timestamp;

use crate::access_log::{self, Intake, Ways};
use crate::circuit::Circuit;
use crate::config::Config;
use crate::drive::{Driver, News};
use crate::ledger::Ledger;
use crate::ledger::opened::Own;
use crate::lifecycle::{Lifecycle, Stopping};
use crate::poster::Poster;
use crate::retention::Pruner;
use crate::settlement::{reconcile::Reconciler, tasks::Settler, workflows::Sweeper};
use crate::supplier::Suppliers;
use crate::telemetry::Metrics;
use crate::upstream::flowmesh::FlowMesh;
use crate::upstream::runmesh::Runmesh;

/// What the billing tasks share.
pub struct Parts<'a> {
    pub config: &'a Config,
    pub ledger: &'a Arc<dyn Ledger>,
    pub own: Own,
    pub flowmesh: FlowMesh,
    pub suppliers: &'a Suppliers,
    pub metrics: &'a Metrics,
}

/// Starts everything behind the access log: intake, settling, sweeping, reconciling, posting, pruning.
pub fn spawn(
    lifecycle: &mut Lifecycle,
    stopping: &Stopping,
    runmesh: Runmesh,
    Parts { config, ledger, own: Own { unrecorded, duty, .. }, flowmesh, suppliers, metrics }: Parts<'_>,
) -> Ways {
    let news = News::default();
    let limits = &config.limits;
    let stop = &stopping.stop;
    let circuit = Circuit::new(metrics.asking_paused.clone());
    let settler = Settler {
        ledger: ledger.clone(),
        flowmesh: flowmesh.clone(),
        circuit: circuit.clone(),
        suppliers: suppliers.clone(),
        news: news.clone(),
        metrics: metrics.clone(),
    };
    let sweeper = Sweeper {
        ledger: ledger.clone(),
        flowmesh: flowmesh.clone(),
        circuit,
        unrecorded: unrecorded.clone(),
        duty: duty.clone(),
        grace: config.reconcile_grace,
        started: Timestamp::now(),
        news: news.clone(),
        metrics: metrics.clone(),
    };
    let reconciler = Reconciler {
        ledger: ledger.clone(),
        flowmesh,
        duty: duty.clone(),
        interval: config.reconcile_interval,
        grace: config.reconcile_grace,
        news: news.clone(),
        metrics: metrics.clone(),
    };
    let poster = Poster::new(ledger.clone(), runmesh, limits.post_timeout, metrics.clone());
    let pruner = Pruner {
        ledger: ledger.clone(),
        duty,
        retention: config.retention,
        interval: limits.prune_interval,
        metrics: metrics.clone(),
    };
    let driver = Driver { ledger: ledger.clone(), news: news.clone(), metrics: metrics.clone(), stop: stop.clone() };
    lifecycle.spawn("settling", driver.clone().drive(settler, limits.settling_concurrency));
    lifecycle.spawn("sweeping", driver.clone().drive(sweeper, limits.sweeping_concurrency));
    lifecycle.spawn("posting", driver.drive(poster, limits.posting_concurrency));
    lifecycle.spawn("reconciling", reconciler.run(stop.clone()));
    lifecycle.spawn("pruning", pruner.run(stop.clone()));
    let (events, queue) = access_log::queue(limits.intake_queue, limits.intake_rows);
    lifecycle.spawn(
        "intake",
        Intake::new(ledger.clone(), queue, news, unrecorded, limits.intake_batch, metrics.clone()).run(),
    );
    events
}
