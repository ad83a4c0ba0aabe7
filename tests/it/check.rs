//! Check and the log service spoken to directly: a weaker Envoy configuration, and hostile peers, are still safe.

use std::collections::HashMap;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use tokio::net::UnixStream;
use tollgate_local::stack::{ALICE, wait_for};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Edge, SOON};

/// Of the gRPC health protocol.
const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;
const AUTHZ: &str = "envoy.service.auth.v3.Authorization";
const ALS: &str = "envoy.service.accesslog.v3.AccessLogService";

async fn channel(edge: &Edge) -> Channel {
    let path = edge.dir.path().canonicalize().expect("a path").join("grpc.sock");
    let connect = move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(UnixStream::connect(path).await?)) }
    };
    Endpoint::from_static("http://tollgate")
        .connect_with_connector(tower::service_fn(connect))
        .await
        .expect("Tollgate listens")
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> CheckRequest {
    let headers: HashMap<String, String> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let http = HttpRequest { method: method.to_owned(), path: path.to_owned(), headers, ..HttpRequest::default() };
    let request = Some(Request { http: Some(http), ..Request::default() });
    CheckRequest { attributes: Some(AttributeContext { request, ..AttributeContext::default() }) }
}

async fn check(client: &mut AuthorizationClient<Channel>, request: CheckRequest) -> CheckResponse {
    client.check(request).await.expect("an answer").into_inner()
}

fn is_ok(response: &CheckResponse) -> bool {
    response.status.as_ref().is_none_or(|status| status.code == 0)
}

fn denied_with(response: &CheckResponse) -> Option<i32> {
    match &response.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => denied.status.map(|status| status.code),
        _ => None,
    }
}

#[tokio::test]
async fn an_envoy_that_normalises_nothing_still_lets_nobody_around_a_check() {
    let edge = Edge::start().await;
    let mut client = AuthorizationClient::new(channel(&edge).await);
    let bearer = format!("Bearer {}", ALICE.token);
    for path in [
        "/api/v1%2Fworkflows",
        "/api/v1/%77orkflows",
        "/api/v1/serve/tasks/t/../../../workflows",
        "/api/v1/serve/tasks/t/..%2f..%2f..%2fworkflows",
        "/api/v1/serve/tasks/t/..%252f..%252fworkflows",
        "//api/v1/workflows",
        "/api/v1/tasks/a%0ab",
        "http://evil/api/v1/workflows",
    ] {
        for headers in [&[][..], &[("authorization", bearer.as_str())]] {
            let response = check(&mut client, request("POST", path, headers)).await;
            assert!(!is_ok(&response), "{path}");
            assert_eq!(denied_with(&response), Some(400), "{path}");
        }
    }
    let joined = format!("Bearer {0},Bearer {0}", ALICE.token);
    for headers in
        [&[][..], &[("authorization", ""), ("x-flowmesh-principal-id", "admin")], &[("authorization", &joined)]]
    {
        let response = check(&mut client, request("GET", "/api/v1/tasks", headers)).await;
        assert!(!is_ok(&response));
        assert_eq!(denied_with(&response), Some(401));
    }
    // Not an error status, at which an Envoy with `failure_mode_allow` would let it through.
    let empty = check(&mut client, CheckRequest::default()).await;
    assert_eq!(denied_with(&empty), Some(400), "a Check without a request");
    edge.finish().await;
}

#[tokio::test]
async fn a_repeated_check_of_one_submission_is_one_submission() {
    let edge = Edge::start().await;
    let mut client = AuthorizationClient::new(channel(&edge).await);
    let bearer = format!("Bearer {}", ALICE.token);
    let headers = [("authorization", bearer.as_str()), ("x-request-id", "0b5e0b5e-0000-4000-8000-000000000001")];
    let first = check(&mut client, request("POST", "/api/v1/workflows", &headers)).await;
    let second = check(&mut client, request("POST", "/api/v1/workflows", &headers)).await;
    assert!(is_ok(&first) && is_ok(&second));
    let submission = |response: &CheckResponse| {
        let metadata = response.dynamic_metadata.clone().expect("metadata");
        format!("{:?}", metadata.fields.get("submission_id").expect("a submission"))
    };
    assert_eq!(submission(&first), submission(&second));
    edge.metric("tollgate_open_submissions", 1.0).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_check_that_is_cancelled_at_any_moment_harms_nobody() {
    let edge = Edge::start().await;
    let client = AuthorizationClient::new(channel(&edge).await);
    let bearer = format!("Bearer {}", ALICE.token);
    for micros in (0..5000).step_by(100) {
        let mut client = client.clone();
        let id = format!("request-{micros}");
        let headers = [("authorization", bearer.as_str()), ("x-request-id", &id)];
        let request = request("POST", "/api/v1/workflows", &headers);
        let limit = std::time::Duration::from_micros(micros);
        // Dropping the call resets its stream, as Envoy's time limit does.
        let _ = tokio::time::timeout(limit, client.check(request)).await;
    }
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.stack.flowmesh.complete(&tasks[0], tollgate_local::standin::Outcome::done(1.0, 1.5));
    edge.entries(1).await;
    edge.finish().await;
}

#[tokio::test]
async fn on_a_stop_the_log_service_reports_it_first_and_check_goes_on_to_the_end() {
    let edge = Edge::start().await;
    let channel = channel(&edge).await;
    let mut health = HealthClient::new(channel.clone());
    let mut status = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.map(|response| response.into_inner().status)
    };
    for service in ["", AUTHZ, ALS] {
        assert_eq!(status(service).await.expect("known"), SERVING, "{service}");
    }
    let stop = edge.stack.tollgate.terminate();
    let watch = async {
        wait_for("the log service to be NOT_SERVING", SOON, async || {
            (status(ALS).await.ok()? == NOT_SERVING).then_some(())
        })
        .await
        .expect("reported");
        assert_eq!(status(AUTHZ).await.expect("still there"), SERVING);
        let ready = edge.http.get(format!("{}/readyz", edge.stack.tollgate.admin_url())).send().await;
        let ready = ready.expect("the admin page is there");
        assert_eq!(ready.status(), 503);
        assert!(ready.text().await.expect("a body").contains("draining"));
        let mut client = AuthorizationClient::new(channel.clone());
        let bearer = format!("Bearer {}", ALICE.token);
        let check = check(&mut client, request("GET", "/api/v1/tasks", &[("authorization", &bearer)])).await;
        assert!(is_ok(&check), "Check is answered while the log drains");
    };
    let (stopped, ()) = tokio::join!(stop, watch);
    assert!(stopped.expect("stopped").success());
    edge.finish_unbilled().await;
}
