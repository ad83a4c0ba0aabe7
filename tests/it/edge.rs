//! What a client behind Envoy meets: identity, refusals, outages.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollgate_local::stack::{ALICE, BOB, PAUPER, PEOPLE, wait_for};
use tollgate_local::standin::{Fault, Seen};

use crate::harness::{Edge, SOON, answer, assert_refused};

/// The last request that FlowMesh got from a client, not from Tollgate itself.
fn last_seen(edge: &Edge) -> Seen {
    edge.seen().pop().expect("FlowMesh got a request")
}

const MISSING: &str = r#"{"detail":"Missing bearer token"}"#;
const INACTIVE: &str = r#"{"detail":"No identity provider accepted the token"}"#;
const NO_BALANCE: &str =
    r#"{"detail":"Insufficient balance ($0.00). Top up at https://lum.id/app/billing before submitting workflows."}"#;
const NO_IDENTITY: &str = r#"{"detail":"Identity provider unavailable"}"#;

#[tokio::test]
async fn a_good_token_becomes_identity_headers_and_nothing_that_the_client_made_up_survives() {
    let edge = Edge::start().await;
    let request = edge
        .get("/api/v1/tasks?status=DONE&b=2&a=1")
        .bearer_auth(BOB.token)
        .header("x-flowmesh-principal-id", "admin")
        .header("X-FlowMesh-Scopes", "*")
        .header("x-flowmesh-supplier-id", "mine")
        .header("x-flowmesh-anything", "else")
        .header("x_flowmesh_principal_id", "admin");
    assert_eq!(answer(request).await.status, 200);
    let seen = last_seen(&edge);
    assert_eq!(seen.path_and_query, "/api/v1/tasks?status=DONE&b=2&a=1", "a query without a token is not touched");
    let identity: Vec<_> = seen
        .headers
        .iter()
        .filter(|(name, _)| name.contains("flowmesh"))
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    let scopes = "workflows:submit workflows:read workflows:cancel tasks:read";
    let expected = [
        ("x-flowmesh-principal-id", "user-bob"),
        ("x-flowmesh-external-id", "user-bob"),
        ("x-flowmesh-org-id", "lumid"),
        ("x-flowmesh-principal-type", "user"),
        ("x-flowmesh-scopes", scopes),
    ];
    assert_eq!(sorted(identity), sorted(expected.to_vec()));
    assert_eq!(seen.header("authorization"), None);
    assert!(!format!("{seen:?}").contains(BOB.email));
    edge.finish().await;
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list
}

#[tokio::test]
async fn the_token_goes_on_to_flowmesh_only_when_the_operator_wants_it() {
    let edge = Edge::with(&[("TOLLGATE_FORWARD_AUTHORIZATION", "on"), ("LUMID_ORG_ID", "other-org")]).await;
    answer(edge.get("/api/v1/tasks").bearer_auth(BOB.token)).await;
    let seen = last_seen(&edge);
    assert_eq!(seen.header("authorization"), Some(format!("Bearer {}", BOB.token).as_str()));
    assert_eq!(seen.header("x-flowmesh-org-id"), Some("other-org"));
    edge.finish().await;
}

#[tokio::test]
async fn without_exactly_one_well_formed_token_there_is_no_way_in() {
    let edge = Edge::start().await;
    let missing = [("www-authenticate", "Bearer")];
    assert_refused(&answer(edge.get("/api/v1/tasks")).await, 401, MISSING, &missing);
    let long = format!("Bearer {}", "a".repeat(8 * 1024 + 1));
    for value in ["Basic YTpi", "Bearer", "Bearer ", "Token abc", "Bearer a b", "Bearer a,Bearer b", &long] {
        let request = edge.get("/api/v1/tasks").header("authorization", value);
        assert_refused(&answer(request).await, 401, MISSING, &missing);
    }
    let twice = edge.get("/api/v1/tasks").bearer_auth(ALICE.token).bearer_auth(ALICE.token);
    assert_refused(&answer(twice).await, 401, MISSING, &missing);
    // A token in the query means nothing outside a WebSocket upgrade.
    let query = edge.get(&format!("/api/v1/tasks?token={}", ALICE.token));
    assert_refused(&answer(query).await, 401, MISSING, &missing);
    let bytes = format!(
        "GET /api/v1/tasks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        "\u{ff}"
    );
    assert_refused(&edge.raw(&bytes).await, 401, MISSING, &missing);
    assert_eq!(edge.stack.lum_id.introspection_count(), 0, "lum.id is not asked after what is no token");
    assert!(edge.seen().is_empty());
    edge.finish().await;
}

