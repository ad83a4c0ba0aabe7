//! What one process does for all that share a ledger: sweeping, comparing with FlowMesh's list, pruning.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two looks of who waits for it, so that an end that nobody tells of is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether that is this process now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Duty(Option<watch::Receiver<Option<Instant>>>);

impl Duty {
    /// Of a process that shares its ledger with nobody.
    #[must_use]
    pub fn always() -> Self {
        Self(None)
    }

    /// Of one that is told until when it is its turn.
    #[must_use]
    pub fn told(until: watch::Receiver<Option<Instant>>) -> Self {
        Self(Some(until))
    }

    /// Whether it is this process's now.
    #[must_use]
    pub fn is_mine(&self) -> bool {
        match &self.0 {
            None => true,
            Some(until) => until.borrow().is_some_and(|until| Instant::now() < until),
        }
    }

    /// Returns when it is, or `false` at the stop.
    pub async fn wait(&mut self, stop: &CancellationToken) -> bool {
        while !self.is_mine() {
            let Some(until) = &mut self.0 else { return true };
            tokio::select! {
                () = stop.cancelled() => return false,
                _ = until.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        true
    }
}
