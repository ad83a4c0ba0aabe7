//! The last hour, minute by minute, for the console.
//!
//! A sample is what the counters of `/metrics` grew by in one minute of the wall clock, in UTC, so that a bar of a chart and a
//! line of a log are of the same time. The counters begin at nothing with the process, so the first minute is as right as any
//! other, only shorter. There are never more than [`MINUTES`] samples: some 20 KiB, whatever the load.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::lifecycle::TaskError;
use crate::telemetry::Metrics;

/// How many minutes are remembered, with the one under way.
pub const MINUTES: usize = 60;
/// Reasons for which a Check is let through, and those for which it is not. What is none of them is counted as the last one.
pub const REASONS: [&str; 10] = [
    "allowed",
    "public",
    "identity_unavailable",
    "too_many_unknown",
    "insufficient_balance",
    "inactive_token",
    "missing_bearer",
    "path",
    "cancelled",
    "other",
];
/// How many of them let a request through.
pub const LET_THROUGH: usize = 2;
/// Upper bounds of a histogram that are told apart; there are a dozen.
const BUCKETS: usize = 24;

/// What happened in some time, or since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// By reason, in the order of [`REASONS`].
    pub decisions: [u64; REASONS.len()],
    /// Token look-ups that memory answered.
    pub hits: u64,
    /// All token look-ups.
    pub lookups: u64,
    pub posted: u64,
    pub retried: u64,
    pub rejected: u64,
    pub ledger_errors: u64,
    /// Submissions that Runmesh was to judge, and said nothing of: they went through.
    pub unjudged: u64,
    /// Changed files of secrets that could not be used.
    pub unusable_secrets: u64,
    /// Submissions that got a row in the ledger.
    pub submissions: u64,
    /// Checks by the bucket that their time falls in.
    latency: [u64; BUCKETS],
}

impl Counts {
    #[must_use]
    pub fn let_through(&self) -> u64 {
        self.decisions[..LET_THROUGH].iter().sum()
    }

    #[must_use]
    pub fn refused(&self) -> u64 {
        self.decisions[LET_THROUGH..].iter().sum()
    }

    /// How many Checks were answered for this reason.
    #[must_use]
    pub fn reason(&self, name: &str) -> u64 {
        REASONS.iter().zip(self.decisions).filter(|(reason, _)| **reason == name).map(|(_, count)| count).sum()
    }

    fn combine(&self, other: &Self, with: fn(u64, u64) -> u64) -> Self {
        let all = |a: &[u64], b: &[u64], into: &mut [u64]| {
            for ((a, b), into) in a.iter().zip(b).zip(into) {
                *into = with(*a, *b);
            }
        };
        let mut combined = Self {
            hits: with(self.hits, other.hits),
            lookups: with(self.lookups, other.lookups),
            posted: with(self.posted, other.posted),
            retried: with(self.retried, other.retried),
            rejected: with(self.rejected, other.rejected),
            ledger_errors: with(self.ledger_errors, other.ledger_errors),
            unjudged: with(self.unjudged, other.unjudged),
            unusable_secrets: with(self.unusable_secrets, other.unusable_secrets),
            submissions: with(self.submissions, other.submissions),
            ..Self::default()
        };
        all(&self.decisions, &other.decisions, &mut combined.decisions);
        all(&self.latency, &other.latency, &mut combined.latency);
        combined
    }
}

/// The counters, read as a scrape reads them: whatever labels a family has, its sum is told.
struct Counters(Registry);

impl Counters {
    fn of(metrics: &Metrics) -> Self {
        let mut registry = Registry::default();
        registry.register("decisions", "", metrics.decisions.clone());
        registry.register("check", "", metrics.check_times.family.clone());
        registry.register("identity", "", metrics.identity_cache.clone());
        registry.register("posts", "", metrics.posts.clone());
        registry.register("ledger", "", metrics.ledger_errors.clone());
        registry.register("preflights", "", metrics.preflights.clone());
        registry.register("submissions", "", metrics.submissions.clone());
        registry.register("secrets", "", metrics.secret_reloads.clone());
        Self(registry)
    }