#[tokio::test]
async fn a_token_that_lum_id_does_not_accept_is_refused_until_it_does() {
    let edge = Edge::start().await;
    let request = || answer(edge.get("/api/v1/tasks").bearer_auth("lm_pat_live_new"));
    let header = [("www-authenticate", "Bearer error=\"invalid_token\"")];
    assert_refused(&request().await, 401, INACTIVE, &header);
    edge.stack.lum_id.user("lm_pat_live_new", "user-new", None, &[]);
    let minted = Instant::now();
    wait_for("the new token to work", SOON, async || (request().await.status == 200).then_some(()))
        .await
        .expect("works");
    assert!(minted.elapsed() < Duration::from_secs(6), "a refusal is believed for 5 s: {:?}", minted.elapsed());
    let seen = last_seen(&edge);
    assert_eq!(seen.header("x-flowmesh-principal-id"), Some("user-new"));
    assert_eq!(seen.header("x-flowmesh-scopes"), None);
    edge.finish().await;
}

#[tokio::test]
async fn a_hundred_requests_with_one_token_are_one_question_to_lum_id() {
    let edge = Edge::start().await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..100 {
        requests.spawn(answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)));
    }
    while let Some(answer) = requests.join_next().await {
        assert_eq!(answer.expect("answered").status, 200);
    }
    assert_eq!(edge.stack.lum_id.introspections(), [ALICE.token]);
    edge.metric("tollgate_identity_cache_total", 100.0).await;
    edge.metric("tollgate_identity_cache_entries", 1.0).await;
    edge.finish().await;
}

#[tokio::test]
async fn lum_id_in_trouble_is_a_503_for_unknown_tokens_and_nothing_for_known_ones() {
    let edge = Edge::start().await;
    assert_eq!(answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)).await.status, 200);
    let faults = [
        Fault::status(500),
        Fault::retry_after(429, 7),
        Fault::Body("<html>".to_owned()),
        Fault::Body("[]".to_owned()),
        Fault::Body(r#"{"active": "yes", "sub": "user-x"}"#.to_owned()),
        Fault::Body(r#"{"active": true}"#.to_owned()),
        Fault::Status(302, String::new(), vec![("location".to_owned(), "/oauth/introspect".to_owned())]),
        Fault::Reset,
        Fault::Close,
    ];
    for fault in faults {
        let what = format!("{fault:?}");
        edge.stack.lum_id.fail_with(fault);
        let refused = answer(edge.get("/api/v1/tasks").bearer_auth(BOB.token)).await;
        assert_eq!(refused.body, NO_IDENTITY, "{what}");
        // lum.id's own wish is passed on.
        let retry_after = if what.contains("429") { "7" } else { "2" };
        assert_refused(&refused, 503, NO_IDENTITY, &[("retry-after", retry_after)]);
        assert_eq!(answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)).await.status, 200, "{what}");
    }
    edge.stack.lum_id.fail_with(Fault::Hang);
    let started = Instant::now();
    assert_refused(&answer(edge.get("/api/v1/tasks").bearer_auth(BOB.token)).await, 503, NO_IDENTITY, &[]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    edge.stack.lum_id.stop().await;
    assert_refused(&answer(edge.get("/api/v1/tasks").bearer_auth(BOB.token)).await, 503, NO_IDENTITY, &[]);
    edge.stack.lum_id.resume().await.expect("lum.id is back");
    edge.stack.lum_id.heal();
    assert_eq!(answer(edge.get("/api/v1/tasks").bearer_auth(BOB.token)).await.status, 200);
    edge.finish().await;
}

