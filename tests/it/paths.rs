//! Spellings of paths, methods and requests: none is a way around the token, or around the bill.

use tollgate_local::stack::{ALICE, PAUPER};
use tollgate_local::standin::Outcome;

use crate::harness::{Answer, Direct, Edge, Http2};

/// What somebody may hope to be a submission to FlowMesh and something else to whoever checks.
const SUBMISSIONS: &[&str] = &[
    "/api/v1/workflows",
    "/api/v1/workflows?",
    "/api/v1/workflows?x=/healthz",
    "/api/v1/workflows/",
    "/api/v1/workflows//",
    "/api/v1/workflows/.",
    "/api/v1/workflows/..",
    "/api/v1/workflows;a=b",
    "/api/v1;a=b/workflows",
    "/api/v1/workflows%3b",
    "/api/v1/workflows%3F",
    "/api/v1/workflows%23",
    "/api/v1/workflows%20",
    "/api/v1/workflows%09",
    "/api/v1/workflows%0a",
    "/api/v1/workflows%0d%0a",
    "/api/v1/workflows%00",
    "/api/v1/workflows%7f",
    "/api/v1/workflows#x",
    "/api/v1/workflows%",
    "/api/v1/workflows%2",
    "/api/v1/workflows%zz",
    "/API/v1/workflows",
    "/api/V1/Workflows",
    "//api/v1/workflows",
    "///api///v1///workflows",
    "/./api/v1/workflows",
    "/api/x/../v1/workflows",
    "/api/v1\\workflows",
    "\\api\\v1\\workflows",
    "/api/v1%5cworkflows",
    "/api/v1%5Cworkflows",
    "/api/v1%2Fworkflows",
    "/api/v1%2fworkflows",
    "%2fapi%2fv1%2fworkflows",
    "/%2fapi/v1/workflows",
    "/api/v1%252fworkflows",
    "/api/v1%25%32%66workflows",
    "/api/v1%u002fworkflows",
    "/api/v1%c0%afworkflows",
    "/api/v1%e0%80%afworkflows",
    "/api/v1%ef%bc%8fworkflows",
    "/api/v1\u{ff0f}workflows",
    "/api/v1/\u{ff57}orkflows",
    "/api/v1/%ef%bd%97orkflows",
    "/api/v1/%77orkflows",
    "/api/v1/%57orkflows",
    "/%61pi/v1/workflows",
    "/%61%70%69/%76%31/%77%6f%72%6B%66%6C%6f%77%73",
    "http://evil/api/v1/workflows",
    "http://evil:99/api/v1/workflows",
    "https://evil/api/v1/workflows",
    "/api/v1/workflows/validate/../",
    "/api/v1/workflows/validate/..",
    "/api/v1/serve/tasks/t/../../../workflows",
    "/api/v1/serve/tasks/../../workflows",
    "/api/v1/serve/tasks/t/%2e%2e/%2e%2e/%2e%2e/workflows",
    "/api/v1/serve/tasks/t/%2E%2e/.%2e/%2e./workflows",
    "/api/v1/serve/tasks/t/..%2f..%2f..%2fworkflows",
    "/api/v1/serve/tasks/t/..%5c..%5c..%5cworkflows",
    "/api/v1/serve/tasks/t/..\\..\\..\\workflows",
    "/api/v1/serve/tasks/t/..%252f..%252f..%252fworkflows",
    "/api/v1/serve/tasks/t/%252e%252e/%252e%252e/%252e%252e/workflows",
    "/api/v1/serve/tasks/t/..;/..;/..;/workflows",
    "/api/v1/serve/tasks/t/..;a=b/..;/..;/workflows",
    "/api/v1/serve/tasks/t/..%3b/..%3B/..;/workflows",
    "/api/v1/serve/tasks/..;/..;/workflows",
    "/api/v1/serve/tasks//../../../workflows",
    "/healthz/../api/v1/workflows",
    "/healthz/..;/api/v1/workflows",
    "/healthz%2f..%2fapi/v1/workflows",
    "/healthz/%2e%2e/api/v1/workflows",
    "/healthz/..%c0%afapi/v1/workflows",
];
/// What climbs in no server that we know, so that only a Check refuses it; the exempt route lets it pass as it is, to a
/// served task that may have its own idea of bytes.
const ODD_BYTES: &[&str] = &[
    "/api/v1/serve/tasks/t/%c0%ae%c0%ae/%c0%ae%c0%ae/workflows",
    "/api/v1/serve/tasks/t/..%c0%af..%c0%af..%c0%afworkflows",
    "/api/v1/serve/tasks/t/%ff",
];
const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "post", ""];

