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
