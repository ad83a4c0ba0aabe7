mod floods;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use serde_json::json;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::*;
use crate::config::{Limits, Options};
use crate::principal::Principal;

const SOON: Duration = Duration::from_secs(10);

/// Answers in turn from a script for each token; the last answer repeats. Tokens without a script are inactive.
struct Script(HashMap<&'static str, (Vec<ResponseTemplate>, AtomicUsize)>);

impl Respond for Script {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let Some((answers, at)) = self.0.get(body.trim_start_matches("token=")) else { return inactive() };
        answers[at.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)].clone()
    }
}

fn active(exp: i64) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({"active": true, "sub": "user-1", "exp": exp}))
}

fn active_as(sub: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({"active": true, "sub": sub}))
}

fn inactive() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({"active": false}))
}

fn outage() -> ResponseTemplate {
    ResponseTemplate::new(503)
}

/// Slow enough to be overtaken, and faster than a short entry's second half.
fn slowly(answer: ResponseTemplate) -> ResponseTemplate {
    answer.set_delay(Duration::from_millis(120))
}

struct Fixture {
    server: MockServer,
    identity: Identity,
}

/// Times that let a test see what takes a minute otherwise.
fn short() -> Limits {
    Limits {
        identity_cache_ttl: Duration::from_millis(800),
        refused_cache_ttl: Duration::from_millis(200),
        ..Limits::default()
    }
}

