//! What one process does for all that share a ledger: sweeping, comparing with FlowMesh's list, pruning.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two looks of who waits for it, so that an end that nobody tells of is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a process that cannot do it leaves it to the others. Where there is none, or none that can, it comes back.
const LEFT_FOR: Duration = Duration::from_secs(30);

/// Whether that is this process now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Duty(Option<Shared>);

#[derive(Debug, Clone)]
struct Shared {
    until: watch::Receiver<Option<Instant>>,
    left_until: watch::Sender<Option<Instant>>,
}

impl Duty {
    /// Of a process that shares its ledger with nobody.
    #[must_use]
    pub fn always() -> Self {
        Self(None)
    }

    /// Of one that is told until when it is its turn, and tells until when it does not want it.
    #[must_use]
    pub fn told(until: watch::Receiver<Option<Instant>>, left_until: watch::Sender<Option<Instant>>) -> Self {
        Self(Some(Shared { until, left_until }))
    }

    /// Leaves it to another process for a while, if there is one: this one cannot do it.
    pub fn leave(&self) {
        if let Some(Shared { left_until, .. }) = &self.0 {
            left_until.send_replace(Some(Instant::now() + LEFT_FOR));
        }
    }

    /// Whether it is this process's now.
    #[must_use]
    pub fn is_mine(&self) -> bool {
        match &self.0 {
            None => true,
            Some(Shared { until, .. }) => until.borrow().is_some_and(|until| Instant::now() < until),
        }
    }

    /// Returns when it is, or `false` at the stop.
    pub async fn wait(&mut self, stop: &CancellationToken) -> bool {
        while !self.is_mine() {
            let Some(Shared { until, .. }) = &mut self.0 else { return true };
            tokio::select! {
                () = stop.cancelled() => return false,
                _ = until.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        true
    }
}