async fn http1(edge: &Edge, method: &str, target: &str, more: &str) -> Answer {
    let head = format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}");
    edge.raw(format!("{head}content-type: text/plain\r\ncontent-length: 9\r\n\r\n- name: a")).await
}

/// The same over HTTP/2; `None` when such a request cannot even be made.
async fn http2(edge: &Edge, method: &str, target: &str, headers: &[(&str, &str)]) -> Option<Answer> {
    let path = if target.starts_with('/') { target } else { return None };
    format!("http://x{path}").parse::<axum::http::Uri>().ok().filter(|uri| uri.path_and_query().is_some())?;
    let mut client = Http2::connect(edge).await;
    let request = client.request(method, path, headers);
    Some(client.exchange(request, "- name: a", &[]).await)
}

#[tokio::test]
async fn no_spelling_of_a_submission_passes_without_a_token() {
    let edge = Edge::start().await;
    for target in SUBMISSIONS {
        for method in ["POST", "GET"] {
            let answer = http1(&edge, method, target, "").await;
            // 403: `https:` on a connection without it.
            assert!(matches!(answer.status, 400 | 401 | 403), "{method} {target}: {answer:?}");
            if let Some(answer) = http2(&edge, method, target, &[]).await {
                // A reset has no status.
                assert!(matches!(answer.status, 0 | 400 | 401), "HTTP/2 {method} {target}: {answer:?}");
            }
        }
    }
    assert!(edge.seen().is_empty(), "{:?}", edge.seen());
    edge.finish().await;
}

#[tokio::test]
async fn what_submits_with_a_token_in_whatever_spelling_is_billed() {
    let edge = Edge::start().await;
    let bearer = format!("Bearer {}", ALICE.token);
    for target in SUBMISSIONS {
        http1(&edge, "POST", target, &format!("authorization: {bearer}\r\n")).await;
        http2(&edge, "POST", target, &[("authorization", &bearer)]).await;
    }
    // More than the plain spelling over both protocols: what Envoy puts into normal form is a submission.
    let workflows = edge.stack.flowmesh.workflows().len();
    assert!(workflows > 10, "{workflows}");
    assert_eq!(edge.stack.runmesh.checks().len(), workflows, "each was asked about beforehand");
    for task in edge.stack.flowmesh.tasks() {
        edge.stack.flowmesh.complete(&task.task_id, Outcome::done(1.0, 1.5));
    }
    edge.entries(workflows).await;
    edge.finish().await;
}

#[tokio::test]
async fn no_method_is_a_way_around_a_token() {
    let edge = Edge::start().await;
    for method in METHODS.iter().filter(|method| !method.is_empty()) {
        for target in ["/api/v1/workflows", "/api/v1/tasks", "/healthz"] {
            let overrides = "x-http-method-override: GET\r\nx-http-method: GET\r\nx-method-override: POST\r\n";
            let answer = http1(&edge, method, target, overrides).await;
            let allowed = (*method, target) == ("GET", "/healthz");
            assert_eq!(answer.status == 200, allowed, "{method} {target}: {answer:?}");
            assert!(allowed || (400..500).contains(&answer.status), "{method} {target}: {answer:?}");
            let headers = [("x-http-method-override", "GET"), ("x-method-override", "POST")];
            if *method != "CONNECT" {
                let answer = http2(&edge, method, target, &headers).await.expect("a request");
                assert_eq!(answer.status == 200, allowed, "HTTP/2 {method} {target}: {answer:?}");
            }
        }
    }
    // To FlowMesh these are health checks and nothing else.
    assert!(edge.seen().iter().all(|seen| (seen.method.as_str(), seen.path_and_query.as_str()) == ("GET", "/healthz")));
    edge.finish().await;
}