#[tokio::test]
async fn an_envoy_that_lets_failures_through_still_refuses_what_tollgate_refuses() {
    let mut edge = Edge::start().await;
    edge.replace_envoy("failure_mode_allow: false", "failure_mode_allow: true").await;
    edge.stack.lum_id.fail_with(Fault::status(500));
    assert_refused(&answer(edge.get("/api/v1/tasks").bearer_auth("x")).await, 503, NO_IDENTITY, &[]);
    assert_refused(&answer(edge.get("/api/v1/tasks")).await, 401, MISSING, &[]);
    assert!(edge.seen().is_empty());
    edge.finish().await;
}

#[tokio::test]
async fn a_user_without_balance_may_do_anything_but_submit() {
    let edge = Edge::start().await;
    assert_refused(&answer(edge.submission(PAUPER.token, 1)).await, 402, NO_BALANCE, &[]);
    assert!(edge.stack.flowmesh.workflows().is_empty());
    assert_eq!(edge.stack.runmesh.checks(), [json!({"userEmail": PAUPER.email, "requiredAmount": "0.01"})]);
    let validate = edge.post("/api/v1/workflows/validate").bearer_auth(PAUPER.token).body("- name: a");
    assert_eq!(answer(validate).await.status, 200);
    assert_eq!(answer(edge.get("/api/v1/workflows").bearer_auth(PAUPER.token)).await.status, 200);
    assert_eq!(edge.stack.runmesh.checks().len(), 1, "only submissions are asked about");
    edge.finish().await;
}

#[tokio::test]
async fn runmesh_in_trouble_lets_submissions_through() {
    let edge = Edge::start().await;
    let faults = [
        Fault::status(500),
        Fault::status(401),
        Fault::Body("ok".to_owned()),
        Fault::Body(r#"{"code": 500}"#.to_owned()),
        Fault::Close,
    ];
    let count = faults.len() + 2;
    for fault in faults {
        edge.stack.runmesh.fail_checks_with(fault);
        edge.submit(PAUPER.token, 1).await;
    }
    edge.stack.runmesh.fail_checks_with(Fault::Hang);
    let started = Instant::now();
    edge.submit(PAUPER.token, 1).await;
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
    edge.stack.runmesh.stop().await;
    edge.submit(PAUPER.token, 1).await;
    assert_eq!(edge.stack.flowmesh.workflows().len(), count);
    let series = |cause: &str| format!("tollgate_preflights_total{{outcome=\"{cause}\"}}");
    for (cause, times) in [("status", 2.0), ("malformed", 2.0), ("timeout", 1.0), ("network", 2.0)] {
        assert_eq!(edge.stack.tollgate.metric(&series(cause)).await, Some(times), "{cause}");
    }
    edge.stack.runmesh.resume().await.expect("Runmesh is back");
    edge.stack.runmesh.heal();
    assert_eq!(answer(edge.submission(PAUPER.token, 1)).await.status, 402);
    edge.finish().await;
}

#[tokio::test]
async fn submissions_of_one_principal_at_once_share_a_preflight() {
    let edge = Edge::start().await;
    edge.stack.runmesh.fail_checks_with(Fault::Slow(Duration::from_secs(1)));
    let mut submissions = tokio::task::JoinSet::new();
    for _ in 0..20 {
        submissions.spawn(answer(edge.submission(ALICE.token, 1)));
    }
    while let Some(answer) = submissions.join_next().await {
        assert_eq!(answer.expect("no panic").status, 201);
    }
    let checks = edge.stack.runmesh.checks().len();
    assert!(checks <= 2, "{checks} preflights of twenty submissions within a moment");
    let passed = edge.stack.tollgate.metric(r#"tollgate_preflights_total{outcome="sufficient"}"#).await;
    assert_eq!(passed, Some(20.0));
    edge.finish().await;
}

#[tokio::test]
async fn with_the_guard_off_nobody_is_asked_for_a_balance() {
    let edge = Edge::with(&[("LUMID_BALANCE_GUARD", "off")]).await;
    edge.submit(PAUPER.token, 1).await;
    assert!(edge.stack.runmesh.checks().is_empty());
    edge.finish().await;
}

#[tokio::test]
async fn a_tollgate_that_is_down_or_hangs_is_a_503_and_never_a_way_in() {
    let edge = Edge::start().await;
    assert_eq!(answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)).await.status, 200);
    let before = edge.seen().len();
    let pid = edge.stack.tollgate.process().pid().to_string();
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill").args([name, &pid]).status();
        assert!(sent.expect("kill runs").success());
    };
    signal("-STOP");
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    };
    wait_for("the process to stand still", SOON, async || (state() == Some('T')).then_some(())).await.expect("stopped");
    let hung = answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)).await;
    signal("-CONT");
    edge.stack.tollgate.kill_hard().await.expect("killed");
    let down = answer(edge.submission(ALICE.token, 1)).await;
    for refused in [hung, down] {
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(refused.json()["detail"], "Authorization service unavailable");
        assert_eq!(refused.header("content-type"), Some("application/json"));
        assert_eq!(refused.header("retry-after"), Some("2"));
    }
    // Public routes do not need Tollgate.
    assert_eq!(answer(edge.get("/healthz")).await.status, 200);
    assert_eq!(edge.seen().len(), before + 1, "only the health check went through");
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn a_path_that_could_be_read_in_two_ways_is_refused_even_with_a_token() {
    let edge = Edge::start().await;
    let request = |target: &str| {
        format!(
            "GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            ALICE.token
        )
    };
    for (target, detail) in [
        ("/api/v1/tasks/a%0ab", "Request path is not in normal form"),
        ("/api/v1/tasks/a%20b", "Malformed id in request path"),
        ("/api/v1/workflows/a;b", "Malformed id in request path"),
    ] {
        let body = json!({"detail": detail}).to_string();
        assert_refused(&edge.raw(&request(target)).await, 400, &body, &[]);
    }
    assert!(edge.seen().is_empty());
    edge.finish().await;
}

