//! The bounds.

use std::time::Duration;

/// Sizes, counts and times that are not the operator's business but must not hide in code either.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Active tokens kept in memory.
    pub identity_cache_entries: u64,
    /// How long an active answer of lum.id is trusted.
    pub identity_cache_ttl: Duration,
    /// Refused tokens kept in memory.
    pub refused_cache_entries: u64,
    /// How long a refusal of lum.id is trusted: a token that was just made must not be refused for longer.
    pub refused_cache_ttl: Duration,
    /// Calls to lum.id in flight at once for unknown tokens.
    pub introspections_in_flight: usize,
    /// And for tokens that are known already: a flood of unknown ones cannot keep them from being refreshed.
    pub introspections_reserved: usize,
    /// Calls to lum.id in flight at once for the unknown tokens of one source.
    pub introspections_per_source: usize,
    /// How long a call waits for its place.
    pub place_wait: Duration,
    /// Calls that wait for a place among those to lum.id, or to Runmesh, or to FlowMesh; past it none is begun.
    pub calls_waiting: usize,
    /// How many refused tokens a source may bring at once before it is told to wait…
    pub refusal_burst: u32,
    /// …and how long each of them then counts.
    pub refusal_interval: Duration,
    /// Sources whose refusals are counted.
    pub refusal_sources: u64,
    /// lum.id's time limit.
    pub introspection_timeout: Duration,
    /// Runmesh's time limit for a preflight.
    pub preflight_timeout: Duration,
    /// Preflights in flight at once; past it submissions pass unasked.
    pub preflights_in_flight: usize,
    /// Runmesh's time limit for an entry.
    pub post_timeout: Duration,
    /// FlowMesh's time limit when settling and sweeping, where nobody waits.
    pub flowmesh_timeout: Duration,
    /// How long a Check waits for FlowMesh to name a supplier before it goes without.
    pub supplier_timeout: Duration,
    /// How long a look-up may go on after that, for whoever comes next.
    pub supplier_lookup_timeout: Duration,
    /// Look-ups in flight at once.
    pub supplier_lookups_in_flight: usize,
    /// How long a Check waits for the submission row before it goes without.
    pub submission_timeout: Duration,
    /// Workers and task assignments kept in memory.
    pub supplier_cache_entries: u64,
    /// How often the worker directory is read anew.
    pub supplier_refresh: Duration,
    /// Log events received and not yet committed; past it the streams are not read.
    pub intake_queue: usize,
    /// Rows of submissions that the ledger did not take in time, some hundred bytes each; past it they are given up, and what such a
    /// submission made may be held. Minutes of a busy edge: log events cannot take these places.
    pub intake_rows: usize,
    /// Log events committed in one transaction at most: 10 to 100 ms, for which a submission may have to wait.
    pub intake_batch: usize,
    /// Largest access-log message: above Envoy's buffer (2 MiB in the shipped bootstrap).
    pub log_message_bytes: usize,
    /// TLS handshakes under way at once; past it the oldest makes room.
    pub tls_handshakes: usize,
    /// A TLS handshake's time limit.
    pub tls_handshake_timeout: Duration,
    /// Without a word for so long another replica is taken for dead: a database that is away, a long pause or a restart must not
    /// look like it, for what it may have let through is then held rather than matched.
    pub replica_lost_after: Duration,
    /// How often the files of mTLS are looked at for a change.
    pub tls_refresh: Duration,
    /// How often the files of secrets are.
    pub secret_refresh: Duration,
    /// Tasks asked after at once.
    pub settling_concurrency: usize,
    /// Workflows asked after at once.
    pub sweeping_concurrency: usize,
    /// Posts in flight at once: some thousands a second to a Runmesh that answers in 10 ms, with as long again for the commit.
    pub posting_concurrency: usize,
    /// Between two prunings of the ledger; also how long what FlowMesh listed has to find its owner before.
    pub prune_interval: Duration,
    /// From the log service's NOT_SERVING to the end of its streams: Envoy must have noticed by then.
    pub drain_delay: Duration,
    /// From the end of the drain to the end of the process, whatever is still under way.
    pub shutdown_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            identity_cache_entries: 10_000,
            identity_cache_ttl: Duration::from_mins(1),
            refused_cache_entries: 10_000,
            refused_cache_ttl: Duration::from_secs(5),
            introspections_in_flight: 192,
            introspections_reserved: 64,
            introspections_per_source: 64,
            place_wait: Duration::from_millis(300),
            calls_waiting: 4096,
            refusal_burst: 100,
            refusal_interval: Duration::from_millis(100),
            refusal_sources: 10_000,
            introspection_timeout: Duration::from_secs(3),
            preflight_timeout: Duration::from_secs(5),
            preflights_in_flight: 256,
            post_timeout: Duration::from_secs(10),
            flowmesh_timeout: Duration::from_secs(10),
            supplier_timeout: Duration::from_millis(300),
            supplier_lookup_timeout: Duration::from_secs(3),
            supplier_lookups_in_flight: 32,
            replica_lost_after: Duration::from_mins(5),
            submission_timeout: Duration::from_secs(1),
            supplier_cache_entries: 10_000,
            supplier_refresh: Duration::from_secs(15),
            intake_queue: 4096,
            intake_rows: 16_384,
            intake_batch: 2048,
            log_message_bytes: 16 * 1024 * 1024,
            tls_handshakes: 256,
            tls_handshake_timeout: Duration::from_secs(5),
            tls_refresh: Duration::from_secs(1),
            secret_refresh: Duration::from_secs(1),
            settling_concurrency: 8,
            sweeping_concurrency: 4,
            posting_concurrency: 96,
            prune_interval: Duration::from_mins(10),
            drain_delay: Duration::from_millis(2500),
            shutdown_deadline: Duration::from_secs(15),
        }
    }
}
