//! What each figure should be: one table, by the figure's id. A new goal is one line here.

use crate::figure::Goal;

/// Sorted as the sections are.
const GOALS: &[(&str, Goal)] = &[
    ("check.cached.throughput_ratio", Goal::AtLeast(1.0)),
    ("check.cached.p99_ratio", Goal::AtMost(1.1)),
    ("envoy.added.p50_ratio", Goal::AtMost(1.05)),
    ("envoy.added.p99_ratio", Goal::AtMost(1.05)),
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
