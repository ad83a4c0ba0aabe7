//! A ledger that is open, whichever it is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::registry::Registry;

use super::books::Books;
use super::duty::Duty;
use super::postgres::{Figures, PostgresBooks, PostgresLedger, Replica};
use super::sqlite::{SqliteBooks, SqliteLedger};
use super::unrecorded::Unrecorded;
use super::{Error, Ledger};
use crate::config::{Limits, Store};
use crate::telemetry::Metrics;

/// What `serve` has of its ledger.
pub struct Opened {
    pub ledger: Arc<dyn Ledger>,
    /// The console's, on connections of its own.
    pub books: Arc<dyn Books>,
    store: Store,
}

/// What of it belongs to this process alone.
pub struct Own {
    pub unrecorded: Unrecorded,
    pub duty: Duty,
    /// Absent where the ledger is shared with nobody.
    pub replica: Option<Replica>,
}

impl Opened {
    /// Opens or makes the ledger.
    ///
    /// # Errors
    /// [`Error::Open`], when it cannot be used.
    pub async fn open(store: &Store, at: Timestamp) -> Result<Self, Error> {
        let (ledger, books): (Arc<dyn Ledger>, Arc<dyn Books>) = match store {
            Store::Sqlite(path) => {
                (Arc::new(SqliteLedger::open(path, at).await?), Arc::new(SqliteBooks::open(path).await?))
            }
            Store::Postgres(database) => {
                (Arc::new(PostgresLedger::open(database, at).await?), Arc::new(PostgresBooks::lazy(database)))
            }
        };
        Ok(Self { ledger, books, store: store.clone() })
    }

    /// What was not recorded by an earlier start, and the part in what one does for all.
    #[must_use]
    pub fn own(&self, limits: &Limits, metrics: &Metrics, registry: &mut Registry) -> Own {
        match &self.store {
            Store::Sqlite(path) => {
                let unrecorded = Unrecorded::open(path, Timestamp::now());
                Own { unrecorded, duty: Duty::always(), replica: None }
            }
            Store::Postgres(database) => {
                let figures = Figures::default();
                figures.register(registry);
                // By its name: another one's would be taken for its own.
                let name: String = database
                    .replica
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' })
                    .collect();
                let open = |folder: &Path| Unrecorded::open(&folder.join(format!("tollgate-{name}")), Timestamp::now());
                let unrecorded = database.state_dir.as_deref().map(open).unwrap_or_default();
                let replica =
                    Replica::new(database, unrecorded.clone(), limits.replica_lost_after, (figures, metrics.clone()));
                Own { unrecorded, duty: replica.duty(), replica: Some(replica) }
            }
        }
    }

    /// Waits until all is committed, for a while.
    pub async fn close(self, within: Duration) {
        let closing = async {
            self.books.close().await;
            self.ledger.close().await;
        };
        let _ = tokio::time::timeout(within, closing).await;
    }
}
