//! Tokens, e-mail addresses and bodies: in no log entry, in no output, and tokens not at FlowMesh.

use std::fmt::Debug;

use serde_json::json;
use tollgate_local::stack::{ACME, ALICE, BOB, PAUPER, PEOPLE, wait_for};

use crate::harness::{Answer, Edge, Recorder, SOON, WebSocket, answer};

/// A token that nobody has.
const STRANGER: &str = "lm_pat_live_stranger-8c1d";
/// In the bodies of requests and answers.
const BODY: &str = "carol@example.org asks for a poem about the sea";
/// Spellings of the key that FastAPI takes for `token`.
const KEYS: &[&str] = &["token", "%74oken", "t%6Fken", "toke%6e", "%74%6f%6b%65%6e", "%74%6F%6B%65%6E"];

fn assert_private(what: &impl Debug) {
    let text = format!("{what:?}");
    for person in PEOPLE {
        assert!(!text.contains(person.token) && !text.contains(person.email), "{text}");
    }
    // Also not as its bytes, or a part of it.
    for secret in [STRANGER, BODY, "lm_pat_live", "carol", "108, 109, 95, 112, 97, 116"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

fn assert_output_private(edge: &Edge) {
    let lines = [edge.stack.tollgate.lines(), edge.stack.envoy.lines()].concat();
    assert!(!lines.is_empty());
    lines.iter().for_each(assert_private);
}

async fn upgrade(edge: &Edge, target: &str) -> u16 {
    WebSocket::open(edge, target, "").await.map_or_else(|answer| answer.status, |_| 101)
}

/// Some of everything; how many of the requests tell something about billing.
async fn a_bit_of_everything(edge: &Edge) -> usize {
    let submission = edge.post("/api/v1/workflows").bearer_auth(ALICE.token).body(format!("- name: {BODY}"));
    let submitted = answer(submission).await.json();
    let workflow = submitted["workflow_id"].as_str().expect("an id").to_owned();
    let task = submitted["tasks"][0]["task_id"].as_str().expect("an id").to_owned();
    let statuses = async |requests: Vec<reqwest::RequestBuilder>| -> Vec<u16> {
        let mut statuses = Vec::new();
        for request in requests {
            statuses.push(answer(request).await.status);
        }
        statuses
    };
    let result =
        json!({"task_id": task, "worker_id": "wrk-acme-1", "metadata": {"e-mail": BODY}, "result": {"text": BODY}});
    let recorded = statuses(vec![
        edge.get(&format!("/api/v1/workflows/{workflow}?view=status")).bearer_auth(BOB.token),
        edge.get(&format!("/api/v1/tasks/{task}?view=status")).bearer_auth(ALICE.token),
        edge.get(&format!("/api/v1/tasks/{task}")).bearer_auth(ALICE.token),
        edge.post("/api/v1/results").bearer_auth(ACME.token).json(&result),
        edge.get(&format!("/api/v1/results/{task}/logs")).bearer_auth(ALICE.token),
        edge.post(&format!("/api/v1/results/{task}/files")).bearer_auth(ACME.token).body(BODY),
        edge.post(&format!("/api/v1/workflows/{workflow}/cancel")).bearer_auth(ALICE.token),
    ]);
    let recorded = recorded.await;
    assert_eq!(recorded, [200; 7]);
    let others = statuses(vec![
        edge.get("/healthz"),
        edge.get("/api/v1/nodes").bearer_auth(ALICE.token),
        edge.post("/api/v1/workflows/validate").bearer_auth(PAUPER.token).body(BODY),
        edge.post("/api/v1/serve/tasks/tsk-1/v1/chat").bearer_auth(STRANGER).body(BODY),
        edge.submission(PAUPER.token, 1),
        edge.submission(STRANGER, 1),
        edge.get(&format!("/api/v1/tasks?token={}", ALICE.token)),
        edge.get(&format!("/api/v1/tasks/{task}?token={STRANGER}")),
        edge.get("/api/v1/tasks").header("authorization", format!("Basic {STRANGER}")),
        edge.post("/api/v1/results").bearer_auth(STRANGER).json(&result),
    ]);
    assert_eq!(others.await, [200, 200, 200, 200, 402, 401, 401, 401, 401, 401]);
    for (token, status) in [(ALICE.token, 101), (STRANGER, 401)] {
        let path = format!("/api/v1/ssh/tasks/{task}/proxy?token={token}");
        assert_eq!(upgrade(edge, &path).await, status);
    }
    1 + recorded.len()
}

#[tokio::test]
async fn log_entries_hold_no_token_no_address_of_anybody_and_no_body() {
    let mut edge = Edge::start().await;
    let recorder = Recorder::instead_of_tollgate(&mut edge, &[]).await;
    let expected = a_bit_of_everything(&edge).await;
    // One more, so that an entry too many would have come before it.
    answer(edge.get("/api/v1/tasks/tsk-last?view=status").bearer_auth(BOB.token)).await;
    let entries = wait_for("the last entry", SOON, async || {
        let entries = recorder.entries();
        (entries.len() > expected).then_some(entries)
    });
    let entries = entries.await.unwrap_or_else(|error| panic!("{error}: {:#?}", recorder.entries()));
    assert_eq!(entries.len(), expected + 1, "{entries:#?}");
    for entry in &entries {
        assert_private(entry);
        let metadata = entry.common_properties.clone().and_then(|common| common.metadata).expect("metadata");
        let ours = metadata.filter_metadata.get("envoy.filters.http.ext_authz").expect("Tollgate's");
        assert!(ours.fields.contains_key("record"), "{entry:#?}");
    }
    // Tollgate has heard of none of this, and looks for it by itself only later.
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn even_of_everything_that_could_be_logged_no_entry_of_an_allowed_request_holds_a_token() {
    let mut edge = Edge::start().await;
    // Without the filter that lets only marked requests be logged.
    let all = ("match_if_key_not_found: false", "match_if_key_not_found: true");
    let recorder = Recorder::instead_of_tollgate(&mut edge, &[all]).await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    for key in KEYS {
        let path = format!("/api/v1/ssh/tasks/{}/proxy?{key}={}", tasks[0], ALICE.token);
        assert_eq!(upgrade(&edge, &path).await, 101, "{key}");
    }
    let entries =
        wait_for("the entries", SOON, async || Some(recorder.entries()).filter(|entries| entries.len() > KEYS.len()));
    entries.await.expect("all of them").iter().for_each(assert_private);
    edge.finish().await;
}

#[tokio::test]
async fn at_the_most_talkative_level_nothing_prints_a_token_an_address_or_a_body() {
    let edge = Edge::with(&[("TOLLGATE_LOG", "trace")]).await;
    a_bit_of_everything(&edge).await;
    edge.quiet().await;
    assert_output_private(&edge);
    edge.finish().await;
}

#[tokio::test]
async fn a_websockets_token_is_taken_out_of_the_query_in_every_spelling() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let path = format!("/api/v1/ssh/tasks/{}/proxy", tasks[0]);
    for key in KEYS {
        let before = edge.seen().len();
        for token in [ALICE.token.to_owned(), ALICE.token.replace('_', "%5F")] {
            let target = format!("{path}?b=2&{key}={token}&a=1");
            let mut socket =
                WebSocket::open(&edge, &target, "").await.unwrap_or_else(|answer| panic!("{key}: {answer:?}"));
            socket.assert_alive().await;
            let seen = edge.seen().pop().expect("arrived");
            assert_eq!(seen.path_and_query, format!("{path}?a=1&b=2"), "{key}");
            assert_eq!(seen.header("x-flowmesh-principal-id"), Some(ALICE.sub));
            assert_private(&seen);
        }
        // Refused, whoever's it is: unknown, none, more than one, or beside a header.
        for query in [
            format!("{key}={STRANGER}"),
            format!("{key}="),
            key.to_string(),
            format!("{key}={0}&{key}={0}", ALICE.token),
            format!("token={0}&{key}={0}", ALICE.token),
            format!("{key}={}%20", ALICE.token),
            format!("{key}={0},{0}", ALICE.token),
        ] {
            assert_eq!(upgrade(&edge, &format!("{path}?{query}")).await, 401, "{query}");
        }
        let both = format!("authorization: Bearer {}\r\n", ALICE.token);
        let refused = WebSocket::open(&edge, &format!("{path}?{key}={}", ALICE.token), &both).await;
        assert_eq!(refused.err().map(|answer| answer.status), Some(401), "{key}");
        assert_eq!(edge.seen().len(), before + 2, "{key}");
    }
    assert_output_private(&edge);
    edge.finish().await;
}

#[tokio::test]
async fn a_token_in_the_query_of_what_is_no_websocket_means_nothing() {
    let edge = Edge::start().await;
    for key in KEYS {
        for path in ["/api/v1/tasks", "/api/v1/ssh/tasks/tsk-1/proxy", "/api/v1/tasks/tsk-1/logs/stream"] {
            let refused = answer(edge.get(&format!("{path}?{key}={}", ALICE.token))).await;
            assert_missing(&refused);
            // Something else than a WebSocket is no upgrade either.
            let request = format!(
                "GET {path}?{key}={} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nsec-websocket-version: 13\r\n\r\n",
                ALICE.token
            );
            assert_missing(&edge.raw(request).await);
        }
        assert_missing(&answer(edge.post(&format!("/api/v1/workflows?{key}={}", ALICE.token)).body("- name: a")).await);
    }
    assert_eq!(edge.stack.lum_id.introspection_count(), 0);
    assert!(edge.seen().is_empty(), "{:?}", edge.seen());
    assert_output_private(&edge);
    edge.finish().await;
}

fn assert_missing(answer: &Answer) {
    assert_eq!((answer.status, answer.body.as_str()), (401, r#"{"detail":"Missing bearer token"}"#));
}
