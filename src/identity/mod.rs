//! Token → [`Principal`]: lum.id's answer, remembered for a short while.
//!
//! The SHA-256 of a token is the only key; the token itself is handed through and forgotten. An answer is trusted for
//! [`identity_cache_ttl`](crate::config::Limits::identity_cache_ttl) and never past the token's own expiry. Refusals
//! and errors are not remembered. Concurrent look-ups of one token make one call, and a caller that goes away takes
//! nobody with it: the next one waiting makes the call anew.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use moka::Expiry;
use moka::future::Cache;
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::principal::Principal;
use crate::telemetry::{Metrics, OutcomeLabels};
use crate::upstream::CallError;
use crate::upstream::lumid::{Introspection, LumId};

/// SHA-256 of a token: the key of every cache, and what logs may show (its first 8 hex digits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a token has no principal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// lum.id does not accept it.
    #[error("inactive token")]
    Inactive,
    /// lum.id gave no answer; nothing is known of the token.
    #[error("lum.id: {0}")]
    Unavailable(Arc<CallError>),
}

#[derive(Debug, Clone)]
struct Known {
    principal: Arc<Principal>,
    /// Epoch seconds; `None`: the token does not end by itself.
    expires_at: Option<i64>,
}

impl Known {
    fn is_over(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now.as_second())
    }
}

/// Keeps an entry for `ttl`, and never past its token's expiry.
struct UntilExpiry {
    ttl: Duration,
}

impl Expiry<TokenHash, Known> for UntilExpiry {
    fn expire_after_create(&self, _: &TokenHash, known: &Known, _: Instant) -> Option<Duration> {
        let Some(expires_at) = known.expires_at else { return Some(self.ttl) };
        let left = expires_at.saturating_sub(Timestamp::now().as_second());
        Some(self.ttl.min(Duration::from_secs(u64::try_from(left).unwrap_or(0))))
    }

    fn expire_after_update(
        &self,
        key: &TokenHash,
        known: &Known,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, known, now)
    }
}

/// The resolver. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    lum_id: LumId,
    /// How long a look-up may take in all.
    limit: Duration,
    fresh: Cache<TokenHash, Known>,
    /// What served until lately, for `LUMID_STALE_IF_ERROR_SECS`; absent when that is 0.
    stale: Option<Cache<TokenHash, Known>>,
    metrics: Metrics,
}

