//! Check as a whole, in this process: whatever comes, it answers, and lets through only whom it should.

use std::future::poll_fn;

use axum::http;
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as AttributeRequest};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use http_body::Body as _;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use prost::Message;
use serde_json::json;
use wiremock::matchers::body_string;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::response::IDENTITY_HEADERS;
use super::server::{CHECK, CheckServer};
use super::*;
use crate::config::{Config, Limits, Options};
use crate::upstream::Http;
use crate::upstream::flowmesh::FlowMesh;
use crate::upstream::lumid::LumId;
use crate::wire;

/// An Authz whose lum.id knows one token, `good`, and whose FlowMesh is not there.
async fn authz() -> (MockServer, Authz) {
    let server = MockServer::start().await;
    let good =
        ResponseTemplate::new(200).set_body_json(json!({"active": true, "sub": "user-1", "email": "a@b.example"}));
    Mock::given(body_string("token=good")).respond_with(good).mount(&server).await;
    let bad = ResponseTemplate::new(200).set_body_json(json!({"active": false}));
    Mock::given(wiremock::matchers::any()).respond_with(bad).with_priority(200).mount(&server).await;
    let mut config = Config::parse(Options {
        lum_id_base_url: Some(server.uri()),
        flowmesh_base_url: Some("http://127.0.0.1:1".to_owned()),
        ..Options::default()
    })
    .expect("valid");
    // What is made up here would use up any budget.
    config.limits = Limits { refusal_burst: u32::MAX, refusal_interval: Duration::from_nanos(1), ..Limits::default() };
    let http = |url| Http::new(url, Duration::from_secs(3)).expect("client");
    let flowmesh = FlowMesh::new(http(&config.flowmesh.base_url), config.flowmesh.clone());
    let metrics = Metrics::unread();
    let lum_id = LumId::new(http(&config.lum_id_base_url), &config.lum_id_base_url);
    let authz = Authz {
        identity: Identity::new(&config, lum_id, metrics.clone()),
        guard: None,
        suppliers: Suppliers::new(flowmesh, &config.limits, metrics.clone()),
        ledger: None,
        events: None,
        awaited: Awaited::default(),
        unrecorded: Unrecorded::default(),
        submission_timeout: config.limits.submission_timeout,
        stamp: Stamp::new("lumid".to_owned(), false),
        requests: TaskTracker::new(),
        last_check: LastCheck::default(),
        metrics,
    };
    (server, authz)
}

/// A request, as made up as it may be.
#[derive(Debug, Clone)]
struct MadeUp {
    method: String,
    path: String,
    headers: Vec<(String, String, Vec<u8>)>,
    in_map: bool,
    body: Vec<u8>,
    extensions: Vec<(String, String)>,
}

impl MadeUp {
    fn request(&self) -> CheckRequest {
        let mut http = HttpRequest {
            method: self.method.clone(),
            path: self.path.clone(),
            body: String::from_utf8_lossy(&self.body).into_owned(),
            ..HttpRequest::default()
        };
        if self.in_map {
            let value = |(key, value, raw): &(String, String, Vec<u8>)| HeaderValue {
                key: key.clone(),
                value: value.clone(),
                raw_value: raw.clone(),
            };
            http.header_map = Some(HeaderMap { headers: self.headers.iter().map(value).collect() });
        } else {
            http.headers = self.headers.iter().map(|(key, value, _)| (key.clone(), value.clone())).collect();
        }
        CheckRequest {
            attributes: Some(AttributeContext {
                request: Some(AttributeRequest { http: Some(http), ..AttributeRequest::default() }),
                context_extensions: self.extensions.iter().cloned().collect(),
                ..AttributeContext::default()
            }),
        }
    }
}

