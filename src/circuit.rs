//! A circuit keeps what is down from being hammered by everything that waits for it.
//!
//! Closed: work goes on. After a few failures in a row, or one that says that every other would fail as well, it opens:
//! nothing is begun for a while. Then one piece of work is the probe, whose success closes the circuit and whose failure
//! opens it for longer. After the probe each success lets two more begin: what has just come back is not met by all at
//! once. The pure part has the times passed in.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

use crate::drive::{LEASE, growing, jitter};
use crate::ledger::Pick;
use crate::upstream::CallError;

/// Failures in a row that open it.
const TRIP: u32 = 5;
/// How long it stays open, growing from probe to probe.
const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MOST: Duration = Duration::from_mins(1);
/// When so much may be begun after a probe, everything may.
const RAMPED: u32 = 64;
/// While what may be begun after a probe is under way.
const RAMP_PAUSE: Duration = Duration::from_millis(20);

/// The circuit to one system, shared by all who work with it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Circuit {
    state: Arc<Mutex<State>>,
    open: Gauge,
}

impl Circuit {
    /// `open` is 1 while it is open.
    #[must_use]
    pub fn new(open: Gauge) -> Self {
        Self { state: Arc::default(), open }
    }

    /// How much of `free` may be begun now.
    ///
    /// # Errors
    /// How long to begin nothing.
    pub fn allowance(&self, free: u32) -> Result<u32, Duration> {
        self.act(|state| state.allowance(Instant::now(), free))
    }

    /// What to claim when so much may be begun.
    #[must_use]
    pub fn pick(&self, limit: u32) -> Pick {
        if self.is_closed() { Pick::Due(limit) } else { Pick::LeastTried }
    }

    /// Whether the system is there, as far as is known.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.act(|state| state.open_until.is_none())
    }

    /// So many pieces of work were begun.
    pub fn begun(&self, pieces: usize) {
        self.act(|state| state.begun(Instant::now(), pieces));
    }

    /// The system is there.
    pub fn succeeded(&self) {
        self.act(|state| state.succeeded(Instant::now()));
    }

    /// The system is not there; how long the circuit is open from now, when this has opened it.
    #[must_use]
    pub fn failed(&self) -> Option<Duration> {
        self.act(|state| state.failed(Instant::now(), TRIP, jitter()))
    }

    /// The system is there and lets nobody in; how long the circuit is open from now, when this has opened it.
    #[must_use]
    pub fn refused(&self) -> Option<Duration> {
        self.act(|state| state.failed(Instant::now(), 1, jitter()))
    }

    /// A piece of work was begun and then needed no call.
    pub fn not_asked(&self) {
        self.act(State::not_asked);
    }

    /// What a call to FlowMesh came to. An odd answer is one all the same.
    pub fn heard(&self, answer: Result<(), &CallError>) {
        match answer {
            Err(error) if error.is_outage() => {
                if let Some(pause) = self.failed() {
                    tracing::warn!(%error, "FlowMesh is not asked for {pause:.1?}: {error}");
                }
            }
            Ok(()) | Err(_) => self.succeeded(),
        }
    }

    fn act<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // Nothing that holds the lock can panic; a poisoned one would still be consistent.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut state);
        self.open.set(i64::from(state.open_until.is_some()));
        result
    }
}

/// Closed, open until a time, or half-open with one probe.
#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// How often it opened in a row.
    openings: u32,
    open_until: Option<Instant>,
    probe: Option<Instant>,
    ramp: Option<Ramp>,
}

/// After a probe.
#[derive(Debug, Clone, Copy)]
struct Ramp {
    /// How much may be begun.
    credit: u32,
    /// When something last was.
    begun: Instant,
}

impl State {
    fn allowance(&self, now: Instant, free: u32) -> Result<u32, Duration> {
        match (self.open_until, self.probe) {
            (None, _) => match self.ramp {
                None => Ok(free),
                // As below: work of which nothing is heard has come to grief.
                Some(ramp) if ramp.credit == 0 && now.saturating_duration_since(ramp.begun) < LEASE => Err(RAMP_PAUSE),
                Some(ramp) => Ok(free.min(ramp.credit.max(1))),
            },
            (Some(until), _) if now < until => Err(until - now),
            // Its end wakes the loop. One of which nothing was heard for longer than it may take has come to grief.
            (Some(_), Some(begun)) if now.saturating_duration_since(begun) < LEASE => Err(OPEN_MOST),
            (Some(_), _) => Ok(1),
        }
    }

    fn begun(&mut self, now: Instant, pieces: usize) {
        if self.open_until.is_some() && pieces > 0 {
            self.probe = Some(now);
        } else if let (Some(ramp), 1..) = (&mut self.ramp, pieces) {
            ramp.credit = ramp.credit.saturating_sub(u32::try_from(pieces).unwrap_or(u32::MAX));
            ramp.begun = now;
        }
    }

