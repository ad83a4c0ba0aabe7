//! What each figure should be: one table, by the figure's id. A new goal is one line here.

use crate::figure::Goal;

/// Sorted as the sections are.
const GOALS: &[(&str, Goal)] = &[
    ("check.cached.throughput_ratio", Goal::AtLeast(1.0)),
    ("check.cached.p99_ratio", Goal::AtMost(1.1)),
    ("envoy.total.p50_ratio", Goal::AtMost(1.05)),
    ("envoy.total.p99_ratio", Goal::AtMost(1.05)),
    ("access_log.entries_per_core_second", Goal::AtLeast(150_000.0)),
    ("access_log.durable_per_second", Goal::AtLeast(30_000.0)),
    ("billing.entries_per_second", Goal::AtLeast(2000.0)),
    ("replicas.durable_one", Goal::AtLeast(10_000.0)),
    ("replicas.durable_three", Goal::AtLeast(10_000.0)),
    ("replicas.posted_one", Goal::AtLeast(1000.0)),
    ("replicas.posted_three", Goal::AtLeast(1000.0)),
    ("replicas.settle_ratio", Goal::AtMost(1.5)),
    ("replicas.sweep_ratio", Goal::AtMost(1.5)),
    ("memory.start", Goal::AtMost(15.0)),
    ("memory.cached", Goal::AtMost(30.0)),
    ("memory.worked", Goal::AtMost(60.0)),
    ("start.many", Goal::AtMost(300.0)),
    ("reading.list", Goal::AtMost(100.0)),
    ("reading.metrics", Goal::AtMost(100.0)),
    ("growth.check_many_ratio", Goal::AtMost(1.25)),
    ("growth.check_very_many_ratio", Goal::AtMost(1.25)),
    ("growth.settle_ratio", Goal::AtMost(1.5)),
    ("growth.sweep_ratio", Goal::AtMost(1.5)),
    ("flights.introspections", Goal::AtMost(1.0)),
    ("flights.introspections_inside", Goal::AtMost(1.0)),
    ("flights.p99_inside", Goal::AtMost(50.0)),
    ("stages.check.decide", Goal::AtMost(1000.0)),
];

/// The goal of the figure with this id.
#[must_use]
pub fn of(id: &str) -> Option<Goal> {
    GOALS.iter().find_map(|(of, goal)| (*of == id).then_some(*goal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_figure_has_two_goals_and_one_that_is_not_listed_has_none() {
        for (at, (id, goal)) in GOALS.iter().enumerate() {
            assert!(GOALS[..at].iter().all(|(other, _)| other != id), "{id}");
            assert_eq!(of(id), Some(*goal));
        }
        assert_eq!(of("check.cached"), None);
    }
}