    /// What was counted since the start, and the upper bounds of the buckets.
    fn read(&self) -> (Counts, Vec<f64>) {
        let mut text = String::new();
        // It fails only when writing into the string does.
        let _ = encode(&mut text, &self.0);
        let mut counts = Counts::default();
        let mut at_most: Vec<(f64, u64)> = Vec::new();
        for line in text.lines() {
            let Some((name, rest)) = line.split_once('{') else { continue };
            let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
            let label = |key: &str| labels.split(&format!("{key}=\"")).nth(1)?.split('"').next();
            // An exemplar may follow; none of these has one.
            let Ok(value) = value.parse::<u64>() else { continue };
            match name {
                "decisions_total" => {
                    let reason = REASONS.iter().position(|known| label("reason") == Some(*known));
                    counts.decisions[reason.unwrap_or(REASONS.len() - 1)] += value;
                }
                "identity_total" => {
                    counts.lookups += value;
                    if label("outcome").is_some_and(|outcome| outcome.starts_with("hit") || outcome == "stale") {
                        counts.hits += value;
                    }
                }
                "posts_total" => match label("outcome") {
                    Some("posted") => counts.posted += value,
                    Some("rejected") => counts.rejected += value,
                    _ => counts.retried += value,
                },
                "ledger_total" => counts.ledger_errors += value,
                "preflights_total" => match label("outcome") {
                    Some("sufficient" | "insufficient" | "no_email") => {}
                    _ => counts.unjudged += value,
                },
                "secrets_total" if label("outcome") == Some("failed") => counts.unusable_secrets += value,
                "submissions_total" if label("outcome") == Some("opened") => counts.submissions += value,
                "check_bucket" => {
                    let Some(bound) = label("le").and_then(|bound| bound.parse::<f64>().ok()) else { continue };
                    match at_most.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
                        Some((_, sum)) => *sum += value,
                        None => at_most.push((bound, value)),
                    }
                }
                _ => {}
            }
        }
        at_most.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = 0;
        for ((_, sum), bucket) in at_most.iter().zip(&mut counts.latency) {
            *bucket = sum.saturating_sub(below);
            below = *sum;
        }
        (counts, at_most.into_iter().map(|(bound, _)| bound).collect())
    }
}

/// The samples. Cheap to clone.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    counters: Counters,
    ring: Mutex<Ring>,
}

impl History {
    /// Begins with the minute of `now`.
    #[must_use]
    pub fn new(metrics: &Metrics, now: Timestamp) -> Self {
        Self(Arc::new(Inner { counters: Counters::of(metrics), ring: Mutex::new(Ring::new(minute_of(now))) }))
    }

    /// Takes a sample at the end of each minute, until the stop.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep(self, stop: CancellationToken) -> Result<(), TaskError> {
        loop {
            let into = Timestamp::now().as_millisecond().rem_euclid(60_000).unsigned_abs();
            let rest = Duration::from_millis(60_001 - into);
            if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                return Ok(());
            }
            let _ = self.hour(Timestamp::now());
        }
    }

    /// The last hour, up to `now`. Whoever looks first in a new minute ends the one before.
    #[must_use]
    pub fn hour(&self, now: Timestamp) -> Hour {
        let (counts, bounds) = self.0.counters.read();
        let mut ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.turn(minute_of(now), &counts);
        ring.hour(&counts, bounds)
    }
}

fn minute_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(60)
}

/// Minutes that are over, oldest first, and the one under way.
struct Ring {
    over: VecDeque<(i64, Counts)>,
    under_way: i64,
    /// What the counters were when it began.
    before: Counts,
}

impl Ring {
    fn new(minute: i64) -> Self {
        Self { over: VecDeque::with_capacity(MINUTES), under_way: minute, before: Counts::default() }
    }

    /// Ends the minute under way when it is another one now.
    fn turn(&mut self, minute: i64, counts: &Counts) {
        // Who read the clock just before somebody else ended that minute has come too late to end another one.
        if minute == self.under_way || minute == self.under_way - 1 {
            return;
        }
        self.over.push_back((self.under_way, counts.combine(&self.before, u64::saturating_sub)));
        // A clock that was set back is believed, and what was of a time yet to come is forgotten.
        self.over.retain(|(at, _)| *at < minute && *at > minute - i64::try_from(MINUTES).unwrap_or(i64::MAX));
        (self.under_way, self.before) = (minute, *counts);
    }