    fn not_asked(&mut self) {
        self.probe = None;
        self.credit(1);
    }

    fn succeeded(&mut self, now: Instant) {
        if self.open_until.is_some() {
            *self = Self { ramp: Some(Ramp { credit: 2, begun: now }), ..Self::default() };
        } else {
            *self = Self { ramp: self.ramp, ..Self::default() };
            self.credit(2);
        }
    }

    fn credit(&mut self, more: u32) {
        if let Some(ramp) = &mut self.ramp {
            ramp.credit += more;
            if ramp.credit >= RAMPED {
                self.ramp = None;
            }
        }
    }

    fn failed(&mut self, now: Instant, trip: u32, jitter: f64) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        self.credit(1);
        // While it is open, work that was already under way says nothing new.
        let probe_failed = self.probe.take().is_some();
        if self.failures < trip || (self.open_until.is_some() && !probe_failed) {
            return None;
        }
        let pause = growing(OPEN_FIRST, OPEN_MOST, self.openings, jitter);
        self.openings = self.openings.saturating_add(1);
        self.open_until = Some(now + pause);
        self.ramp = None;
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_some_failures_and_lets_one_probe_through_at_a_time() {
        let start = Instant::now();
        let mut circuit = State::default();
        for _ in 1..TRIP {
            assert_eq!(circuit.failed(start, TRIP, 0.0), None);
        }
        assert_eq!(circuit.allowance(start, 32), Ok(32));
        assert_eq!(circuit.failed(start, TRIP, 0.0), Some(OPEN_FIRST));
        assert_eq!(circuit.failed(start, TRIP, 0.0), None, "what was under way changes nothing");
        assert_eq!(circuit.allowance(start, 32), Err(OPEN_FIRST));
        let later = start + OPEN_FIRST;
        assert_eq!(circuit.allowance(later, 32), Ok(1));
        circuit.begun(later, 1);
        assert!(circuit.allowance(later, 32).is_err(), "one probe at a time");
        circuit.begun(later, 0);
        assert!(circuit.allowance(later, 32).is_err(), "another loop that found nothing to do is none");
        assert_eq!(circuit.failed(later, TRIP, 0.0), Some(OPEN_FIRST * 2));
        let even_later = later + OPEN_FIRST * 2;
        assert_eq!(circuit.allowance(even_later, 32), Ok(1));
        circuit.begun(even_later, 1);
        circuit.succeeded(even_later);
        assert_eq!(circuit.allowance(even_later, 32), Ok(2));
    }

    #[test]
    fn what_has_come_back_is_met_by_more_and_more_rather_than_by_all_at_once() {
        let start = Instant::now();
        let mut circuit = State::default();
        assert!(circuit.failed(start, 1, 0.0).is_some());
        let now = start + OPEN_FIRST;
        circuit.begun(now, 1);
        circuit.succeeded(now);
        let mut begun = Vec::new();
        while let Ok(some) = circuit.allowance(now, 96) {
            begun.push(some);
            if some == 96 {
                break;
            }
            circuit.begun(now, some as usize);
            assert_eq!(circuit.allowance(now, 96), Err(RAMP_PAUSE), "until something of these is over");
            (0..some).for_each(|_| circuit.succeeded(now));
        }
        assert_eq!(begun, [2, 4, 8, 16, 32, 96]);
        // What fails, or comes to grief, lets as much begin again; else nothing ever would.
        assert!(circuit.failed(now, 1, 0.0).is_some());
        circuit.succeeded(now);
        circuit.begun(now, 2);
        assert_eq!(circuit.failed(now, TRIP, 0.0), None);
        assert_eq!(circuit.allowance(now, 96), Ok(1));
        circuit.begun(now, 1);
        assert!(circuit.allowance(now, 96).is_err());
        assert_eq!(circuit.allowance(now + LEASE, 96), Ok(1));
    }

    #[test]
    fn a_refusal_opens_it_at_once() {
        let start = Instant::now();
        let mut circuit = State::default();
        assert_eq!(circuit.failed(start, 1, 0.0), Some(OPEN_FIRST));
        assert_eq!(circuit.allowance(start, 32), Err(OPEN_FIRST));
    }

    #[test]
    fn a_probe_that_never_ends_does_not_keep_it_open_for_ever() {
        let start = Instant::now();
        let mut circuit = State::default();
        assert!(circuit.failed(start, 1, 0.0).is_some());
        let probed = start + OPEN_FIRST;
        circuit.begun(probed, 1);
        assert!(circuit.allowance(probed, 32).is_err());
        assert_eq!(circuit.allowance(probed + LEASE, 32), Ok(1));
    }
}
