//! Token → [`Principal`](crate::principal::Principal): lum.id's answer, remembered for a short while.
//!
//! The SHA-256 of a token is the only key; the token itself goes to lum.id and is forgotten. Active answers are remembered
//! as [`policy`] says, refused tokens apart from them and for a few seconds only, so that no flood of bad tokens can push
//! a good one out, and failures not at all. One token is asked after by one call at a time, calls in flight are bounded,
//! and a source that keeps bringing tokens which lum.id does not accept is not asked for any more ([`budget`]).

pub mod budget;
pub mod hash;
pub mod policy;
mod purge;
pub mod resolved;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use secrecy::SecretString;

use crate::config::{Config, expose};
use crate::flight::{Answer, Bounds, Flights, GRACE, Joined, Place, Share};
use crate::telemetry::{Metrics, OutcomeLabels, traces};
use crate::upstream::CallError;
use crate::upstream::health::{Account, Health, Heard};
use crate::upstream::lumid::{Introspection, LumId};
use budget::{Budget, Debt, Source};
pub use hash::TokenHash;
use policy::{Known, Now, Policy, Use};
pub use purge::Purge;
use resolved::Way;
pub use resolved::{Caller, Resolved};

/// After which a source with too many calls in flight may try again.
const SHARE_PAUSE: Duration = Duration::from_secs(1);
/// Between two lines that say that lum.id fails.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why a token has no principal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// lum.id does not accept it.
    #[error("inactive token")]
    Inactive,
    /// Its source has brought too many of those, and lum.id was not asked after this one.
    #[error("too many unrecognised tokens")]
    TooMany { retry_after: Duration },
    /// lum.id gave no answer; nothing is known of the token.
    #[error("lum.id: {0}")]
    Unavailable(Arc<CallError>),
}

/// How much of everything there is, for the gauges.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Active tokens remembered.
    pub active: u64,
    /// Refused tokens remembered.
    pub refused: u64,
    /// Sources with refusals to pay off.
    pub sources: u64,
    /// Calls to lum.id in flight.
    pub in_flight: usize,
    /// Calls that wait for a place.
    pub waiting: usize,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    keep_for: Duration,
    /// When lum.id last gave no answer for it.
    failed: Mutex<Option<Instant>>,
}

impl Entry {
    fn failed(&self) -> Option<Instant> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_failed(&self, at: Instant) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }
}

/// What came of asking.
#[derive(Debug, Clone)]
enum Outcome {
    Active(Arc<Entry>),
    Inactive,
    /// The source for which it was asked may not ask now; another one may.
    OverBudget,
}

/// Remembers each entry as long as the policy says.
struct AsLongAsWorthIt;

impl Expiry<TokenHash, Arc<Entry>> for AsLongAsWorthIt {
    fn expire_after_create(&self, _: &TokenHash, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        Some(entry.keep_for)
    }

    fn expire_after_update(
        &self,
        _: &TokenHash,
        entry: &Arc<Entry>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.keep_for)
    }
}

/// The resolver. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    lum_id: LumId,
    policy: Policy,
    budget: Budget,
    limit: Duration,
    active: Cache<TokenHash, Arc<Entry>>,
    refused: Cache<TokenHash, ()>,
    debts: Cache<Source, Debt>,
    /// What a source may have in flight.
    shares: Cache<Source, Arc<Share>>,
    per_source: usize,
    flights: Flights<TokenHash, Outcome>,
    /// When it was last told that lum.id fails.
    told: Mutex<Option<Instant>>,
    health: Health,
    metrics: Metrics,
}

impl Identity {
    #[must_use]
    pub fn new(config: &Config, lum_id: LumId, metrics: Metrics) -> Self {
        let limits = &config.limits;
        let limit = limits.introspection_timeout + GRACE;
        Self(Arc::new(Inner {
            lum_id,
            policy: Policy { trust: limits.identity_cache_ttl, stale_if_error: config.stale_if_error },
            budget: Budget { interval: limits.refusal_interval, burst: limits.refusal_burst },
            limit,
            active: Cache::builder()
                .max_capacity(limits.identity_cache_entries)
                // Whoever comes is remembered, and whoever was longest away makes room.
                .eviction_policy(EvictionPolicy::lru())
                .expire_after(AsLongAsWorthIt)
                .build(),
            refused: Cache::builder()
                .max_capacity(limits.refused_cache_entries)
                .time_to_live(limits.refused_cache_ttl)
                .build(),
            debts: Cache::builder()
                .max_capacity(limits.refusal_sources)
                // A debt is paid off long before, unless it grows.
                .time_to_idle(limits.refusal_interval * limits.refusal_burst * 2)
                .build(),
            shares: Cache::builder().max_capacity(limits.refusal_sources).time_to_idle(Duration::from_mins(1)).build(),
            per_source: limits.introspections_per_source,
            flights: Flights::new(Bounds {
                in_flight: limits.introspections_in_flight,
                reserved: limits.introspections_reserved,
                waiting: limits.calls_waiting,
                wait: limits.place_wait,
                limit,
            }),
            told: Mutex::new(None),
            health: Health::default(),
            metrics,
        }))
    }

