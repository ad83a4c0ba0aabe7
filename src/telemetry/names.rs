//! Every value that a label of a counter can have, so that each series is there from the start: what never happened is 0,
//! and an alert on a rate sees also the first failure.
//!
//! docs/METRICS.md says what each of them means. A value that is missing here or there fails the tests.

/// `reason` of `tollgate_check_decisions_total`.
pub const DECISIONS: &[&str] = &[
    "public",
    "allowed",
    "path",
    "missing_bearer",
    "inactive_token",
    "insufficient_balance",
    "too_many_unknown",
    "identity_unavailable",
    "cancelled",
];

/// `outcome` of `tollgate_identity_cache_total`.
pub const IDENTITY_CACHE: &[&str] = &["hit", "stale", "hit_inactive", "miss", "unavailable", "over_budget"];

/// `outcome` of `tollgate_introspections_total`.
pub const INTROSPECTIONS: &[&str] = &["active", "inactive", "timeout", "network", "too_large", "status", "malformed"];

/// `outcome` of `tollgate_preflights_total`.
pub const PREFLIGHTS: &[&str] = &[
    "sufficient",
    "insufficient",
    "no_email",
    "timeout",
    "network",
    "too_large",
    "status",
    "malformed",
    "busy",
    "aborted",
];

/// `outcome` of `tollgate_supplier_lookups_total`.
pub const SUPPLIERS: &[&str] =
    &["found", "none", "timeout", "network", "too_large", "status", "malformed", "busy", "paused", "aborted"];

/// `outcome` of `tollgate_submissions_total`.
pub const SUBMISSIONS: &[&str] = &["opened", "repeated", "failed", "given_up"];

/// `kind` of `tollgate_log_entries_total`.
pub const LOG_ENTRIES: &[&str] = &[
    "submitted",
    "submission_refused",
    "submission_ended",
    "task_ended",
    "task_touched",
    "usage_reported",
    "workflow_seen",
    "ignored_not_http",
    "ignored_not_final",
    "ignored_not_ours",
    "ignored_not_2xx",
    "ignored_irrelevant",
    "ignored_malformed",
    "ignored_no_billing",
    "lost_intake_closed",
];

/// `kind` of `tollgate_ledger_errors_total`.
pub const LEDGER_ERRORS: &[&str] = &[
    "open_submission",
    "record_events",
    "refused_event",
    "claim",
    "next_due",
    "record",
    "prune",
    "heartbeat",
    "panic",
];

/// `outcome` of `tollgate_settlements_total`.
pub const SETTLEMENTS: &[&str] = &[
    "charged",
    "held",
    "merged",
    "nothing",
    "ignored",
    "gone",
    "already",
    "deferred",
    "not_over",
    "unknown",
    "unreadable",
    "refused",
    "timeout",
    "network",
    "status",
];

/// `outcome` of `tollgate_sweeps_total`.
pub const SWEEPS: &[&str] = &[
    "settled",
    "open",
    "waiting_for_log",
    "waiting_for_row",
    "unknown",
    "gone",
    "found_by_list",
    "timeout",
    "network",
    "too_large",
    "status",
    "malformed",
];

/// `outcome` of `tollgate_posts_total`.
pub const POSTS: &[&str] =
    &["posted", "rejected", "unauthorized", "envelope", "status", "timeout", "network", "too_large"];

/// `kind` of `tollgate_pruned_rows_total`.
pub const PRUNED: &[&str] = &["charges", "tasks", "workflows", "submissions"];

/// `outcome` of `tollgate_secret_reloads_total`.
pub const SECRET_RELOADS: &[&str] = &["ok", "failed"];

/// `outcome` of `tollgate_tls_handshakes_total`.
pub const TLS_HANDSHAKES: &[&str] = &["ok", "refused", "gone", "timeout", "displaced", "panic"];

/// `outcome` of `tollgate_tls_reloads_total`.
pub const TLS_RELOADS: &[&str] = &["ok", "failed"];

/// `outcome` of `tollgate_span_exports_total`.
pub const SPAN_EXPORTS: &[&str] = &["ok", "status", "timeout", "network", "too_large"];
