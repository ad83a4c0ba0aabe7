//! Whether lum.id answers, as its last calls tell. Nobody is refused over it; it is for people who look.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::upstream::CallError;

/// How long a failure is worth mentioning when lum.id has answered since.
const REMEMBERED: Duration = Duration::from_mins(1);

/// What was last heard of lum.id. Displays as a few words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It was not asked yet.
    Nothing,
    /// It answers.
    Answers,
    /// It failed within the last minute, or has not answered since.
    Failed { ago: Duration, error: String },
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("not asked yet"),
            Self::Answers => f.write_str("ok"),
            Self::Failed { ago, error } => write!(f, "failed {} s ago: {error}", ago.as_secs()),
        }
    }
}

/// Remembers the last answer and the last failure.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    answered: Option<Instant>,
    failed: Option<(Instant, String)>,
}

impl Health {
    pub fn answered(&self, at: Instant) {
        self.act(|state| state.answered = Some(at));
    }

    pub fn failed(&self, error: &CallError, at: Instant) {
        self.act(|state| state.failed = Some((at, error.to_string())));
    }

    #[must_use]
    pub fn heard(&self, now: Instant) -> Heard {
        self.act(|state| match (&state.failed, state.answered) {
            (None, None) => Heard::Nothing,
            (Some((at, error)), answered)
                if now.saturating_duration_since(*at) < REMEMBERED
                    || answered.is_none_or(|answered| answered < *at) =>
            {
                Heard::Failed { ago: now.saturating_duration_since(*at), error: error.clone() }
            }
            _ => Heard::Answers,
        })
    }

    fn act<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_for_a_minute_and_for_longer_when_no_answer_came_since() {
        let (health, start) = (Health::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let failed =
            |seconds| Heard::Failed { ago: Duration::from_secs(seconds), error: CallError::Timeout.to_string() };
        assert_eq!(health.heard(start), Heard::Nothing);
        health.answered(start);
        assert_eq!(health.heard(after(900)), Heard::Answers);
        health.failed(&CallError::Timeout, after(10));
        assert_eq!(health.heard(after(910)), failed(900));
        health.answered(after(20));
        assert_eq!(health.heard(after(50)), failed(40));
        assert_eq!(health.heard(after(70)), Heard::Answers);
        assert_eq!(failed(40).to_string(), "failed 40 s ago: time limit exceeded");
    }
}
