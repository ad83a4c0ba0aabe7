//! Forgetting what lum.id said before its time, so that a revocation is immediate.

use super::{Identity, TokenHash};

/// What to forget at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    All,
    Token(TokenHash),
    /// Every token of this principal.
    Principal(String),
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
