//! Tokens, and everything that lum.id and those who bring them can do to each other.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tollgate_local::stack::{ALICE, BOB, wait_for};
use tollgate_local::standin::Fault;

use crate::harness::direct::{denied_header, read_from, socket, status};
use crate::harness::{Answer, Direct, Edge, Memory, SOON, answer, assert_refused};

const INACTIVE: &str = r#"{"detail":"No identity provider accepted the token"}"#;
const TOO_MANY: &str = r#"{"detail":"Too many unrecognised tokens"}"#;
const NO_IDENTITY: &str = r#"{"detail":"Identity provider unavailable"}"#;

async fn read(edge: &Edge, token: &str) -> Answer {
    answer(edge.get("/api/v1/tasks").bearer_auth(token)).await
}

async fn purge(edge: &Edge, body: Value) -> Answer {
    answer(edge.http.post(format!("{}/cache/purge", edge.stack.tollgate.admin_url())).json(&body)).await
}

/// As `sha256sum` prints it.
pub fn sha256(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// Tollgate's log lines of refusals.
fn refusals(edge: &Edge) -> Vec<Value> {
    let lines = edge.stack.tollgate.lines();
    let events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["message"].as_str().is_some_and(|message| message.contains(": refused with"))).collect()
}

/// Runs load on threads of its own: the stand-in that is to answer in time must not wait for its turn behind all of it.
async fn apart<T: Send + 'static>(load: impl Future<Output = T> + Send + 'static) -> T {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let ended = threads.spawn(load).await;
    threads.shutdown_background();
    ended.expect("no panic")
}

/// How often lum.id may be asked after a token that is in use for so long: a remembered answer is a minute's, and in its
/// second half it is asked for anew.
fn asked_at_most(in_use: Duration) -> usize {
    1 + usize::try_from(in_use.as_secs() / 30).expect("small")
}

#[tokio::test]
async fn ten_thousand_requests_at_once_with_one_new_token_are_one_question_to_lum_id() {
    let edge = Edge::with(&[("TOLLGATE_LOG", "info")]).await;
    edge.stack.lum_id.fail_with(Fault::Slow(Duration::from_millis(500)));
    let socket = socket(&edge);
    apart(async move {
        let mut checks = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let direct = Direct::connect_to(socket.clone()).await;
            for n in 0..1000 {
                let mut direct = direct.clone();
                let request = read_from(&format!("10.0.0.{}", n % 200), ALICE.token);
                checks.spawn(async move { status(&direct.check(request).await) });
            }
        }
        while let Some(status) = checks.join_next().await {
            assert_eq!(status.expect("no panic"), 200);
        }
    })
    .await;
    assert_eq!(edge.stack.lum_id.introspections(), [ALICE.token]);
    edge.finish().await;
}

#[tokio::test]
async fn a_client_that_gives_up_fails_nobody_who_brought_the_same_token() {
    let edge = Edge::start().await;
    edge.stack.lum_id.fail_with(Fault::Slow(Duration::from_secs(2)));
    let leaver = edge.get("/api/v1/tasks").bearer_auth(ALICE.token).timeout(Duration::from_secs(1));
    let (left, stayed) = tokio::join!(leaver.send(), async {
        edge.metric("tollgate_introspections_in_flight", 1.0).await;
        read(&edge, ALICE.token).await
    });
    assert!(left.is_err_and(|error| error.is_timeout()));
    assert_eq!(stayed.status, 200);
    assert_eq!(edge.stack.lum_id.introspections(), [ALICE.token]);
    edge.finish().await;
}