impl Fixture {
    async fn new<const N: usize>(script: [(&'static str, Vec<ResponseTemplate>); N]) -> Self {
        Self::with(short(), "0", script).await
    }

    async fn with<const N: usize>(
        limits: Limits,
        stale: &str,
        script: [(&'static str, Vec<ResponseTemplate>); N],
    ) -> Self {
        let server = MockServer::start().await;
        let script = script.map(|(token, answers)| (token, (answers, AtomicUsize::new(0))));
        Mock::given(wiremock::matchers::any()).respond_with(Script(script.into())).mount(&server).await;
        let mut config = Config::parse(Options {
            lum_id_base_url: Some(server.uri()),
            lumid_stale_if_error_secs: Some(stale.to_owned()),
            ..Options::default()
        })
        .expect("valid");
        config.limits = limits;
        let http = crate::upstream::Http::new(&config.lum_id_base_url, Duration::from_secs(3)).expect("client");
        let lum_id = LumId::new(http, &config.lum_id_base_url);
        Self { server, identity: Identity::new(&config, lum_id, Metrics::unread()) }
    }

    async fn resolve(&self, token: &str) -> Result<Arc<Principal>, Error> {
        self.resolve_from("192.0.2.1", token).await
    }

    async fn resolve_from(&self, address: &str, token: &str) -> Result<Arc<Principal>, Error> {
        let resolved = self.identity.resolve(token, TokenHash::of(token), address).await;
        resolved.answer.map(|caller| caller.principal.clone())
    }

    async fn calls(&self) -> usize {
        self.server.received_requests().await.unwrap_or_default().len()
    }

    fn counted(&self, outcome: &'static str) -> u64 {
        self.identity.0.metrics.identity_cache.get_or_create(&OutcomeLabels { outcome }).get()
    }

    /// Looks a token up, again and again, until that comes to what is wanted.
    async fn until(&self, what: &str, token: &str, wanted: impl Fn(&Result<Arc<Principal>, Error>) -> bool) {
        let started = Instant::now();
        loop {
            let outcome = self.resolve(token).await;
            if wanted(&outcome) {
                return;
            }
            assert!(started.elapsed() < SOON, "waited in vain for {what}; last {outcome:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_calls(&self, wanted: usize) {
        let started = Instant::now();
        while self.calls().await < wanted {
            assert!(started.elapsed() < SOON, "waited in vain for {wanted} calls");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn is_inactive(outcome: &Result<Arc<Principal>, Error>) -> bool {
    matches!(outcome, Err(Error::Inactive))
}

fn is_unavailable(outcome: &Result<Arc<Principal>, Error>) -> bool {
    matches!(outcome, Err(Error::Unavailable(_)))
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
async fn ten_thousand_concurrent_look_ups_of_one_token_make_one_call() {
    let all = Fixture::new([("good", vec![slowly(active(0))])]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let identity = all.identity.clone();
        tasks.spawn(async move {
            let resolved = identity.resolve("good", TokenHash::of("good"), "192.0.2.1").await;
            resolved.answer.map(|caller| caller.principal.id.clone())
        });
    }
    while let Some(result) = tasks.join_next().await {
        assert_eq!(result.expect("no panic").expect("active"), "user-1");
    }
    assert_eq!(all.calls().await, 1);
}

#[tokio::test]
async fn callers_that_go_away_take_nobody_with_them_and_make_no_second_call() {
    let all = Fixture::new([("good", vec![slowly(active(0))])]).await;
    for _ in 0..500 {
        let mut leaver = Box::pin(all.resolve("good"));
        assert!(poll_once(&mut leaver).await.is_none());
    }
    assert_eq!(all.resolve("good").await.expect("active").id, "user-1");
    assert_eq!(all.calls().await, 1);
}

#[tokio::test]
async fn a_token_that_lum_id_is_slow_about_delays_no_other() {
    let hangs = active(0).set_delay(Duration::from_secs(10));
    let all = Fixture::new([("slow", vec![hangs]), ("good", vec![active(0)])]).await;
    let mut slow = Box::pin(all.resolve("slow"));
    assert!(poll_once(&mut slow).await.is_none());
    all.until_calls(1).await;
    let started = Instant::now();
    assert!(all.resolve("good").await.is_ok());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(is_unavailable(&slow.await));
}

#[tokio::test]
async fn a_refusal_is_believed_for_a_moment_and_a_failure_not_at_all() {
    let all = Fixture::new([("new", vec![outage(), outage(), inactive(), active(0)])]).await;
    assert!(is_unavailable(&all.resolve("new").await));
    assert!(is_unavailable(&all.resolve("new").await));
    for _ in 0..3 {
        assert!(is_inactive(&all.resolve("new").await));
    }
    assert_eq!((all.calls().await, all.counted("hit_inactive")), (3, 2));
    all.until("the token to work once it is active", "new", Result::is_ok).await;
    assert_eq!(all.calls().await, 4);
}

#[tokio::test]
async fn an_answer_past_its_expiry_is_inactive_and_an_expiry_ends_a_cached_one() {
    let now = Timestamp::now().as_second();
    let all = Fixture::with(
        Limits { refused_cache_ttl: Duration::from_millis(1), ..Limits::default() },
        "600",
        [
            ("past", vec![active(now - 1)]),
            ("now", vec![active(now)]),
            ("negative", vec![active(-5)]),
            ("soon", vec![active(now + 3), outage()]),
        ],
    )
    .await;
    for token in ["past", "now", "negative"] {
        assert!(is_inactive(&all.resolve(token).await), "{token}");
    }
    assert!(all.resolve("soon").await.is_ok());
    // Neither the cache's minute nor the ten that a stale answer may serve outlive it.
    all.until("the expiry", "soon", is_unavailable).await;
}

#[tokio::test]
async fn a_token_in_use_is_asked_for_again_before_it_expires_and_never_waits() {
    let all = Fixture::new([("good", vec![active(0), slowly(active(0))])]).await;
    assert!(all.resolve("good").await.is_ok());
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        assert!(all.resolve("good").await.is_ok());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(all.counted("miss"), 1, "only the first one had to wait");
    let calls = all.calls().await;
    assert!((5..=8).contains(&calls), "one each 400 ms and the time that it takes: {calls}");
}

#[tokio::test]
async fn a_refresh_that_says_inactive_ends_the_entry_at_once() {
    let all = Fixture::new([("revoked", vec![active(0), inactive()])]).await;
    assert!(all.resolve("revoked").await.is_ok());
    let started = Instant::now();
    all.until("the revocation", "revoked", is_inactive).await;
    let served = started.elapsed();
    assert!(served >= Duration::from_millis(300), "asked in the second half, not before: {served:?}");
    assert_eq!(all.counted("miss"), 1, "the refusal came from the refresh");
    assert!(all.counted("hit_inactive") >= 1);
}

#[tokio::test]
async fn a_refresh_that_fails_never_prolongs_an_entry() {
    let all = Fixture::new([("good", vec![active(0), outage()])]).await;
    assert!(all.resolve("good").await.is_ok());
    let started = Instant::now();
    all.until("the entry to expire", "good", is_unavailable).await;
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    assert_eq!(all.counted("stale"), 0);
}

#[tokio::test]
async fn a_stale_answer_serves_in_an_outage_without_waiting_and_never_after_a_refusal() {
    let hangs = outage().set_delay(Duration::from_secs(2));
    let all =
        Fixture::with(short(), "60", [("good", vec![active(0), hangs.clone(), hangs, inactive(), outage()])]).await;
    assert!(all.resolve("good").await.is_ok());
    let started = Instant::now();
    let mut waited = 0;
    while started.elapsed() < Duration::from_secs(4) {
        let one = Instant::now();
        assert!(all.resolve("good").await.is_ok(), "{:?}", started.elapsed());
        waited += u32::from(one.elapsed() > Duration::from_millis(500));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(all.counted("stale") > 10, "{}", all.counted("stale"));
    assert!(waited <= 1, "at most until the outage is known: {waited}");
    all.until("the refusal", "good", is_inactive).await;
    all.until("the outage after it", "good", is_unavailable).await;
}

#[tokio::test]
async fn without_a_stale_window_an_outage_ends_what_has_expired() {
    let all = Fixture::new([("good", vec![active(0), outage()])]).await;
    assert!(all.resolve("good").await.is_ok());
    tokio::time::sleep(Duration::from_millis(850)).await;
    assert!(is_unavailable(&all.resolve("good").await));
}

#[tokio::test]
async fn a_purge_takes_effect_with_the_next_request() {
    let script = || vec![active_as("user-1"), inactive()];
    let tokens = ["one", "two", "three"];
    for (what, gone) in [
        (Purge::Token(TokenHash::of("one")), &["one"][..]),
        (Purge::Principal("user-1".into()), &["one", "two"]),
        (Purge::All, &tokens),
    ] {
        let three = vec![active_as("user-3"), inactive()];
        let script = [("one", script()), ("two", script()), ("three", three)];
        let all = Fixture::with(Limits::default(), "60", script).await;
        for token in tokens {
            assert!(all.resolve(token).await.is_ok());
        }
        assert_eq!(all.identity.purge(&what), u64::try_from(gone.len()).expect("few"), "{what:?}");
        for token in tokens {
            assert_eq!(is_inactive(&all.resolve(token).await), gone.contains(&token), "{what:?} {token}");
        }
    }
}

#[tokio::test]
async fn a_purge_lifts_a_refusal_too() {
    let all = Fixture::with(Limits::default(), "0", [("new", vec![inactive(), active(0)])]).await;
    assert!(is_inactive(&all.resolve("new").await));
    assert_eq!(all.identity.purge(&Purge::Token(TokenHash::of("new"))), 1);
    assert!(all.resolve("new").await.is_ok());
}

#[tokio::test]
async fn what_lum_id_said_before_a_purge_is_not_kept_after_it() {
    for what in [Purge::Token(TokenHash::of("good")), Purge::Principal("user-1".into()), Purge::All] {
        let all = Fixture::with(Limits::default(), "60", [("good", vec![slowly(active(0)), inactive()])]).await;
        let mut before = Box::pin(all.resolve("good"));
        assert!(poll_once(&mut before).await.is_none());
        all.until_calls(1).await;
        let _ = all.identity.purge(&what);
        assert!(is_inactive(&all.resolve("good").await), "{what:?}: asked after the purge");
        // Asked before it: that answer is as good as one a moment earlier.
        assert!(before.await.is_ok());
        assert!(is_inactive(&all.resolve("good").await), "{what:?}: and still so when the old answer is there");
    }
}

#[tokio::test]
async fn an_outage_is_told_once_in_a_while_however_many_tokens_it_concerns() {
    let all = Fixture::new([("good", vec![active(0)]), ("unlucky", vec![outage()])]).await;
    let told = || *all.identity.0.told.lock().expect("no panic");
    assert!(is_unavailable(&all.resolve("unlucky").await));
    let first = told();
    assert!(first.is_some());
    for _ in 0..20 {
        assert!(is_unavailable(&all.resolve("unlucky").await));
        let _ = all.identity.purge(&Purge::All);
        assert!(all.resolve("good").await.is_ok());
    }
    assert_eq!(told(), first, "not at each turn");
}
