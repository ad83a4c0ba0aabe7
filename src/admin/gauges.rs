//! The gauges that are read when they are asked for: what is in memory, and apart from that what waits in the ledger, of which
//! nothing may be said while it cannot be read.

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Admin;
use crate::guard::Guard;
use crate::ledger::Backlog;

/// Figures that are read when they are asked for.
#[derive(Debug, Default)]
pub struct Gauges {
    billing: Gauge,
    guard: Gauge,
    dropped_log_lines: Gauge,
    identities: Gauge,
    refused: Gauge,
    sources: Gauge,
    introspections: Gauge,
    introspections_waiting: Gauge,
    preflights: Gauge,
    suppliers: Gauge,
    lookups: Gauge,
    lookups_waiting: Gauge,
    /// Absent where there is none.
    ledger_readable: Option<Gauge>,
    pub rows: Rows,
}

/// How many rows of the ledger wait, and for how long.
#[derive(Debug, Default)]
pub struct Rows {
    /// Its own, which is left out of a scrape while the ledger cannot be read: old figures would hide that.
    registry: Registry,
    open_submissions: Gauge,
    open_workflows: Gauge,
    held_workflows: Gauge,
    due_tasks: Gauge,
    held_tasks: Gauge,
    gone_tasks: Gauge,
    pending: Gauge,
    held: Gauge,
    rejected: Gauge,
    oldest_pending_seconds: Gauge,
    oldest_held_seconds: Gauge,
    oldest_rejected_seconds: Gauge,
    oldest_due_seconds: Gauge,
    oldest_open_seconds: Gauge,
}

impl Gauges {
    /// Registers every gauge; the one on the ledger only where there is one.
    #[must_use]
    pub fn register(registry: &mut Registry, with_ledger: bool) -> Self {
        let gauges =
            Self { ledger_readable: with_ledger.then(Gauge::default), rows: Rows::register(), ..Self::default() };
        let mut add = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        add("tollgate_billing_enabled", "1 where charges are made and posted", &gauges.billing);
        add("tollgate_guard_enabled", "1 where submissions pass a balance preflight", &gauges.guard);
        let help = "Log lines that standard error did not take in time";
        add("tollgate_log_lines_dropped", help, &gauges.dropped_log_lines);
        add("tollgate_identity_cache_entries", "Active tokens in memory", &gauges.identities);
        add("tollgate_identity_refused_entries", "Refused tokens in memory", &gauges.refused);
        add("tollgate_identity_sources", "Sources with refused tokens counted", &gauges.sources);
        add("tollgate_introspections_in_flight", "Calls to lum.id in flight", &gauges.introspections);
        let help = "Calls to lum.id that wait for their place";
        add("tollgate_introspections_waiting", help, &gauges.introspections_waiting);
        add("tollgate_preflights_in_flight", "Balance preflights in flight", &gauges.preflights);
        add("tollgate_supplier_cache_entries", "Workers and task assignments in memory", &gauges.suppliers);
        add("tollgate_supplier_lookups_in_flight", "Supplier look-ups in flight", &gauges.lookups);
        let help = "Supplier look-ups that wait for their place";
        add("tollgate_supplier_lookups_waiting", help, &gauges.lookups_waiting);
        if let Some(readable) = &gauges.ledger_readable {
            add("tollgate_ledger_readable", "1 where the ledger can be read", readable);
        }
        gauges
    }

    pub fn set(&self, admin: &Admin, ledger_is_readable: bool) {
        let identity = admin.identity.figures();
        let (suppliers, lookups, lookups_waiting) = admin.suppliers.figures();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        set_all([
            (&self.billing, u64::from(admin.ledger.is_some())),
            (&self.guard, u64::from(admin.guard.is_some())),
            (&self.dropped_log_lines, count(admin.dropped_log_lines.dropped_lines())),
            (&self.identities, identity.active),
            (&self.refused, identity.refused),
            (&self.sources, identity.sources),
            (&self.introspections, count(identity.in_flight)),
            (&self.introspections_waiting, count(identity.waiting)),
            (&self.preflights, count(admin.guard.as_ref().map_or(0, Guard::in_flight))),
            (&self.suppliers, suppliers),
            (&self.lookups, count(lookups)),
            (&self.lookups_waiting, count(lookups_waiting)),
        ]);
        if let Some(readable) = &self.ledger_readable {
            readable.set(ledger_is_readable.into());
        }
    }
}

