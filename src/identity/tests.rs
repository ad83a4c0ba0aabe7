use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use serde_json::json;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::*;
use crate::config::{Limits, Options};

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
        self.identity.resolve(token, TokenHash::of(token), &Source::of(address)).await
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
            let source = Source::of("192.0.2.1");
            identity.resolve("good", TokenHash::of("good"), &source).await.map(|principal| principal.id.clone())
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

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bad_tokens_is_stopped_at_its_source_and_touches_nobody_else() {
    const TOKENS: u32 = 1_000_000;
    let limits = Limits { introspections_in_flight: 8, ..Limits::default() };
    let script = [("good", vec![active(0)]), ("late", vec![active(0)])];
    let all = Fixture::with(limits.clone(), "0", script).await;
    assert!(all.resolve("good").await.is_ok());
    let refused = AtomicUsize::new(0);
    let flood = async |from: u32, to: u32| {
        for n in from..to {
            match all.resolve_from("198.51.100.7", &format!("random-{n}")).await {
                Err(Error::Inactive) => {}
                Err(Error::TooMany { retry_after }) => {
                    assert!(retry_after > Duration::ZERO);
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                outcome => panic!("{outcome:?}"),
            }
            if n % 100 == 0 {
                // What is answered from memory never gives the others a turn by itself.
                tokio::task::yield_now().await;
                assert!(all.resolve("good").await.is_ok());
                assert!(all.resolve_from("198.51.100.7", "good").await.is_ok(), "a known token passes from anywhere");
            }
        }
    };
    let started = Instant::now();
    // Sixty-four at a time, as of a client with as many connections.
    futures_util::future::join_all((0..64).map(|n| flood(n * (TOKENS / 64), (n + 1) * (TOKENS / 64)))).await;
    let allowed = usize::try_from(limits.refusal_burst).expect("small")
        + limits.introspections_in_flight
        + usize::try_from(started.elapsed().as_millis() / limits.refusal_interval.as_millis()).expect("small");
    let calls = all.calls().await;
    assert!(calls <= allowed + 2, "{calls} calls, {allowed} allowed");
    assert!(refused.load(Ordering::Relaxed) > 900_000, "{refused:?}");
    assert_eq!(all.counted("miss") - 1, u64::try_from(calls - 1).expect("few"), "good never missed again");
    assert!(all.resolve("late").await.is_ok(), "another source is not concerned");
    let figures = all.identity.figures();
    assert!(figures.refused <= 10_000 && figures.active == 2 && figures.sources == 1, "{figures:?}");
}

#[tokio::test]
async fn calls_in_flight_stay_within_their_bound_however_many_sources_ask() {
    let limits = Limits { introspections_in_flight: 8, ..Limits::default() };
    let all = Fixture::with(limits, "0", []).await;
    let ask = |n: u32| {
        let (token, address) = (format!("random-{n}"), format!("10.0.{}.{}", n / 256, n % 256));
        let all = &all;
        async move {
            let outcome = all.resolve_from(&address, &token).await;
            assert!(all.identity.figures().in_flight <= 8);
            outcome
        }
    };
    for outcome in futures_util::future::join_all((0..1000).map(ask)).await {
        assert!(is_inactive(&outcome) || is_unavailable(&outcome), "{outcome:?}");
    }
}

#[tokio::test]
async fn who_waits_for_a_call_of_a_source_that_may_not_ask_gets_a_call_of_their_own() {
    let limits = Limits { introspections_in_flight: 1, refusal_burst: 1, ..Limits::default() };
    let script = [("bad", vec![slowly(inactive())]), ("good", vec![active(0)])];
    let all = Fixture::with(limits, "0", script).await;
    // The only place is taken, and when it is free the source of the second call has used up its budget.
    let mut bad = Box::pin(all.resolve_from("198.51.100.7", "bad"));
    assert!(poll_once(&mut bad).await.is_none());
    let mut second = Box::pin(all.resolve_from("198.51.100.7", "good"));
    assert!(poll_once(&mut second).await.is_none());
    let mut joins = Box::pin(all.resolve_from("192.0.2.1", "good"));
    assert!(poll_once(&mut joins).await.is_none());
    let (bad, second, joins) = tokio::join!(bad, second, joins);
    assert!(is_inactive(&bad));
    assert!(matches!(second, Err(Error::TooMany { .. })), "{second:?}");
    assert!(joins.is_ok(), "{joins:?}");
}

/// lum.id is slow about tokens that it does not know, as about those of a legacy source that it has to ask itself.
async fn slow_about_unknown(limits: Limits, hangs: Duration) -> Fixture {
    let all = Fixture::with(limits, "0", [("good", vec![active(0)]), ("late", vec![active(0)])]).await;
    let slow = inactive().set_delay(hangs);
    let unknown = wiremock::matchers::body_string_contains("random");
    Mock::given(unknown).respond_with(slow).with_priority(1).mount(&all.server).await;
    all
}

/// A client that goes on with new tokens until it is dropped.
fn flood(all: &Fixture, address: &'static str) -> tokio::task::JoinSet<()> {
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..32 {
        let identity = all.identity.clone();
        clients.spawn(async move {
            for n in 0.. {
                let token = format!("random-{client}-{n}");
                let _ = identity.resolve(&token, TokenHash::of(&token), &Source::of(address)).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_tokens_that_lum_id_is_slow_about_takes_no_place_of_others() {
    let limits =
        Limits { introspections_in_flight: 8, introspections_reserved: 2, introspections_per_source: 2, ..short() };
    let all = slow_about_unknown(limits, Duration::from_secs(10)).await;
    assert!(all.resolve("good").await.is_ok());
    let flood = flood(&all, "198.51.100.7");
    all.until_calls(3).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        assert!(all.resolve("good").await.is_ok(), "a token in use is refreshed all the same");
        assert!(all.resolve("late").await.is_ok(), "another source gets its answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(matches!(all.resolve_from("198.51.100.7", "random-last").await, Err(Error::TooMany { .. })));
    drop(flood);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_hiccup_of_lum_id_answers_come_again_though_a_client_goes_on_with_new_tokens() {
    let limits = Limits { introspections_in_flight: 8, introspections_per_source: 4, ..short() };
    let all = slow_about_unknown(limits, Duration::from_millis(300)).await;
    let flood = flood(&all, "198.51.100.7");
    all.until_calls(8).await;
    let started = Instant::now();
    let mut told_to_wait = 0;
    while started.elapsed() < Duration::from_secs(3) {
        assert!(all.resolve("late").await.is_ok());
        let _ = all.identity.purge(&Purge::Token(TokenHash::of("late")));
        let flooder = all.resolve_from("198.51.100.7", "random-own").await;
        told_to_wait += u32::from(matches!(flooder, Err(Error::TooMany { .. })));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(told_to_wait > 0, "the flood is shed");
    drop(flood);
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