#[tokio::test]
async fn a_served_task_gets_its_own_authorization_and_no_made_up_identity() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let path = format!("/api/v1/serve/tasks/{}/v1/models/meta%2Fllama?x=1", tasks[0]);
    let request = edge
        .post(&path)
        .header("authorization", "Bearer vllm-api-key,odd")
        .header("x-flowmesh-principal-id", "admin")
        .body("prompt");
    assert_eq!(answer(request).await.status, 200);
    let seen = last_seen(&edge);
    assert_eq!(seen.header("authorization"), Some("Bearer vllm-api-key,odd"));
    assert!(!seen.headers.iter().any(|(name, _)| name.starts_with("x-flowmesh-")), "{seen:?}");
    assert_eq!(edge.stack.lum_id.introspections(), [ALICE.token], "lum.id never sees a served task's key");
    edge.finish().await;
}

#[tokio::test]
async fn a_websocket_may_bring_its_token_in_the_query_and_flowmesh_never_sees_it() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    for key in ["token", "%74oken"] {
        let mut stream = edge.connect().await;
        let request = format!(
            "GET /api/v1/ssh/tasks/{}/proxy?b=2&{key}={}&a=1 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n\
             upgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            tasks[0], ALICE.token
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut head = [0; 12];
        tokio::time::timeout(crate::harness::SOON, stream.read_exact(&mut head))
            .await
            .expect("in time")
            .expect("a head");
        assert_eq!(&head, b"HTTP/1.1 101");
        let seen = last_seen(&edge);
        assert_eq!(seen.path_and_query, format!("/api/v1/ssh/tasks/{}/proxy?a=1&b=2", tasks[0]));
        assert_eq!(seen.header("x-flowmesh-principal-id"), Some(ALICE.sub));
    }
    edge.finish().await;
}

#[tokio::test]
async fn without_billing_identity_works_and_no_ledger_is_made() {
    let edge = Edge::with(&[("RUNMESH_BILLING_BASE_URL", "")]).await;
    edge.submit(PAUPER.token, 1).await;
    let seen = last_seen(&edge);
    assert_eq!(seen.header("x-flowmesh-principal-id"), Some(PAUPER.sub));
    assert!(!edge.dir.path().join("ledger.db").exists());
    assert_eq!(edge.stack.tollgate.metric("tollgate_log_entries_total").await, Some(0.0), "no log entry is asked for");
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn everybody_is_who_their_token_says() {
    let edge = Edge::start().await;
    for person in PEOPLE {
        assert_eq!(answer(edge.get("/api/v1/nodes").bearer_auth(person.token)).await.status, 200);
        assert_eq!(last_seen(&edge).header("x-flowmesh-principal-id"), Some(person.sub));
    }
    edge.finish().await;
}
