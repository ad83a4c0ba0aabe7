//! What one client, or lum.id, can do to everybody else.

use super::*;

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
                let _ = identity.resolve(&token, TokenHash::of(&token), address).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bad_tokens_is_stopped_at_its_source_and_touches_nobody_else() {
    const TOKENS: u32 = 1_000_000;
    // However slow the machine is, the good token is not due for a refresh meanwhile.
    let ttl = Duration::from_mins(10);
    let limits = Limits { introspections_in_flight: 8, identity_cache_ttl: ttl, ..Limits::default() };
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
    // Long enough for several rounds, and until it is seen.
    while started.elapsed() < Duration::from_secs(3) || told_to_wait == 0 {
        assert!(started.elapsed() < SOON * 2, "the flood is never shed");
        assert!(all.resolve("late").await.is_ok());
        let _ = all.identity.purge(&Purge::Token(TokenHash::of("late")));
        let flooder = all.resolve_from("198.51.100.7", "random-own").await;
        told_to_wait += u32::from(matches!(flooder, Err(Error::TooMany { .. })));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(flood);
}
