//! What was measured, and what was hoped for.

use serde::{Deserialize, Serialize};

use crate::goals;

/// One figure: what was measured, several times, and what it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// For programs, and stable: `check.cached.throughput_ratio`.
    pub id: String,
    /// For people, one line.
    pub what: String,
    /// `1/s`, `µs`, `ms`, `MB` (10⁶ bytes), `×` for a ratio; what else there is to say is in `what`.
    pub unit: String,
    /// One a round, in the order in which they were taken.
    pub samples: Vec<f64>,
    pub goal: Option<Goal>,
    /// The command, or how it was measured, so that somebody else can.
    pub how: String,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    /// One of these samples, with the goal that [`goals`] has for its id.
    #[must_use]
    pub fn new(id: &str, what: &str, unit: &str, samples: Vec<f64>, how: &str) -> Self {
        Self {
            id: id.to_owned(),
            what: what.to_owned(),
            unit: unit.to_owned(),
            samples,
            goal: goals::of(id),
            how: how.to_owned(),
        }
    }

    /// The middle one of the samples, or the mean of the middle two; NaN without samples.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.as_slice() {
            [] => f64::NAN,
            sorted if sorted.len() % 2 == 1 => sorted[sorted.len() / 2],
            sorted => f64::midpoint(sorted[sorted.len() / 2 - 1], sorted[sorted.len() / 2]),
        }
    }

    /// The least and the greatest of the samples.
    #[must_use]
    pub fn spread(&self) -> (f64, f64) {
        self.samples
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &one| (least.min(one), most.max(one)))
    }

    /// Whether the median is what was hoped for; `None` when nothing was.
    #[must_use]
    pub fn is_met(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::AtLeast(least) => self.median() >= least,
            Goal::AtMost(most) => self.median() <= most,
        })
    }
}

/// The ratios of neighbours: of each sample of one contender to that of the other in the same round.
#[must_use]
pub fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(samples: &[f64], goal: Option<Goal>) -> Figure {
        Figure { id: "a".into(), what: "b".into(), unit: "×".into(), samples: samples.to_vec(), goal, how: "c".into() }
    }

    #[test]
    fn the_median_is_in_the_middle_and_the_spread_around_it() {
        assert!((figure(&[3.0, 1.0, 2.0], None).median() - 2.0).abs() < f64::EPSILON);
        assert!((figure(&[4.0, 1.0, 2.0, 3.0], None).median() - 2.5).abs() < f64::EPSILON);
        assert!(figure(&[], None).median().is_nan());
        assert_eq!(figure(&[3.0, 1.0, 2.0], None).spread(), (1.0, 3.0));
    }

    #[test]
    fn a_goal_is_met_by_the_median_and_never_by_nothing() {
        assert_eq!(figure(&[1.0], None).is_met(), None);
        assert_eq!(figure(&[1.0, 2.0, 0.5], Some(Goal::AtLeast(1.0))).is_met(), Some(true));
        assert_eq!(figure(&[1.0, 2.0, 1.5], Some(Goal::AtMost(1.4))).is_met(), Some(false));
        assert_eq!(figure(&[], Some(Goal::AtLeast(1.0))).is_met(), Some(false));
    }

    #[test]
    fn ratios_are_of_neighbours_and_not_of_medians() {
        assert_eq!(ratios(&[2.0, 9.0, 4.0], &[1.0, 3.0, 4.0]), [2.0, 3.0, 1.0]);
        assert_eq!(ratios(&[2.0], &[]), Vec::<f64>::new());
    }
}
