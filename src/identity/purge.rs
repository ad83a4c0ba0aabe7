//! Forgetting what lum.id said before its time, so that a revocation is immediate.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Identity, TokenHash};

/// What to forget at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    All,
    Token(TokenHash),
    /// Every token of this principal.
    Principal(String),
}

/// It as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Wire {
    TokenSha256(String),
    PrincipalId(String),
    All(bool),
}

impl Purge {
    /// One of `{"token_sha256": "<64 hex digits>"}`, `{"principal_id": "<sub>"}` and `{"all": true}`.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        match serde_json::from_slice(json).ok()? {
            Wire::TokenSha256(text) => text.parse().ok().map(Self::Token),
            Wire::PrincipalId(id) => Some(Self::Principal(id)),
            Wire::All(all) => all.then_some(Self::All),
        }
    }

    /// What [`Self::parse`] reads.
    #[must_use]
    pub fn to_json(&self) -> String {
        let wire = match self {
            Self::All => Wire::All(true),
            Self::Token(hash) => Wire::TokenSha256(hash.to_hex()),
            Self::Principal(id) => Wire::PrincipalId(id.clone()),
        };
        serde_json::json!(wire).to_string()
    }
}

impl fmt::Display for Purge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("every token"),
            Self::Token(hash) => write!(f, "token {hash}"),
            Self::Principal(id) => write!(f, "the tokens of {}", id.escape_debug()),
        }
    }
}

impl Identity {
    /// Forgets answers, also those on their way, so that the next request asks lum.id. Returns how many were known.
    #[must_use]
    pub fn purge(&self, what: &Purge) -> u64 {
        let inner = &self.0;
        // First those on their way: what lands after this is kept by nobody.
        inner.flights.forget(match what {
            Purge::Token(hash) => Some(hash),
            Purge::All | Purge::Principal(_) => None,
        });
        let of_principal = |id: &str| {
            let entries = inner.active.iter().filter(|(_, entry)| entry.known.caller.principal.id == id);
            entries.map(|(hash, _)| *hash).collect::<Vec<_>>()
        };
        let hashes = match what {
            Purge::Token(hash) => vec![*hash],
            Purge::Principal(id) => of_principal(id),
            Purge::All => {
                inner.active.run_pending_tasks();
                inner.refused.run_pending_tasks();
                let known = inner.active.entry_count() + inner.refused.entry_count();
                inner.active.invalidate_all();
                inner.refused.invalidate_all();
                return known;
            }
        };
        let forget = |hash: &TokenHash| inner.active.remove(hash).is_some() | inner.refused.remove(hash).is_some();
        hashes.iter().map(|hash| u64::from(forget(hash))).sum()
    }
}