impl Identity {
    #[must_use]
    pub fn new(config: &Config, lum_id: LumId, metrics: Metrics) -> Self {
        let ttl = config.limits.identity_cache_ttl;
        let cache = |ttl: Duration| {
            Cache::builder()
                .max_capacity(config.limits.identity_cache_entries)
                .expire_after(UntilExpiry { ttl })
                .build()
        };
        Self {
            lum_id,
            // A little above the client's own, whose error says more.
            limit: config.limits.introspection_timeout + Duration::from_millis(200),
            fresh: cache(ttl),
            stale: (!config.stale_if_error.is_zero()).then(|| cache(ttl + config.stale_if_error)),
            metrics,
        }
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// [`Error`] when lum.id says nobody's, or says nothing.
    pub async fn resolve(&self, token: &str, hash: TokenHash) -> Result<Arc<Principal>, Error> {
        // The cache's clock ticks on its own; the token's expiry is the promise, so it is looked at on every hit.
        if let Some(known) = self.fresh.get(&hash).await.filter(|known| !known.is_over(Timestamp::now())) {
            self.count("hit");
            return Ok(known.principal);
        }
        // One limit for all of it: who waited for another's call that was cancelled makes a call of its own.
        let answer = tokio::time::timeout(self.limit, self.fresh.try_get_with(hash, self.introspect(token, hash)))
            .await
            .unwrap_or_else(|_| Err(Arc::new(Error::Unavailable(Arc::new(CallError::Timeout)))));
        match answer {
            Ok(known) if !known.is_over(Timestamp::now()) => {
                self.count("miss");
                Ok(known.principal)
            }
            Ok(_) => Err(Error::Inactive),
            Err(error) => match &*error {
                Error::Inactive => {
                    self.count("miss");
                    Err(Error::Inactive)
                }
                Error::Unavailable(_) => self.serve_stale(hash).await.ok_or_else(|| (*error).clone()),
            },
        }
    }

    async fn serve_stale(&self, hash: TokenHash) -> Option<Arc<Principal>> {
        let known = self.stale.as_ref()?.get(&hash).await?;
        if known.is_over(Timestamp::now()) {
            return None;
        }
        self.count("stale");
        Some(known.principal)
    }

    async fn introspect(&self, token: &str, hash: TokenHash) -> Result<Known, Error> {
        let answer = self.lum_id.introspect(token).await;
        let outcome = match &answer {
            Ok(Introspection::Active { .. }) => "active",
            Ok(Introspection::Inactive) => "inactive",
            Err(error) => error.kind(),
        };
        self.metrics.introspections.get_or_create(&OutcomeLabels { outcome }).inc();
        match answer {
            Ok(Introspection::Active { principal, expires_at }) => {
                let known = Known { principal: Arc::new(principal), expires_at };
                if known.is_over(Timestamp::now()) {
                    self.forget(hash).await;
                    return Err(Error::Inactive);
                }
                if let Some(stale) = &self.stale {
                    stale.insert(hash, known.clone()).await;
                }
                Ok(known)
            }
            Ok(Introspection::Inactive) => {
                self.forget(hash).await;
                Err(Error::Inactive)
            }
            Err(error) => {
                // Once per call, not once per request that waited for it.
                tracing::warn!(token = %hash, error = %error, "lum.id gave no answer for token {hash}: {error}");
                Err(Error::Unavailable(Arc::new(error)))
            }
        }
    }

    /// A token that was refused must not come back in the next outage.
    async fn forget(&self, hash: TokenHash) {
        if let Some(stale) = &self.stale {
            stale.invalidate(&hash).await;
        }
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.identity_cache.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Principals in memory, for the gauge.
    pub async fn cached(&self) -> u64 {
        // The cache counts in its own time; without this a quiet one would show what it held long ago.
        self.fresh.run_pending_tasks().await;
        self.fresh.entry_count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

    use super::*;
    use crate::config::Options;

    /// Answers in turn from a script; the last answer repeats.
    struct Script(Vec<ResponseTemplate>, AtomicUsize);

    impl Respond for Script {
        fn respond(&self, _: &Request) -> ResponseTemplate {
            let at = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
            self.0[at].clone()
        }
    }

    fn active(exp: i64) -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_json(json!({"active": true, "sub": "user-1", "exp": exp}))
    }

    fn inactive() -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_json(json!({"active": false}))
    }

    async fn identity(stale: &str, script: Vec<ResponseTemplate>) -> (MockServer, Identity) {
        let server = MockServer::start().await;
        Mock::given(wiremock::matchers::any()).respond_with(Script(script, AtomicUsize::new(0))).mount(&server).await;
        let mut config = Config::parse(Options {
            lum_id_base_url: Some(server.uri()),
            lumid_stale_if_error_secs: Some(stale.to_owned()),
            ..Options::default()
        })
        .expect("valid");
        // Short, so that the tests see expiry without waiting a minute.
        config.limits.identity_cache_ttl = Duration::from_millis(200);
        let http = crate::upstream::Http::new(&config.lum_id_base_url, Duration::from_secs(3)).expect("client");
        let lum_id = LumId::new(http, &config.lum_id_base_url);
        (server, Identity::new(&config, lum_id, Metrics::unread()))
    }

    async fn resolve(identity: &Identity) -> Result<Arc<Principal>, Error> {
        identity.resolve("token", TokenHash::of("token")).await
    }

    async fn calls(server: &MockServer) -> usize {
        server.received_requests().await.unwrap_or_default().len()
    }

    /// Looks the token up until that takes another call than the calls so far.
    async fn until_not_cached(
        identity: &Identity,
        server: &MockServer,
        so_far: usize,
    ) -> Result<Arc<Principal>, Error> {
        let started = Instant::now();
        loop {
            let outcome = resolve(identity).await;
            if calls(server).await > so_far {
                return outcome;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "waited in vain for the entry to expire");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// One poll of a future, as a runtime would do it.
    async fn poll_once<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> Option<T> {
        std::future::poll_fn(|context| match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn a_thousand_concurrent_look_ups_of_one_token_make_one_call() {
        let (server, identity) = identity("0", vec![active(0).set_delay(Duration::from_millis(50))]).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let identity = identity.clone();
            tasks.spawn(async move { resolve(&identity).await.map(|principal| principal.id.clone()) });
        }
        while let Some(result) = tasks.join_next().await {
            assert_eq!(result.expect("no panic").expect("active"), "user-1");
        }
        assert_eq!(calls(&server).await, 1);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_takes_nobody_with_it() {
        let (_server, identity) = identity("0", vec![active(0).set_delay(Duration::from_millis(100))]).await;
        // Polled in this order: the first one makes the call, the second one waits for it.
        let mut first = Box::pin(resolve(&identity));
        let mut second = Box::pin(resolve(&identity));
        assert!(poll_once(&mut first).await.is_none());
        assert!(poll_once(&mut second).await.is_none());
        drop(first);
        assert_eq!(second.await.expect("active").id, "user-1");
    }

    #[tokio::test]
    async fn refusals_and_errors_are_not_remembered() {
        let (server, identity) = identity("0", vec![ResponseTemplate::new(500), inactive(), active(0)]).await;
        assert!(matches!(resolve(&identity).await, Err(Error::Unavailable(_))));
        assert!(matches!(resolve(&identity).await, Err(Error::Inactive)));
        assert_eq!(resolve(&identity).await.expect("active by now").id, "user-1");
        assert_eq!(calls(&server).await, 3);
    }

    #[tokio::test]
    async fn an_answer_past_its_expiry_is_inactive_and_an_expiry_bounds_the_cache() {
        let now = Timestamp::now().as_second();
        let (server, identity) = identity("0", vec![active(now - 1), active(-5), active(now + 2), inactive()]).await;
        assert!(matches!(resolve(&identity).await, Err(Error::Inactive)));
        assert!(matches!(resolve(&identity).await, Err(Error::Inactive)));
        assert!(resolve(&identity).await.is_ok());
        let outcome = until_not_cached(&identity, &server, 3).await;
        assert!(matches!(outcome, Err(Error::Inactive)), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_stale_entry_serves_in_an_outage_only_when_asked_for_and_never_after_a_refusal() {
        let outage = || ResponseTemplate::new(503);
        for (stale, serves) in [("0", false), ("60", true)] {
            let (server, identity) = identity(stale, vec![active(0), outage(), inactive(), outage()]).await;
            assert!(resolve(&identity).await.is_ok());
            assert_eq!(until_not_cached(&identity, &server, 1).await.is_ok(), serves, "stale {stale}");
            assert!(matches!(resolve(&identity).await, Err(Error::Inactive)));
            assert!(matches!(resolve(&identity).await, Err(Error::Unavailable(_))), "stale {stale}");
        }
    }

    #[test]
    fn a_hash_shows_eight_digits_and_nothing_of_the_token() {
        assert_eq!(TokenHash::of("abc").to_string(), "ba7816bf");
    }
}
