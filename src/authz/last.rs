//! When Envoy last asked, for people who look.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// The time of the last Check. Cheap to clone, and to set: a Check takes no lock for it.
#[derive(Debug, Clone, Default)]
pub struct LastCheck(Arc<AtomicI64>);

impl LastCheck {
    /// A Check came in.
    pub fn came(&self, at: Timestamp) {
        self.0.store(at.as_millisecond(), Ordering::Relaxed);
    }

    /// `None` when there was none yet.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        Some(self.0.load(Ordering::Relaxed)).filter(|at| *at > 0).and_then(|at| Timestamp::from_millisecond(at).ok())
    }
}
