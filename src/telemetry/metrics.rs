//! The metric families, and what labels they have.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::{names, process};

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

/// What the memory of tokens had to do with a Check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CacheLabels {
    /// A name from [`Cache::as_str`].
    pub cache: &'static str,
}

/// Where the answer to "whose token is this?" came from, as far as it tells how long a Check takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cache {
    /// Out of memory.
    Hit,
    /// Out of memory and past its time, because lum.id fails.
    Stale,
    /// Refused without lum.id: the token was refused just now, or its source has brought too many of those.
    Refused,
    /// lum.id was asked, and waited for.
    Miss,
    /// No token was looked up.
    #[default]
    None,
}

impl Cache {
    const ALL: [Self; 5] = [Self::Hit, Self::Stale, Self::Refused, Self::Miss, Self::None];

    fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Refused => "refused",
            Self::Miss => "miss",
            Self::None => "none",
        }
    }
}

/// How long Checks take. Each histogram is at hand, so that a Check does not have to look for it.
#[derive(Debug, Clone)]
pub struct CheckTimes {
    /// For whoever reads them all.
    pub family: Family<CacheLabels, Histogram, fn() -> Histogram>,
    by_cache: [Histogram; Cache::ALL.len()],
}

impl CheckTimes {
    fn new() -> Self {
        // From a cache hit (tens of microseconds) to Envoy's time limit.
        let family = Family::new_with_constructor(
            (|| {
                Histogram::new([
                    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
                    3.0, 10.0,
                ])
            }) as fn() -> Histogram,
        );
        let by_cache = Cache::ALL.map(|cache| family.get_or_create_owned(&CacheLabels { cache: cache.as_str() }));
        Self { family, by_cache }
    }

    /// The histogram of Checks of which the memory of tokens said this.
    #[must_use]
    pub fn of(&self, cache: Cache) -> &Histogram {
        &self.by_cache[cache as usize]
    }
}

/// Every metric of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub decisions: Family<DecisionLabels, Counter>,
    pub check_times: CheckTimes,
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
    pub posts_in_flight: Gauge,
    pub posting_paused: Gauge,
    pub asking_paused: Gauge,
    pub pruned: Family<KindLabels, Counter>,
    pub secret_reloads: Family<OutcomeLabels, Counter>,
}

impl Metrics {
    /// Registers every family.
    pub fn register(registry: &mut Registry) -> Self {
        let outcome = |outcome| OutcomeLabels { outcome };
        let kind = |kind| KindLabels { kind };
        let metrics = Self {
            decisions: zeros(names::DECISIONS, |reason| DecisionLabels { reason }),
            check_times: CheckTimes::new(),
            identity_cache: zeros(names::IDENTITY_CACHE, outcome),
            introspections: zeros(names::INTROSPECTIONS, outcome),
            preflights: zeros(names::PREFLIGHTS, outcome),
            suppliers: zeros(names::SUPPLIERS, outcome),
            submissions: zeros(names::SUBMISSIONS, outcome),
            log_entries: zeros(names::LOG_ENTRIES, kind),
            log_streams: Gauge::default(),
            intake_queued: Gauge::default(),
            ledger_errors: zeros(names::LEDGER_ERRORS, kind),
            settlements: zeros(names::SETTLEMENTS, outcome),
            sweeps: zeros(names::SWEEPS, outcome),
            posts: zeros(names::POSTS, outcome),
            posts_in_flight: Gauge::default(),
            posting_paused: Gauge::default(),
            asking_paused: Gauge::default(),
            pruned: zeros(names::PRUNED, kind),
            secret_reloads: zeros(names::SECRET_RELOADS, outcome),
        };
        let m = &metrics;
        registry.register("tollgate_check_decisions", "Checks answered, by reason", m.decisions.clone());
        registry.register("tollgate_check_duration_seconds", "Time to answer a Check", m.check_times.family.clone());
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
        registry.register("tollgate_posts_in_flight", "Charges being posted", m.posts_in_flight.clone());
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
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("tollgate_build", "The version of this Tollgate", build);
        process::register(registry);
        metrics
    }
}

/// A family with a counter for each of these values, 0 to begin with.
#[must_use]
pub fn zeros<L>(values: &[&'static str], labels: impl Fn(&'static str) -> L) -> Family<L, Counter>
where
    L: Clone + std::hash::Hash + Eq,
{
    let family = Family::default();
    for value in values {
        let _: Counter = family.get_or_create_owned(&labels(value));
    }
    family
}

#[cfg(test)]
impl Metrics {
    /// Metrics nobody reads.
    #[must_use]
    pub fn unread() -> Self {
        Self::register(&mut Registry::default())
    }
}