    /// Whose token this is, and how that is known; `source` is the address that Envoy vouches for.
    pub async fn resolve(&self, token: &str, hash: TokenHash, source: &str) -> Resolved {
        let resolved = self.0.resolve(token, hash, source).await;
        let outcome = resolved.way.as_str();
        traces::note("tollgate.cache", outcome);
        self.0.metrics.identity_cache.get_or_create(&OutcomeLabels { outcome }).inc();
        resolved
    }

    /// What was last heard of lum.id.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.0.health.heard(Instant::now())
    }

    /// All that is remembered of lum.id.
    #[must_use]
    pub fn account(&self) -> Account {
        self.0.health.account(Instant::now())
    }

    #[must_use]
    pub fn figures(&self) -> Figures {
        let inner = &self.0;
        // The caches count in their own time; without this a quiet one would show what it held long ago.
        inner.active.run_pending_tasks();
        inner.refused.run_pending_tasks();
        inner.debts.run_pending_tasks();
        let (in_flight, waiting) = inner.flights.figures();
        Figures {
            active: inner.active.entry_count(),
            refused: inner.refused.entry_count(),
            sources: inner.debts.entry_count(),
            in_flight,
            waiting,
        }
    }
}

impl Inner {
    fn look(&self, hash: &TokenHash) -> Option<(Arc<Entry>, Use)> {
        let entry = self.active.get(hash)?;
        let verdict = self.policy.judge(&entry.known, entry.failed(), Now::read());
        Some((entry, verdict))
    }

    async fn resolve(self: &Arc<Self>, token: &str, hash: TokenHash, source: &str) -> Resolved {
        match self.look(&hash) {
            Some((entry, Use::Serve)) => return self.serve(&entry),
            Some((entry, Use::ServeAndAsk)) => {
                let _ = self.ask(token, hash, None);
                return self.serve(&entry);
            }
            // It is known to be good, so it is nothing that its source has to answer for.
            Some((_, Use::AskFirst)) => return self.ask_in_time(token, hash, None).await,
            Some((_, Use::Forget)) | None => {}
        }
        if self.refused.contains_key(&hash) {
            return Resolved { way: Way::HitInactive, answer: Err(Error::Inactive) };
        }
        self.ask_in_time(token, hash, Some(&Source::of(source))).await
    }

    fn serve(&self, entry: &Entry) -> Resolved {
        let is_stale = entry.known.answered.elapsed() >= self.policy.trust;
        let way = if is_stale { Way::Stale } else { Way::Hit };
        Resolved { way, answer: Ok(entry.known.caller.clone()) }
    }

    /// Asks lum.id and waits, in all no longer than one call and the wait for its place may take.
    async fn ask_in_time(self: &Arc<Self>, token: &str, hash: TokenHash, source: Option<&Source>) -> Resolved {
        let asked = tokio::time::timeout(self.limit, async {
            loop {
                if let Some(Err(retry_after)) = source.map(|source| self.allows(source)) {
                    return Err(Error::TooMany { retry_after });
                }
                let (answer, is_own) = match self.ask(token, hash, source.cloned()) {
                    Joined::Known(known) => (Ok(known), true),
                    Joined::Waits(ticket) => {
                        let is_own = ticket.is_own;
                        (ticket.answer().await, is_own)
                    }
                };
                match answer {
                    // The call was another source's, and it ended for its sake: make one for this source.
                    Ok(Outcome::OverBudget) => {}
                    Err(error) if matches!(*error, CallError::OverShare) => {
                        if is_own {
                            return Err(Error::TooMany { retry_after: SHARE_PAUSE });
                        }
                    }
                    Ok(Outcome::Active(entry)) if !entry.known.is_over(Now::read()) => return Ok(entry),
                    Ok(Outcome::Active(_) | Outcome::Inactive) => return Err(Error::Inactive),
                    Err(error) => return Err(Error::Unavailable(error)),
                }
            }
        });
        let asked = asked.await.unwrap_or_else(|_| Err(Error::Unavailable(Arc::new(CallError::Timeout))));
        let way = match &asked {
            Ok(_) | Err(Error::Inactive) => Way::Miss,
            Err(Error::TooMany { .. }) => Way::OverBudget,
            // It may have been forgotten while lum.id was waited for.
            Err(Error::Unavailable(_)) => match self.look(&hash) {
                Some((entry, verdict)) if verdict != Use::Forget => return self.serve(&entry),
                _ => Way::Unavailable,
            },
        };
        Resolved { way, answer: asked.map(|entry| entry.known.caller.clone()) }
    }

