//! Whether the other side answers, as the last calls tell. Nobody is refused over it; it is for people who look.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::CallError;

/// How long a failure is worth mentioning when there was an answer since.
const REMEMBERED: Duration = Duration::from_mins(1);

/// What was last heard of the other side. Displays as a few words.
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

/// All that is remembered of the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub heard: Heard,
    /// How long it has done nothing but answer, or nothing but fail, whichever it did last.
    pub unchanged_for: Duration,
    /// Whether the last call failed.
    pub is_failing: bool,
    /// How long ago the last failure was, and what it was.
    pub last_failure: Option<(Duration, String)>,
}

/// Remembers the last answer and the last failure.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    answered: Option<Instant>,
    failed: Option<(Instant, String)>,
    /// Whether the last call failed, and since when they all did so.
    run: Option<(bool, Instant)>,
}

impl State {
    fn ended(&mut self, failed: bool, at: Instant) {
        if self.run.is_none_or(|(before, _)| before != failed) {
            self.run = Some((failed, at));
        }
    }
}

impl Health {
    pub fn answered(&self, at: Instant) {
        self.act(|state| {
            state.answered = Some(at);
            state.ended(false, at);
        });
    }

    pub fn failed(&self, error: &CallError, at: Instant) {
        self.act(|state| {
            state.failed = Some((at, error.to_string()));
            state.ended(true, at);
        });
    }

    #[must_use]
    pub fn account(&self, now: Instant) -> Account {
        let heard = self.heard(now);
        let ago = |at| now.saturating_duration_since(at);
        self.act(|state| Account {
            heard,
            unchanged_for: state.run.map(|(_, since)| ago(since)).unwrap_or_default(),
            is_failing: state.run.is_some_and(|(failed, _)| failed),
            last_failure: state.failed.as_ref().map(|(at, error)| (ago(*at), error.clone())),
        })
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
    #[test]
    fn an_account_tells_since_when_nothing_changed_and_the_last_failure_however_old() {
        let (health, start) = (Health::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let told = |seconds| {
            let account = health.account(after(seconds));
            (account.is_failing, account.unchanged_for.as_secs(), account.last_failure.map(|(ago, _)| ago.as_secs()))
        };
        assert_eq!(told(5), (false, 0, None));
        health.answered(after(10));
        health.answered(after(20));
        assert_eq!(told(30), (false, 20, None));
        health.failed(&CallError::Timeout, after(40));
        health.failed(&CallError::Timeout, after(50));
        assert_eq!(told(60), (true, 20, Some(10)));
        health.answered(after(70));
        assert_eq!(told(1000), (false, 930, Some(950)));
    }
}
