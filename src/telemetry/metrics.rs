//! The metric families, and what labels they have.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Why a Check was answered as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DecisionLabels {
    /// A name from `authz::Decision::reason`.
    pub reason: &'static str,
}

/// How a call or a stage went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    pub outcome: &'static str,
}

/// What kind of log entry or event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    pub kind: &'static str,
}

/// Every metric of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub decisions: Family<DecisionLabels, Counter>,
    pub check_seconds: Histogram,
    pub identity_cache: Family<OutcomeLabels, Counter>,
    pub introspections: Family<OutcomeLabels, Counter>,
    pub preflights: Family<OutcomeLabels, Counter>,
    pub suppliers: Family<OutcomeLabels, Counter>,
    pub submissions: Family<OutcomeLabels, Counter>,
    pub log_entries: Family<KindLabels, Counter>,
    pub log_streams: Gauge,
    pub intake_queued: Gauge,
    pub ledger_errors: Family<KindLabels, Counter>,
    pub settlements: Family<OutcomeLabels, Counter>,
    pub sweeps: Family<OutcomeLabels, Counter>,
    pub posts: Family<OutcomeLabels, Counter>,
    pub posting_paused: Gauge,
    pub asking_paused: Gauge,
    pub pruned: Family<KindLabels, Counter>,
    pub secret_reloads: Family<OutcomeLabels, Counter>,
}

impl Metrics {
    /// Registers every family.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            decisions: Family::default(),
            // From a cache hit (tens of microseconds) to Envoy's time limit.
            check_seconds: Histogram::new([0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 3.0, 10.0]),
            identity_cache: Family::default(),
            introspections: Family::default(),
            preflights: Family::default(),
            suppliers: Family::default(),
            submissions: Family::default(),
            log_entries: Family::default(),
            log_streams: Gauge::default(),
            intake_queued: Gauge::default(),
            ledger_errors: Family::default(),
            settlements: Family::default(),
            sweeps: Family::default(),
            posts: Family::default(),
            posting_paused: Gauge::default(),
            asking_paused: Gauge::default(),
            pruned: Family::default(),
            secret_reloads: Family::default(),
        };
        let m = &metrics;
        registry.register("tollgate_check_decisions", "Checks answered, by reason", m.decisions.clone());
        registry.register("tollgate_check_duration_seconds", "Time to answer a Check", m.check_seconds.clone());
        registry.register("tollgate_identity_cache", "Token look-ups, by outcome", m.identity_cache.clone());
        registry.register("tollgate_introspections", "Calls to lum.id, by outcome", m.introspections.clone());
        registry.register("tollgate_preflights", "Balance preflights, by outcome", m.preflights.clone());
        registry.register("tollgate_supplier_lookups", "Suppliers looked for, by outcome", m.suppliers.clone());
        registry.register("tollgate_submissions", "Submission rows, by outcome", m.submissions.clone());
        registry.register("tollgate_log_entries", "Access-log entries received, by kind", m.log_entries.clone());
        registry.register("tollgate_log_streams", "Access-log streams open", m.log_streams.clone());
        registry.register("tollgate_intake_queued_events", "Log events not yet committed", m.intake_queued.clone());
        registry.register(
            "tollgate_ledger_errors",
            "Failed ledger operations and steps that panicked, by kind",
            m.ledger_errors.clone(),
        );
        registry.register("tollgate_settlements", "Tasks asked after, by outcome", m.settlements.clone());
        registry.register("tollgate_sweeps", "Workflows asked after, by outcome", m.sweeps.clone());
        registry.register("tollgate_posts", "Entries posted to Runmesh, by outcome", m.posts.clone());
        registry.register(
            "tollgate_posting_paused",
            "1 while the circuit to Runmesh is open",
            m.posting_paused.clone(),
        );
        registry.register(
            "tollgate_asking_paused",
            "1 while the circuit to FlowMesh, for tasks and workflows, is open",
            m.asking_paused.clone(),
        );
        registry.register("tollgate_pruned_rows", "Old rows deleted from the ledger, by kind", m.pruned.clone());
        let help = "Changes of the files of secrets, by outcome";
        registry.register("tollgate_secret_reloads", help, m.secret_reloads.clone());
        metrics
    }
}

#[cfg(test)]
impl Metrics {
    /// Metrics nobody reads.
    #[must_use]
    pub fn unread() -> Self {
        Self::register(&mut Registry::default())
    }
}