fn made_up() -> impl Strategy<Value = MadeUp> {
    let path = prop_oneof![
        4 => prop::sample::select(vec![
            "/healthz", "/api/v1/workflows", "/api/v1/workflows/validate", "/api/v1/workflows/wfl-1",
            "/api/v1/tasks/tsk-1?view=status", "/api/v1/results", "/api/v1/results/tsk-1/files", "/api/v1/workers/wrk-1",
            "/api/v1/serve/tasks/tsk-1/v1/models", "/api/v1/serve/tasks/tsk-1/../../../workflows",
            "/api/v1/serve/tasks/tsk-1/%2e%2e/x", "/api/v1%2Fworkflows", "//healthz", "/healthz/../api/v1/workflows",
            "/api/v1/ssh/tasks/tsk-1/proxy?token=good", "/api/v1/ssh/tasks/tsk-1/proxy?%74oken=good&token=bad",
        ]).prop_map(str::to_owned),
        2 => "/(api/v1/)?(serve/tasks/|healthz|workflows|%2e|\\.\\.|/|[a-z%0-9]{0,6}){0,6}(\\?[a-z=&%0-9]{0,12})?",
        1 => "\\PC{0,40}",
        1 => any::<String>(),
    ];
    let value = prop_oneof![
        3 => prop::sample::select(vec![
            "Bearer good", "bearer good", "Bearer bad", "Bearer good,Bearer good", "Bearer", "Basic Z29vZA==", "good",
            "websocket", "WebSocket, h2c", "",
        ]).prop_map(|text| (text.to_owned(), Vec::new())),
        1 => (any::<String>(), prop::collection::vec(any::<u8>(), 0..32)),
    ];
    let name = prop_oneof![
        4 => prop::sample::select(vec![
            "authorization", "Authorization", "upgrade", "x-request-id", "x-flowmesh-principal-id", "X-FlowMesh-Supplier-Id",
            "x_flowmesh_principal_id", "cookie",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let headers = prop::collection::vec((name, value).prop_map(|(name, (text, raw))| (name, text, raw)), 0..5);
    let method = prop_oneof![
        4 => prop::sample::select(vec!["GET", "POST", "DELETE", "get", "HEAD"]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let extensions = prop::collection::vec(("supplier|other", any::<String>()), 0..2);
    (method, path, headers, any::<bool>(), prop::collection::vec(any::<u8>(), 0..64), extensions).prop_map(
        |(method, path, headers, in_map, body, extensions)| MadeUp { method, path, headers, in_map, body, extensions },
    )
}

/// What must hold of every answer.
fn judge(request: &wire::CheckRequest, response: &CheckResponse) -> Result<(), TestCaseError> {
    let code = response.status.as_ref().map(|status| status.code);
    match &response.http_response {
        Some(HttpResponse::OkResponse(ok)) => {
            prop_assert_eq!(code, Some(0));
            let set: Vec<(String, String)> = ok
                .headers
                .iter()
                .filter_map(|option| option.header.clone())
                .map(|header| (header.key, header.value))
                .collect();
            for name in IDENTITY_HEADERS {
                let is_set = set.iter().filter(|(key, _)| key == name).count();
                let is_removed = ok.headers_to_remove.iter().filter(|key| *key == name).count();
                prop_assert_eq!(is_set + is_removed, 1, "{} is set {} and removed {} times", name, is_set, is_removed);
            }
            let inquiry = request::parse(request.clone());
            let is_public = route::classify(&inquiry.method, &inquiry.target).is_ok_and(|route| route.is_public());
            let principal =
                set.iter().find(|(key, _)| key == "x-flowmesh-principal-id").map(|(_, value)| value.as_str());
            prop_assert_eq!(principal, (!is_public).then_some("user-1"), "OK is for somebody, or public");
            if !is_public {
                let named = inquiry.authorization.iter().any(|value| value.ends_with(b"good"))
                    || inquiry.is_websocket && inquiry.target.contains("oken=good");
                prop_assert!(named, "nobody brought the one good token: {:?}", inquiry);
                prop_assert!(ok.headers_to_remove.iter().any(|name| name == "authorization"));
            }
            for (_, value) in &set {
                prop_assert!(value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{:?}", value);
            }
        }
        Some(HttpResponse::DeniedResponse(denied)) => {
            prop_assert_ne!(code, Some(0));
            let status = denied.status.as_ref().map_or(0, |status| status.code);
            prop_assert!(matches!(status, 400 | 401 | 429 | 503), "{}", status);
            let body: serde_json::Value = serde_json::from_str(&denied.body).expect("JSON");
            prop_assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        }
        other => prop_assert!(false, "neither OK nor denied: {:?}", other),
    }
    Ok(())
}

/// The gRPC status of the answer to these bytes in the place of a framed Check.
async fn status_of(server: &CheckServer, body: Vec<u8>) -> String {
    let body = tonic::body::Body::new(axum::body::Body::from(body));
    let request = http::Request::builder().method("POST").uri(CHECK).header("content-type", "application/grpc");
    let response = server.clone().answer(request.body(body).expect("a request")).await;
    let (parts, body) = response.into_parts();
    // An error is all in the headers; the status of an answer comes behind it.
    let mut said = parts.headers;
    let mut body = std::pin::pin!(body);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        said.extend(frame.expect("a frame").into_trailers().unwrap_or_default());
    }
    said["grpc-status"].to_str().expect("text").to_owned()
}

#[tokio::test]
async fn what_is_no_check_is_a_grpc_error_which_envoy_takes_for_a_refusal() {
    let (_server, authz) = authz().await;
    let server = CheckServer::new(authz);
    let framed = |flag: u8, length: u32, message: &[u8]| [&[flag], &length.to_be_bytes()[..], message].concat();
    // An empty Check is one all the same: of a path in no normal form.
    assert_eq!(status_of(&server, framed(0, 0, b"")).await, "0");
    for (what, body) in [
        ("nothing at all", Vec::new()),
        ("half a frame", vec![0, 0]),
        ("less than was announced", framed(0, 100, b"\x0a")),
        ("more than is taken", framed(0, u32::MAX, b"")),
        ("no such compression", framed(7, 0, b"")),
        ("compressed without saying how", framed(1, 1, b"\x0a")),
        ("a field that is cut off", framed(0, 2, b"\x0a\x7f")),
        ("a field of no such type", framed(0, 1, b"\x0f")),
        ("a number without end", framed(0, 12, &[0xff; 12])),
    ] {
        assert_ne!(status_of(&server, body).await, "0", "{what}");
    }
    assert_eq!(status_of(&server, framed(0, 0, b"")).await, "0", "and goes on answering");
}

async fn check(authz: &Authz, request: wire::CheckRequest) -> CheckResponse {
    let answer = authz.check(request).await;
    CheckResponse::decode(answer.parts().concat().as_slice()).expect("a message")
}

#[tokio::test]
async fn what_is_ready_for_somebody_is_of_what_lum_id_said_last() {
    let (server, authz) = authz().await;
    let request = MadeUp {
        method: "GET".into(),
        path: "/api/v1/workflows".into(),
        headers: vec![("authorization".into(), "Bearer good".into(), Vec::new())],
        in_map: false,
        body: Vec::new(),
        extensions: Vec::new(),
    };
    let request = wire::CheckRequest::decode(request.request().encode_to_vec().as_slice()).expect("a message");
    let scopes = async || match check(&authz, request.clone()).await.http_response {
        Some(HttpResponse::OkResponse(ok)) => {
            let mut headers = ok.headers.into_iter().filter_map(|option| option.header);
            headers.find(|header| header.key == "x-flowmesh-scopes").map(|header| header.value)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!([scopes().await, scopes().await], [None, None]);
    let more = json!({"active": true, "sub": "user-1", "email": "a@b.example", "scopes": ["flowmesh:tasks:read"]});
    let more = ResponseTemplate::new(200).set_body_json(more);
    Mock::given(body_string("token=good")).respond_with(more).with_priority(1).mount(&server).await;
    assert_eq!(scopes().await, None, "remembered");
    assert_eq!(authz.identity.purge(&identity::Purge::All), 1);
    assert_eq!([scopes().await, scopes().await], [Some("tasks:read".to_owned()), Some("tasks:read".to_owned())]);
}

#[test]
fn whatever_comes_only_the_owner_of_a_good_token_gets_past_and_every_identity_header_is_settled() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (_server, authz) = runtime.block_on(authz());
    let decided = std::cell::Cell::new((0u32, 0u32));
    let mut runner = TestRunner::default();
    runner
        .run(&made_up(), |made_up| {
            let request = made_up.request().encode_to_vec();
            let request = wire::CheckRequest::decode(request.as_slice()).expect("a message");
            let response = runtime.block_on(check(&authz, request.clone()));
            let (allowed, denied) = decided.get();
            let is_ok = matches!(response.http_response, Some(HttpResponse::OkResponse(_)));
            decided.set((allowed + u32::from(is_ok), denied + u32::from(!is_ok)));
            judge(&request, &response)
        })
        .expect("holds");
    let (allowed, denied) = decided.get();
    assert!(allowed > 5 && denied > 5, "both were seen: {allowed} allowed, {denied} denied");
}

#[test]
fn bytes_that_are_no_request_are_refused_and_never_a_panic() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (_server, authz) = runtime.block_on(authz());
    let good = MadeUp {
        method: "GET".into(),
        path: "/api/v1/tasks".into(),
        headers: vec![("authorization".into(), "Bearer good".into(), Vec::new())],
        in_map: false,
        body: Vec::new(),
        extensions: Vec::new(),
    };
    let whole = good.request().encode_to_vec();
    let flips = prop::collection::vec((0..whole.len(), any::<u8>()), 0..4);
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        // A request with a few bytes changed gets deeper than noise does.
        flips.prop_map(move |flips| {
            let mut bytes = whole.clone();
            for (at, byte) in flips {
                bytes[at] = byte;
            }
            bytes
        }),
    ];
    TestRunner::default()
        .run(&bytes, |bytes| {
            // What does not decode is answered by tonic, with an error that Envoy takes for a refusal.
            let Ok(request) = wire::CheckRequest::decode(bytes.as_slice()) else { return Ok(()) };
            let response = runtime.block_on(check(&authz, request.clone()));
            judge(&request, &response)
        })
        .expect("holds");
}