#[tokio::test]
async fn a_source_of_bad_tokens_is_told_to_wait_and_who_is_known_is_not_concerned() {
    let edge = Edge::with(&[("TOLLGATE_LOG", "info")]).await;
    assert_eq!(read(&edge, ALICE.token).await.status, 200);
    let (mut refused, mut looked_at) = (0, 0);
    let started = Instant::now();
    // As many at a time as it takes to be faster than the budget grows, and on until it is seen, however slow the machine is.
    for round in 0_u32.. {
        assert!(started.elapsed() < SOON * 3, "{refused} refused, {looked_at} looked at");
        let bad = |n: u32| {
            // A header of the client's makes it no other source.
            let request = edge.get("/api/v1/tasks").bearer_auth(format!("lm_pat_live_bad_{round}_{n}"));
            answer(request.header("x-forwarded-for", format!("203.0.113.{n}")))
        };
        for one in futures_util::future::join_all((0..20).map(bad)).await {
            if one.status == 429 {
                refused += 1;
                assert_refused(&one, 429, TOO_MANY, &[]);
                let wait = one.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
                assert!(wait.is_some_and(|seconds| (1..=30).contains(&seconds)), "{one:?}");
            } else {
                looked_at += 1;
                assert_refused(&one, 401, INACTIVE, &[]);
            }
        }
        assert_eq!(read(&edge, ALICE.token).await.status, 200, "known before");
        if refused > 100 && round >= 20 {
            break;
        }
    }
    let budget = 100 + started.elapsed().as_millis() / 100;
    assert!(looked_at <= budget + 20, "{looked_at} were looked at, with a budget of {budget}");
    // An unknown token of the same source could be another bad one; one of another source is looked at.
    let mut direct = Direct::connect(&edge).await;
    let other = direct.check(read_from("192.0.2.99", BOB.token)).await;
    assert_eq!(status(&other), 200);
    let wait = "the source to be forgiven";
    wait_for(wait, SOON, async || (read(&edge, "lm_pat_live_bad_last").await.status == 401).then_some(()))
        .await
        .expect(wait);
    let counted = edge.stack.tollgate.metric(r#"tollgate_check_decisions_total{reason="too_many_unknown"}"#).await;
    assert!(counted.is_some_and(|count| count >= f64::from(refused)), "{counted:?}");
    edge.finish().await;
}

#[tokio::test]
async fn a_flood_of_random_tokens_leaves_memory_flat_and_good_tokens_unasked() {
    const TOKENS: usize = 30_000;
    let edge = Edge::with(&[("TOLLGATE_LOG", "info,tollgate::authz=warn")]).await;
    let mut direct = Direct::connect(&edge).await;
    let started = Instant::now();
    assert_eq!(status(&direct.check(read_from("192.0.2.1", ALICE.token)).await), 200);
    let flood = async |from: usize, to: usize| {
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..16 {
            let mut direct = direct.clone();
            clients.spawn(async move {
                let mut told_to_wait = 0;
                for n in (from..to).skip(client).step_by(16) {
                    let response = direct.check(read_from("198.51.100.7", &format!("random-{n}"))).await;
                    match status(&response) {
                        429 => told_to_wait += usize::from(denied_header(&response, "retry-after").is_some()),
                        status => assert_eq!(status, 401),
                    }
                    if n % 97 == 0 {
                        let good = direct.check(read_from("198.51.100.7", ALICE.token)).await;
                        assert_eq!(self::status(&good), 200);
                    }
                }
                told_to_wait
            });
        }
        clients.join_all().await.into_iter().sum::<usize>()
    };
    // The first part fills every cache and pool there is.
    flood(0, TOKENS / 3).await;
    let before = Memory::of(&edge);
    let told_to_wait = flood(TOKENS / 3, TOKENS).await;
    before.assert_flat(&edge, 8);
    assert!(told_to_wait > TOKENS / 2, "{told_to_wait}");
    let asked = edge.stack.lum_id.introspection_count();
    let allowed = 2 + 100 + 16 + usize::try_from(started.elapsed().as_millis() / 50).expect("small");
    assert!(asked < allowed + 100, "{asked} introspections");
    let after_good = edge.stack.lum_id.introspections().iter().filter(|token| *token == ALICE.token).count();
    assert!(after_good <= asked_at_most(started.elapsed()), "{after_good} in {:?}", started.elapsed());
    assert_eq!(edge.stack.tollgate.metric("tollgate_identity_cache_entries").await, Some(1.0));
    assert_eq!(edge.stack.tollgate.metric("tollgate_identity_sources").await, Some(1.0));
    edge.finish().await;
}

#[tokio::test]
async fn a_purge_makes_a_revocation_immediate() {
    let edge = Edge::start().await;
    for what in [json!({"token_sha256": sha256(ALICE.token)}), json!({"principal_id": ALICE.sub}), json!({"all": true})]
    {
        edge.stack.lum_id.user(ALICE.token, ALICE.sub, Some(ALICE.email), ALICE.scopes);
        assert_eq!(purge(&edge, json!({"all": true})).await.status, 200);
        assert_eq!(read(&edge, ALICE.token).await.status, 200);
        assert_eq!(read(&edge, BOB.token).await.status, 200);
        edge.stack.lum_id.revoke(ALICE.token);
        assert_eq!(read(&edge, ALICE.token).await.status, 200, "remembered");
        let purged = purge(&edge, what.clone()).await;
        let expected = if what["all"] == true { 2 } else { 1 };
        assert_eq!((purged.status, purged.json()), (200, json!({"purged": expected})), "{what}");
        assert_refused(&read(&edge, ALICE.token).await, 401, INACTIVE, &[]);
        assert_eq!(read(&edge, BOB.token).await.status, 200);
    }
    edge.finish().await;
}

#[tokio::test]
async fn what_is_no_purge_is_refused_and_forgets_nothing() {
    let edge = Edge::start().await;
    assert_eq!(read(&edge, ALICE.token).await.status, 200);
    let url = format!("{}/cache/purge", edge.stack.tollgate.admin_url());
    for body in [
        json!({}),
        json!([]),
        json!({"all": false}),
        json!({"token_sha256": "abc"}),
        json!({"token": ALICE.token}),
        json!({"all": true, "principal_id": "x"}),
    ] {
        let refused = purge(&edge, body.clone()).await;
        assert_eq!(refused.status, 400, "{body}");
        assert!(refused.json()["detail"].as_str().is_some_and(|detail| detail.contains("principal_id")), "{refused:?}");
    }
    // As a page in the operator's browser could send it.
    let form = edge.http.post(&url).header("content-type", "text/plain").body(r#"{"all": true}"#);
    assert_eq!(answer(form).await.status, 415);
    let page = edge.http.post(&url).header("origin", "http://evil.example").json(&json!({"all": true}));
    assert_eq!(answer(page).await.status, 403);
    assert_eq!(answer(edge.http.get(&url)).await.status, 405);
    edge.stack.lum_id.stop().await;
    assert_eq!(read(&edge, ALICE.token).await.status, 200, "still remembered");
    edge.finish().await;
}

#[tokio::test]
async fn a_huge_answer_of_lum_id_is_refused_in_bounded_time_and_memory() {
    let edge = Edge::start().await;
    assert_eq!(read(&edge, ALICE.token).await.status, 200);
    let before = Memory::of(&edge);
    let huge = format!(r#"{{"active": true, "sub": "user-x", "x": "{}"}}"#, "x".repeat(50 << 20));
    edge.stack.lum_id.fail_with(Fault::Body(huge));
    let started = Instant::now();
    for _ in 0..3 {
        assert_refused(&read(&edge, BOB.token).await, 503, NO_IDENTITY, &[("retry-after", "2")]);
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    before.assert_flat(&edge, 8);
    edge.finish().await;
}

#[tokio::test]
async fn each_refusal_is_one_line_that_support_can_work_with() {
    let edge = Edge::start().await;
    let hash = |token: &str| sha256(token)[..8].to_owned();
    let missing = answer(edge.get("/api/v1/tasks/tsk-1")).await;
    let inactive = answer(edge.post("/api/v1/workflows").bearer_auth("lm_pat_live_nobodys").body("- name: a")).await;
    edge.stack.lum_id.fail_with(Fault::status(500));
    let unavailable = read(&edge, "lm_pat_live_unlucky").await;
    let twisted = answer(edge.get("/api/v1/tasks/a%20b").bearer_auth(ALICE.token)).await;
    let four = async || Some(refusals(&edge)).filter(|lines| lines.len() >= 4);
    let lines = wait_for("a line for each", SOON, four).await.expect("told");
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for (refused, reason, route, token) in [
        (&missing, "missing_bearer", "read_task", String::new()),
        (&inactive, "inactive_token", "submit", hash("lm_pat_live_nobodys")),
        (&unavailable, "identity_unavailable", "other", hash("lm_pat_live_unlucky")),
        (&twisted, "path", "none", String::new()),
    ] {
        let line = lines.iter().find(|line| line["reason"] == reason).unwrap_or_else(|| panic!("no line for {reason}"));
        assert_eq!(line["request_id"].as_str(), refused.header("x-request-id"), "{line}");
        assert_eq!((&line["route"], &line["source"]), (&json!(route), &json!("127.0.0.1")), "{line}");
        assert_eq!((&line["token"], &line["status"]), (&json!(token), &json!(refused.status)), "{line}");
        assert_eq!(line["cause"], if reason == "identity_unavailable" { json!("status 500") } else { Value::Null });
        assert_eq!(line["level"], if reason == "identity_unavailable" { "WARN" } else { "INFO" });
    }
    for line in edge.stack.tollgate.lines() {
        assert!(!line.contains("nobodys") && !line.contains("unlucky"), "{line}");
    }
    edge.finish().await;
}