impl Rows {
    /// All of them, in a registry of their own.
    fn register() -> Self {
        let mut rows = Self::default();
        let mut registry = Registry::default();
        let mut add = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        add("tollgate_open_submissions", "Submissions of which no workflow is known", &rows.open_submissions);
        add("tollgate_open_workflows", "Workflows not settled", &rows.open_workflows);
        add("tollgate_held_workflows", "Workflows without an owner", &rows.held_workflows);
        add("tollgate_due_tasks", "Tasks to ask FlowMesh after", &rows.due_tasks);
        add("tollgate_held_tasks", "Ended tasks whose cost cannot be read", &rows.held_tasks);
        add("tollgate_gone_tasks", "Tasks given up because FlowMesh forgot them", &rows.gone_tasks);
        add("tollgate_charges_pending", "Charges to post", &rows.pending);
        add("tollgate_charges_held", "Charges without an owner or e-mail", &rows.held);
        add("tollgate_charges_rejected", "Charges that Runmesh refused for good", &rows.rejected);
        let help = "Age of the oldest charge not posted";
        add("tollgate_oldest_pending_charge_seconds", help, &rows.oldest_pending_seconds);
        let help = "Age of the oldest charge that is held for its owner or their e-mail";
        add("tollgate_oldest_held_charge_seconds", help, &rows.oldest_held_seconds);
        let help = "Age of the oldest charge that Runmesh refused for good";
        add("tollgate_oldest_rejected_charge_seconds", help, &rows.oldest_rejected_seconds);
        let help = "How long the task that has been due for longest waits to be asked after";
        add("tollgate_oldest_due_task_seconds", help, &rows.oldest_due_seconds);
        let help = "Time since the oldest workflow that is not settled was first heard of";
        add("tollgate_oldest_open_workflow_seconds", help, &rows.oldest_open_seconds);
        rows.registry = registry;
        rows
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn set(&self, backlog: &Backlog, now: Timestamp) {
        set_all([
            (&self.open_submissions, backlog.open_submissions),
            (&self.open_workflows, backlog.open_workflows),
            (&self.held_workflows, backlog.held_workflows),
            (&self.due_tasks, backlog.due_tasks),
            (&self.held_tasks, backlog.held_tasks),
            (&self.gone_tasks, backlog.gone_tasks),
            (&self.pending, backlog.pending_charges),
            (&self.held, backlog.held_charges),
            (&self.rejected, backlog.rejected_charges),
        ]);
        for (gauge, oldest) in [
            (&self.oldest_pending_seconds, backlog.oldest_pending),
            (&self.oldest_held_seconds, backlog.oldest_held),
            (&self.oldest_rejected_seconds, backlog.oldest_rejected),
            (&self.oldest_due_seconds, backlog.oldest_due_task),
            (&self.oldest_open_seconds, backlog.oldest_open_workflow),
        ] {
            gauge.set(age(oldest, now));
        }
    }
}

/// Seconds since then; 0 without such a time, or before it.
pub fn age(since: Option<Timestamp>, now: Timestamp) -> i64 {
    since.map_or(0, |at| now.duration_since(at).as_secs().max(0))
}

fn set_all<const N: usize>(gauges: [(&Gauge, u64); N]) {
    for (gauge, value) in gauges {
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn each_age_is_of_its_own_kind_and_none_is_zero() {
        let rows = Rows::register();
        let now = Timestamp::from_second(1_800_000_000).expect("valid");
        let ago = |seconds: i64| Some(Timestamp::from_second(1_800_000_000 - seconds).expect("valid"));
        let some = Backlog {
            oldest_pending: ago(1),
            oldest_held: ago(2),
            oldest_rejected: ago(3),
            oldest_due_task: ago(4),
            oldest_open_workflow: ago(5),
            ..Backlog::default()
        };
        let future = Backlog { oldest_due_task: ago(-60), ..Backlog::default() };
        for (backlog, ages) in [(some, [1, 2, 3, 4, 5]), (future, [0; 5]), (Backlog::default(), [0; 5])] {
            rows.set(&backlog, now);
            let mut text = String::new();
            encode(&mut text, rows.registry()).expect("written");
            let kinds = ["pending_charge", "held_charge", "rejected_charge", "due_task", "open_workflow"];
            for (kind, age) in kinds.into_iter().zip(ages) {
                assert!(text.contains(&format!("\ntollgate_oldest_{kind}_seconds {age}\n")), "{kind}: {text}");
            }
        }
    }
}