    fn hour(&self, counts: &Counts, bounds: Vec<f64>) -> Hour {
        let mut minutes = vec![None; MINUTES];
        for (at, counts) in &self.over {
            let ago = usize::try_from(self.under_way - at).unwrap_or(MINUTES);
            if let Some(minute) = MINUTES.checked_sub(1 + ago).and_then(|place| minutes.get_mut(place)) {
                *minute = Some(*counts);
            }
        }
        minutes[MINUTES - 1] = Some(counts.combine(&self.before, u64::saturating_sub));
        Hour { minutes, last: self.under_way, bounds }
    }
}

/// The last hour.
pub struct Hour {
    /// Oldest first; `None` before the start, and when the machine slept. The last one is under way.
    pub minutes: Vec<Option<Counts>>,
    /// The minute under way, in minutes since the epoch.
    last: i64,
    /// Upper bounds of the buckets, in seconds.
    bounds: Vec<f64>,
}

impl Hour {
    /// When a minute began.
    #[must_use]
    pub fn at(&self, place: usize) -> Timestamp {
        let ago = i64::try_from(MINUTES - 1 - place.min(MINUTES - 1)).unwrap_or(0);
        Timestamp::from_second((self.last - ago) * 60).unwrap_or_default()
    }

    /// The sum of the last so many minutes, with the one under way.
    #[must_use]
    pub fn sum(&self, minutes: usize) -> Counts {
        let last = self.minutes.iter().rev().take(minutes).flatten();
        last.fold(Counts::default(), |sum, minute| sum.combine(minute, u64::saturating_add))
    }

