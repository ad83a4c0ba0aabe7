//! What `/metrics` has of a replica.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Of this one, and of the others as this one knows them.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub known: Gauge,
    pub on_duty: Gauge,
    pub given_up: Counter,
    pub clock_offset: Gauge<f64, AtomicU64>,
}

impl Figures {
    /// Makes them families of `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("tollgate_replicas", "Replicas that share the ledger, this one included", self.known.clone());
        registry.register(
            "tollgate_replica_on_duty",
            "1 while this replica is the one that sweeps, compares with FlowMesh and prunes",
            self.on_duty.clone(),
        );
        registry.register(
            "tollgate_replicas_given_up",
            "Replicas that this one was the first not to hear of any more",
            self.given_up.clone(),
        );
        registry.register(
            "tollgate_ledger_clock_offset_seconds",
            "How far this machine's clock and the database's are apart",
            self.clock_offset.clone(),
        );
    }
}