    /// Joins or starts the call for a token. Without a source it is for an answer that is known already.
    fn ask(self: &Arc<Self>, token: &str, hash: TokenHash, source: Option<Source>) -> Joined<Outcome> {
        let known = || match self.look(&hash) {
            Some((entry, Use::Serve)) => Some(Outcome::Active(entry)),
            Some(_) => None,
            None => self.refused.contains_key(&hash).then_some(Outcome::Inactive),
        };
        let place = match &source {
            Some(source) => Place::Share(self.shares.get_with_by_ref(source, || Arc::new(Share::new(self.per_source)))),
            None => Place::Reserved,
        };
        let (inner, token) = (self.clone(), SecretString::from(token));
        let call = move || async move {
            match &source {
                // It has had to wait for its place, and others of the same source may have been refused meanwhile.
                Some(source) if inner.allows(source).is_err() => Ok(Outcome::OverBudget),
                _ => inner.introspect(&token, source.as_ref()).await,
            }
        };
        let inner = self.clone();
        self.flights.join(hash, place, known, call, move |answer| inner.keep(hash, answer))
    }

    async fn introspect(&self, token: &SecretString, source: Option<&Source>) -> Result<Outcome, CallError> {
        let answer = traces::call("introspect", CallError::kind, self.lum_id.introspect(expose(token))).await;
        let outcome = match &answer {
            Ok(Introspection::Active { .. }) => "active",
            Ok(Introspection::Inactive) => "inactive",
            Err(error) => error.kind(),
        };
        self.metrics.introspections.get_or_create(&OutcomeLabels { outcome }).inc();
        match &answer {
            Ok(_) => self.health.answered(Instant::now()),
            Err(error) => {
                self.health.failed(error, Instant::now());
                self.tell(error);
            }
        }
        if let Introspection::Active { principal, expires_at } = answer? {
            let now = Now::read();
            let caller = Arc::new(Caller::new(Arc::new(principal)));
            let known = Known { caller, expires_at, answered: now.steady };
            if !known.is_over(now) {
                let keep_for = self.policy.keep_for(&known, now);
                return Ok(Outcome::Active(Arc::new(Entry { known, keep_for, failed: Mutex::new(None) })));
            }
        }
        if let Some(source) = source {
            let now = Instant::now();
            for (source, budget) in self.budgets(source) {
                self.debts.entry(source).and_compute_with(|debt| {
                    Op::Put(budget.charge(debt.map(moka::Entry::into_value).unwrap_or_default(), now))
                });
            }
        }
        Ok(Outcome::Inactive)
    }

    /// Says that lum.id fails, also where a known token hides it, and not for each of them.
    fn tell(&self, error: &CallError) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(trace_id = traces::id(), %error, "lum.id does not answer as agreed: {error}");
        }
    }

    /// Remembers what came of a call.
    fn keep(&self, hash: TokenHash, answer: &Answer<Outcome>) {
        match answer {
            Ok(Outcome::Active(entry)) => {
                self.active.insert(hash, entry.clone());
                self.refused.invalidate(&hash);
            }
            Ok(Outcome::Inactive) => {
                self.active.invalidate(&hash);
                self.refused.insert(hash, ());
            }
            Ok(Outcome::OverBudget) => {}
            Err(_) => {
                if let Some(entry) = self.active.get(&hash) {
                    entry.has_failed(Instant::now());
                }
            }
        }
    }

    fn allows(&self, source: &Source) -> Result<(), Duration> {
        let now = Instant::now();
        self.budgets(source)
            .try_for_each(|(source, budget)| budget.allows(self.debts.get(&source).unwrap_or_default(), now))
    }

    /// The budget of a source, and that of the network it is in.
    fn budgets(&self, source: &Source) -> impl Iterator<Item = (Source, Budget)> {
        let network = source.network().map(|network| (network, self.budget.of_network()));
        std::iter::once((source.clone(), self.budget)).chain(network)
    }
}

#[cfg(test)]
mod tests;