    /// In how many seconds at most so many of a hundred Checks were answered; infinite past the last bucket. `None` without any.
    #[must_use]
    pub fn percentile(&self, of: &Counts, hundredths: u64) -> Option<f64> {
        let all: u64 = of.latency.iter().sum();
        let wanted = (all * hundredths).div_ceil(100).max(1);
        let mut so_far = 0;
        let buckets = of.latency.iter().zip(&self.bounds);
        buckets.map(|(bucket, bound)| (*bucket, *bound)).find_map(|(bucket, bound)| {
            so_far += bucket;
            (all > 0 && so_far >= wanted).then_some(bound)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Cache, DecisionLabels, KindLabels, OutcomeLabels};

    fn at(minute: i64, second: i64) -> Timestamp {
        Timestamp::from_second((29_000_000 + minute) * 60 + second).expect("valid")
    }

    fn decided(metrics: &Metrics, reason: &'static str, times: u64) {
        metrics.decisions.get_or_create(&DecisionLabels { reason }).inc_by(times);
    }

    fn let_through(hour: &Hour) -> Vec<Option<u64>> {
        let skip = MINUTES - 5;
        hour.minutes[skip..].iter().map(|minute| minute.map(|counts| counts.let_through())).collect()
    }

    #[test]
    fn a_minute_has_what_was_counted_in_it_from_the_first_one_on() {
        let metrics = Metrics::unread();
        let history = History::new(&metrics, at(0, 50));
        decided(&metrics, "allowed", 3);
        assert_eq!(let_through(&history.hour(at(0, 55))), [None, None, None, None, Some(3)]);
        decided(&metrics, "public", 1);
        assert_eq!(let_through(&history.hour(at(1, 0))), [None, None, None, Some(4), Some(0)]);
        decided(&metrics, "allowed", 7);
        assert_eq!(let_through(&history.hour(at(1, 59))), [None, None, None, Some(4), Some(7)]);
        // Nobody looked for a while: as when the machine slept.
        assert_eq!(let_through(&history.hour(at(3, 10))), [None, Some(4), Some(7), None, Some(0)]);
        assert_eq!(history.hour(at(3, 10)).at(MINUTES - 1), at(3, 0));
        assert_eq!(history.hour(at(3, 10)).sum(MINUTES).let_through(), 11);
        assert_eq!(history.hour(at(3, 10)).sum(2).let_through(), 0);
    }

    #[test]
    fn no_more_than_an_hour_is_kept_and_a_clock_set_back_is_believed() {
        let metrics = Metrics::unread();
        let history = History::new(&metrics, at(0, 0));
        for minute in 0..200 {
            let _ = history.hour(at(minute, 0));
            decided(&metrics, "allowed", 1);
            assert_eq!(
                history.hour(at(minute, 30)).minutes.iter().flatten().count(),
                MINUTES.min(usize::try_from(minute).expect("small") + 1)
            );
        }
        assert_eq!(history.0.ring.lock().expect("whole").over.len(), MINUTES - 1);
        assert_eq!(history.hour(at(199, 40)).sum(MINUTES).let_through(), 60);
        let earlier = history.hour(at(150, 0));
        assert_eq!(earlier.at(MINUTES - 1), at(150, 0));
        assert_eq!(earlier.minutes.iter().flatten().count(), 11, "those from 140 to 149, and this one");
    }

    #[test]
    fn a_look_that_comes_late_takes_nothing_from_the_minute_that_is_over() {
        let metrics = Metrics::unread();
        let history = History::new(&metrics, at(0, 0));
        decided(&metrics, "allowed", 3);
        let _ = history.hour(at(1, 0));
        decided(&metrics, "allowed", 2);
        // Its clock was read before the one above, and its turn came after.
        assert_eq!(let_through(&history.hour(at(0, 59))), [None, None, None, Some(3), Some(2)]);
        assert_eq!(let_through(&history.hour(at(1, 1))), [None, None, None, Some(3), Some(2)]);
    }

    #[test]
    fn every_counter_is_told_apart_and_what_is_new_is_not_lost() {
        let metrics = Metrics::unread();
        decided(&metrics, "path", 2);
        decided(&metrics, "a reason that is new", 5);
        for (outcome, times) in [("hit", 6), ("stale", 1), ("hit_inactive", 2), ("miss", 3)] {
            metrics.identity_cache.get_or_create(&OutcomeLabels { outcome }).inc_by(times);
        }
        for (outcome, times) in [("posted", 9), ("rejected", 1), ("timeout", 2), ("unauthorized", 3)] {
            metrics.posts.get_or_create(&OutcomeLabels { outcome }).inc_by(times);
        }
        metrics.ledger_errors.get_or_create(&KindLabels { kind: "claim" }).inc_by(4);
        for (outcome, times) in
            [("sufficient", 9), ("insufficient", 8), ("no_email", 7), ("timeout", 2), ("malformed", 1), ("busy", 3)]
        {
            metrics.preflights.get_or_create(&OutcomeLabels { outcome }).inc_by(times);
        }
        for (outcome, times) in [("ok", 2), ("failed", 4)] {
            metrics.secret_reloads.get_or_create(&OutcomeLabels { outcome }).inc_by(times);
        }
        for (outcome, times) in [("opened", 5), ("repeated", 2), ("failed", 1)] {
            metrics.submissions.get_or_create(&OutcomeLabels { outcome }).inc_by(times);
        }
        let sum = History::new(&metrics, at(0, 0)).hour(at(0, 1)).sum(1);
        assert_eq!((sum.let_through(), sum.refused(), sum.decisions[REASONS.len() - 1]), (0, 7, 5));
        assert_eq!((sum.hits, sum.lookups), (9, 12));
        assert_eq!((sum.posted, sum.rejected, sum.retried, sum.ledger_errors), (9, 1, 5, 4));
        assert_eq!((sum.unjudged, sum.submissions, sum.unusable_secrets), (6, 5, 4));
    }

    #[test]
    fn a_percentile_is_the_bound_below_which_that_many_were() {
        let metrics = Metrics::unread();
        let history = History::new(&metrics, at(0, 0));
        let percentile = |hundredths| {
            let hour = history.hour(at(0, 1));
            hour.percentile(&hour.sum(1), hundredths)
        };
        assert_eq!(percentile(50), None);
        for _ in 0..98 {
            metrics.check_times.of(Cache::Hit).observe(0.000_09);
        }
        metrics.check_times.of(Cache::Hit).observe(0.02);
        assert_eq!((percentile(50), percentile(99)), (Some(0.000_1), Some(0.025)));
        metrics.check_times.of(Cache::Hit).observe(60.0);
        assert_eq!((percentile(99), percentile(100)), (Some(0.025), Some(f64::INFINITY)));
    }
}
