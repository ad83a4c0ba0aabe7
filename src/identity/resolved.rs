//! What came of looking a token up, and how.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::Error;
use crate::principal::Principal;
use crate::telemetry::Cache;

/// Whose a token is, and how that is known.
#[derive(Debug)]
pub struct Resolved {
    pub way: Way,
    pub answer: Result<Arc<Caller>, Error>,
}

/// Somebody who is remembered, and the part of Check's answers that is the same whatever they ask for.
#[derive(Debug)]
pub struct Caller {
    pub principal: Arc<Principal>,
    answer: OnceLock<Bytes>,
}

impl Caller {
    #[must_use]
    pub fn new(principal: Arc<Principal>) -> Self {
        Self { principal, answer: OnceLock::new() }
    }

    /// Their part of an answer, encoded at the first request and remembered with them.
    pub fn answer(&self, encode: impl FnOnce(&Principal) -> Bytes) -> Bytes {
        self.answer.get_or_init(|| encode(&self.principal)).clone()
    }
}

/// How an answer was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Remembered.
    Hit,
    /// Remembered for longer than lum.id's word is trusted, because lum.id fails.
    Stale,
    /// Remembered as refused.
    HitInactive,
    /// lum.id was asked and answered.
    Miss,
    /// lum.id was asked and did not answer.
    Unavailable,
    /// lum.id was not asked: its source has brought too many refused tokens.
    OverBudget,
}

impl Way {
    /// A bounded name for metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::HitInactive => "hit_inactive",
            Self::Miss => "miss",
            Self::Unavailable => "unavailable",
            Self::OverBudget => "over_budget",
        }
    }

    /// As far as it tells how long it took.
    #[must_use]
    pub fn cache(self) -> Cache {
        match self {
            Self::Hit => Cache::Hit,
            Self::Stale => Cache::Stale,
            Self::HitInactive | Self::OverBudget => Cache::Refused,
            Self::Miss | Self::Unavailable => Cache::Miss,
        }
    }
}
