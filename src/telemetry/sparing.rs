//! Lines that may come in crowds, such as one for each charge while Runmesh is down.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Says so many things in a period and counts the rest: whoever reads the log wants to know that it goes on and for how
/// many, and not each of them. What is not said is still there at `debug`.
#[derive(Debug)]
pub struct Sparing {
    every: Duration,
    most: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    said: u32,
    unsaid: u64,
}

/// What was not said since the last line; its text goes at a line's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsaid(u64);

impl Unsaid {
    /// For a field: not there when it is none.
    #[must_use]
    pub fn count(self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }
}

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            others => write!(f, "; {others} more since this was last said"),
        }
    }
}

impl Sparing {
    /// For at most so many lines in a period.
    #[must_use]
    pub const fn new(most: u32, every: Duration) -> Self {
        Self { every, most, state: Mutex::new(State { since: None, said: 0, unsaid: 0 }) }
    }

    /// For what fails once for each of many pieces of work.
    #[must_use]
    pub const fn of_work() -> Self {
        Self::new(10, Duration::from_secs(10))
    }

    /// Whether to say it now, and how many were kept back before. `None`: keep it back.
    #[must_use]
    pub fn say(&self) -> Option<Unsaid> {
        self.say_at(Instant::now())
    }

    fn say_at(&self, now: Instant) -> Option<Unsaid> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= self.every) {
            (state.since, state.said) = (Some(now), 0);
        }
        if state.said >= self.most {
            state.unsaid += 1;
            return None;
        }
        state.said += 1;
        Some(Unsaid(std::mem::take(&mut state.unsaid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_gets_so_many_lines_in_a_period_and_the_next_line_counts_the_rest() {
        let sparing = Sparing::new(2, Duration::from_secs(10));
        let start = Instant::now();
        let said: Vec<_> = (0..100).map(|_| sparing.say_at(start)).collect();
        assert_eq!(said.iter().flatten().count(), 2);
        assert_eq!(said[..2], [Some(Unsaid(0)); 2]);
        assert_eq!(sparing.say_at(start + Duration::from_secs(9)), None);
        let next = sparing.say_at(start + Duration::from_secs(10));
        assert_eq!(next, Some(Unsaid(99)));
        assert_eq!(format!("it fails{}", next.expect("said")), "it fails; 99 more since this was last said");
        assert_eq!(format!("it fails{}", Unsaid(0)), "it fails");
        assert_eq!((Unsaid(99).count(), Unsaid(0).count()), (Some(99), None));
    }
}
