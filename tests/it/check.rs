//! Check and the log service spoken to directly: a weaker Envoy configuration, and hostile peers, are still safe.

use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use tollgate_local::stack::{ALICE, wait_for};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::direct::{channel, request, status};
use crate::harness::{Direct, Edge, SOON};

/// Of the gRPC health protocol.
const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;
const AUTHZ: &str = "envoy.service.auth.v3.Authorization";
const ALS: &str = "envoy.service.accesslog.v3.AccessLogService";

#[tokio::test]
async fn an_envoy_that_normalises_nothing_still_lets_nobody_around_a_check() {
    let edge = Edge::start().await;
    let mut client = Direct::connect(&edge).await;
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
            assert_eq!(client.status("POST", path, headers).await, 400, "{path}");
        }
    }
    let joined = format!("Bearer {0},Bearer {0}", ALICE.token);
    for headers in
        [&[][..], &[("authorization", ""), ("x-flowmesh-principal-id", "admin")], &[("authorization", &joined)]]
    {
        assert_eq!(client.status("GET", "/api/v1/tasks", headers).await, 401);
    }
    // Not an error status, at which an Envoy with `failure_mode_allow` would let it through.
    let empty = client.check(CheckRequest::default()).await;
    assert_eq!(status(&empty), 400, "a Check without a request");
    edge.finish().await;
}

#[tokio::test]
async fn a_repeated_check_of_one_submission_is_one_submission() {
    let edge = Edge::start().await;
    let mut client = Direct::connect(&edge).await;
    let bearer = format!("Bearer {}", ALICE.token);
    let headers = [("authorization", bearer.as_str()), ("x-request-id", "0b5e0b5e-0000-4000-8000-000000000001")];
    let first = client.check(request("POST", "/api/v1/workflows", &headers)).await;
    let second = client.check(request("POST", "/api/v1/workflows", &headers)).await;
    assert_eq!((status(&first), status(&second)), (200, 200));
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
    let mut health_of = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.map(|response| response.into_inner().status)
    };
    for service in ["", AUTHZ, ALS] {
        assert_eq!(health_of(service).await.expect("known"), SERVING, "{service}");
    }
    let unknown = health_of("envoy.service.ratelimit.v3.RateLimitService").await.expect_err("not served");
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let stop = edge.stack.tollgate.terminate();
    let watch = async {
        wait_for("the log service to be NOT_SERVING", SOON, async || {
            (health_of(ALS).await.ok()? == NOT_SERVING).then_some(())
        })
        .await
        .expect("reported");
        assert_eq!(health_of(AUTHZ).await.expect("still there"), SERVING);
        let ready = edge.http.get(format!("{}/readyz", edge.stack.tollgate.admin_url())).send().await;
        let ready = ready.expect("the admin page is there");
        assert_eq!(ready.status(), 503);
        assert!(ready.text().await.expect("a body").contains("draining"));
        let mut client = Direct(AuthorizationClient::new(channel.clone()));
        let bearer = format!("Bearer {}", ALICE.token);
        let answered = client.status("GET", "/api/v1/tasks", &[("authorization", &bearer)]).await;
        assert_eq!(answered, 200, "Check is answered while the log drains");
    };
    let (stopped, ()) = tokio::join!(stop, watch);
    assert!(stopped.expect("stopped").success());
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn the_health_of_each_service_can_be_watched_to_the_end() {
    let edge = Edge::start().await;
    let channel = channel(&edge).await;
    let mut client = HealthClient::new(channel);
    let mut watches = Vec::new();
    for service in ["", AUTHZ, ALS] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut watch = client.watch(request).await.expect("known").into_inner();
        let first = tokio::time::timeout(SOON, watch.message()).await.expect("at once").expect("open").expect("told");
        assert_eq!(first.status, SERVING, "{service}");
        watches.push((service, watch));
    }
    let request = HealthCheckRequest { service: "none.of.ours".to_owned() };
    assert_eq!(client.watch(request).await.expect_err("not served").code(), tonic::Code::NotFound);
    let stop = edge.stack.tollgate.terminate();
    let watch = async {
        for (service, mut watch) in watches {
            let told = tokio::time::timeout(SOON, watch.message()).await;
            let told = told.unwrap_or_else(|_| panic!("{service:?} is told of the stop")).expect("open").expect("told");
            assert_eq!(told.status, NOT_SERVING, "{service}");
        }
    };
    let (stopped, ()) = tokio::join!(stop, watch);
    assert!(stopped.expect("stopped").success(), "an open watch does not make it a failure");
    edge.finish_unbilled().await;
}
