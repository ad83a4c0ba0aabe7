//! Who may submit while log entries get lost.

use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::lock;

/// In a calm round: everybody but one stops submitting while something is lossy.
pub(super) struct Floor {
    calm: bool,
    lock: Arc<RwLock<()>>,
    cleared: Mutex<Weak<OwnedRwLockWriteGuard<()>>>,
}

/// Held by whoever submits, until its log entry has surely been committed.
pub(super) type Submitting = Option<OwnedRwLockReadGuard<()>>;
/// Held while log entries may get lost.
pub(super) type Lossy = Option<Arc<OwnedRwLockWriteGuard<()>>>;

impl Floor {
    pub fn new(calm: bool) -> Self {
        Self { calm, lock: Arc::default(), cleared: Mutex::default() }
    }

    pub fn is_calm(&self) -> bool {
        self.calm
    }

    /// Whether this person is the one who is there when it breaks; in a crowded round everybody is.
    pub fn takes_risks(&self, person: usize) -> bool {
        !self.calm || person == 0
    }

    /// Waits until this person may submit.
    pub async fn submit(&self, person: usize) -> Submitting {
        if self.takes_risks(person) { None } else { Some(self.lock.clone().read_owned().await) }
    }

    /// Waits until nobody else submits. Overlapping ones share it.
    pub async fn clear(&self) -> Lossy {
        if !self.calm {
            return None;
        }
        if let Some(shared) = lock(&self.cleared).upgrade() {
            return Some(shared);
        }
        let guard = Arc::new(self.lock.clone().write_owned().await);
        *lock(&self.cleared) = Arc::downgrade(&guard);
        Some(guard)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn in_a_calm_round_everybody_but_one_waits_while_something_is_lossy() {
        let floor = Floor::new(true);
        let (first, second) = (floor.clear().await, floor.clear().await);
        assert!(floor.submit(0).await.is_none(), "the one does not wait");
        assert!(tokio::time::timeout(MOMENT, floor.submit(1)).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(MOMENT, floor.submit(1)).await.is_err(), "the second goes on");
        drop(second);
        let submitting = tokio::time::timeout(MOMENT, floor.submit(1)).await.unwrap();
        assert!(tokio::time::timeout(MOMENT, floor.clear()).await.is_err(), "until its log entry is committed");
        drop(submitting);
        assert!(floor.clear().await.is_some());
    }

    #[tokio::test]
    async fn in_a_crowded_round_nobody_waits() {
        let floor = Floor::new(false);
        assert!(floor.clear().await.is_none());
        assert!(floor.submit(1).await.is_none());
        assert!(floor.takes_risks(1));
    }
}