#[tokio::test]
async fn only_the_health_check_itself_is_public() {
    let edge = Edge::start().await;
    for target in
        ["/healthz", "/healthz?x=1", "//healthz", "/./healthz", "/x/../healthz", "http://evil/healthz", "/%68ealthz"]
    {
        assert_eq!(http1(&edge, "GET", target, "").await.status, 200, "{target}");
    }
    let bodiless = |host: &str| format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    for host in ["evil", "evil:99", "127.0.0.1", "[::1]:80", "x/api/v1/workflows", "x?y", "a@b"] {
        assert!(matches!(edge.raw(bodiless(host)).await.status, 200 | 400), "{host}");
    }
    let seen = edge.seen();
    for target in [
        "/healthz/",
        "/healthz;x",
        "/healthz%00",
        "/healthz%20",
        "/healthz%0a",
        "/healthz%3b",
        "/healthz%2f",
        "/healthz%3F",
        "/healthz.",
        "/healthz/x",
        "/healthz/..",
        "/HEALTHZ",
        "/healthz%ef%bc%8f",
        "/%2568ealthz",
        "healthz",
        "*",
    ] {
        let answer = http1(&edge, "GET", target, "").await;
        assert!((400..500).contains(&answer.status), "{target}: {answer:?}");
    }
    assert_eq!(edge.seen().len(), seen.len(), "{:?}", edge.seen());
    assert!(seen.iter().all(|seen| matches!(seen.path_and_query.as_str(), "/healthz" | "/healthz?x=1")), "{seen:?}");
    edge.finish().await;
}

#[tokio::test]
async fn no_request_hides_another_one() {
    let edge = Edge::start().await;
    let hidden = "POST /api/v1/workflows HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n- name: a";
    let length = hidden.len();
    let chunked = format!("{length:x}\r\n{hidden}\r\n0\r\n\r\n");
    for (head, body) in [
        (format!("content-length: {length}"), hidden.to_owned()),
        ("transfer-encoding: chunked".to_owned(), chunked.clone()),
        (format!("transfer-encoding: chunked\r\ncontent-length: {length}"), chunked.clone()),
        (format!("content-length: 5\r\ncontent-length: {length}"), hidden.to_owned()),
        ("transfer-encoding: xchunked".to_owned(), chunked.clone()),
        ("transfer-encoding: chunked, identity".to_owned(), chunked.clone()),
        ("transfer-encoding : chunked".to_owned(), chunked.clone()),
        ("transfer-encoding:\x0bchunked".to_owned(), chunked.clone()),
        ("x: y\ntransfer-encoding: chunked".to_owned(), chunked.clone()),
        (format!("content-length: +{length}"), hidden.to_owned()),
        (format!("content_length: 0\r\ncontent-length: {length}"), hidden.to_owned()),
        (
            "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==".to_owned(),
            hidden.to_owned(),
        ),
        ("upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA".to_owned(), hidden.to_owned()),
        ("upgrade: h2c, websocket".to_owned(), hidden.to_owned()),
    ] {
        for connection in ["close, content-length, transfer-encoding", "upgrade, http2-settings"] {
            for target in ["/healthz", "/api/v1/serve/tasks/tsk-1/"] {
                let request =
                    format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\n{head}\r\n\r\n{body}");
                edge.raw_until_silent(request).await;
            }
        }
    }
    assert!(edge.stack.flowmesh.workflows().is_empty());
    assert!(edge.seen().iter().all(|seen| seen.method == "GET"), "{:?}", edge.seen());
    edge.finish().await;
}

#[tokio::test]
async fn a_refused_websocket_is_no_tunnel_for_what_its_client_says_next() {
    let edge = Edge::start().await;
    let hidden = "POST /api/v1/workflows HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n- name: a";
    // FlowMesh knows no such task, and answers the upgrade with 403.
    let request = format!(
        "GET /api/v1/ssh/tasks/tsk-none/proxy?token={} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n{hidden}",
        PAUPER.token
    );
    let answer = edge.raw_until_silent(request).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(edge.stack.flowmesh.workflows().is_empty());
    assert_eq!(edge.seen().len(), 1, "{:?}", edge.seen());
    edge.finish().await;
}

#[tokio::test]
async fn an_envoy_that_leaves_paths_as_they_come_lets_nobody_submit_without_a_token() {
    let edge = Edge::start().await;
    let mut direct = Direct::connect(&edge).await;
    for target in SUBMISSIONS.iter().chain(ODD_BYTES) {
        for method in METHODS {
            for headers in [&[][..], &[("upgrade", "websocket")], &[("x-flowmesh-principal-id", "admin")]] {
                let status = direct.status(method, target, headers).await;
                assert!(matches!(status, 400 | 401), "{method} {target}: {status}");
            }
        }
    }
    for method in METHODS {
        let expected = if *method == "GET" { 200 } else { 401 };
        assert_eq!(direct.status(method, "/healthz", &[]).await, expected, "{method}");
        assert_eq!(direct.status(method, "/api/v1/serve/tasks/t/v1/chat?x=../..", &[]).await, 200, "{method}");
    }
    edge.finish().await;
}
