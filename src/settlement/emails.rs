//! Whose e-mail is waited for: charges of somebody without one are held until they are seen with one.
//!
//! Check sees everybody, and must not ask the ledger about each; so the few who are waited for are kept in memory, as the
//! ledger has them every few seconds.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;
use crate::lifecycle::TaskError;

/// Between two looks into the ledger.
const INTERVAL: Duration = Duration::from_secs(5);

/// The ids of those who are waited for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Awaited(Arc<RwLock<HashSet<String>>>);

impl Awaited {
    /// Whether this principal is waited for; then no more, until the ledger says so again.
    #[must_use]
    pub fn take(&self, principal_id: &str) -> bool {
        // Nearly always nobody is waited for, and nobody waits for the lock.
        if !self.0.read().unwrap_or_else(PoisonError::into_inner).contains(principal_id) {
            return false;
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(principal_id)
    }

    /// Keeps them until the stop.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep(self, ledger: Arc<dyn Ledger>, stop: CancellationToken) -> Result<(), TaskError> {
        loop {
            match ledger.awaiting_email().await {
                Ok(ids) => *self.0.write().unwrap_or_else(PoisonError::into_inner) = ids.into_iter().collect(),
                Err(error) => tracing::error!(%error, "cannot look for charges without an e-mail: {error}"),
            }
            if stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
                return Ok(());
            }
        }
    }
}
