//! Balance preflight: may this principal submit?
//!
//! A gate, not a reservation: it refuses only on Runmesh's clear word, and any trouble lets the submission through,
//! counted and logged, because billing trouble never takes compute offline.

use crate::principal::Principal;
use crate::telemetry::{Metrics, OutcomeLabels};
use crate::upstream::runmesh::{Balance, Runmesh};

/// What the guard says of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Pass,
    /// With the balance for the user's eyes.
    Refuse {
        balance: String,
    },
}

/// The gate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guard {
    runmesh: Runmesh,
    metrics: Metrics,
}

impl Guard {
    #[must_use]
    pub fn new(runmesh: Runmesh, metrics: Metrics) -> Self {
        Self { runmesh, metrics }
    }

    /// Asks Runmesh. Takes no longer than its time limit for a preflight.
    pub async fn decide(&self, principal: &Principal) -> Decision {
        let Some(email) = &principal.email else {
            self.count("no_email");
            return Decision::Pass;
        };
        match self.runmesh.preflight(email).await {
            Ok(Balance::Sufficient) => {
                self.count("sufficient");
                Decision::Pass
            }
            Ok(Balance::Insufficient(balance)) => {
                self.count("insufficient");
                Decision::Refuse { balance }
            }
            Err(error) => {
                self.count(error.kind());
                tracing::warn!(
                    principal = principal.id,
                    %error,
                    "no preflight for {}, letting the submission through: {error}",
                    principal.id
                );
                Decision::Pass
            }
        }
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.preflights.get_or_create(&OutcomeLabels { outcome }).inc();
    }
}
