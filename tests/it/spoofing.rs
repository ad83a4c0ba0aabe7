//! Identity that a client makes up: it arrives in no spelling, on no route, and not through a weaker Envoy either.

use tollgate_local::stack::BOB;
use tollgate_local::standin::Seen;

use crate::harness::{Answer, Edge, Http2};

/// Each name of Tollgate's, twice, the second time empty or in another case.
const DUPLICATES: &[(&str, &str)] = &[
    ("x-flowmesh-principal-id", "admin"),
    ("X-FlowMesh-Principal-ID", "root"),
    ("x-flowmesh-external-id", "admin"),
    ("X-FLOWMESH-EXTERNAL-ID", ""),
    ("x-flowmesh-org-id", "local"),
    ("x-flowmesh-org-id", "local"),
    ("X-flowmesh-principal-type", "service"),
    ("x-flowmesh-principal-type", "user,service"),
    ("x-flowmesh-scopes", "*"),
    ("X-Flowmesh-Scopes", "workflows:read"),
    ("x-flowmesh-scopes", "*"),
    ("x-flowmesh-supplier-id", "mine"),
    ("X-Flowmesh-supplier-id", "mine, too"),
];
/// What servers that make underscores of dashes, as CGI does, would take for the same.
const UNDERSCORES: &[(&str, &str)] = &[
    ("x_flowmesh_principal_id", "admin"),
    ("X_FLOWMESH_PRINCIPAL_ID", "admin"),
    ("x-flowmesh_principal-id", "admin"),
    ("x_flowmesh-principal-id", "admin"),
    ("x-flowmesh-principal_id", "admin"),
    ("x_flowmesh_scopes", "*"),
    ("x_flowmesh-supplier-id", "mine"),
];
/// Names that nobody uses, yet.
const OTHERS: &[(&str, &str)] = &[("x-flowmesh-anything", "else"), ("x-flowmesh-", "nothing")];

/// The shipped removal of spoofed headers, and one that removes nothing that matters.
const EARLY: (&str, &str) = ("x[-_]flowmesh[-_].*", "x-unheard-of");
const UNDERSCORES_ALLOWED: (&str, &str) =
    ("headers_with_underscores_action: DROP_HEADER", "headers_with_underscores_action: ALLOW");

fn all() -> Vec<(&'static str, &'static str)> {
    [DUPLICATES, UNDERSCORES, OTHERS].concat()
}

/// Every header that some server might take for identity.
fn identity(seen: &Seen) -> Vec<(&str, &str)> {
    let mut identity: Vec<_> = seen
        .headers
        .iter()
        .filter(|(name, _)| name.replace('_', "-").starts_with("x-flowmesh"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    identity.sort_unstable();
    identity
}

fn bob() -> Vec<(&'static str, &'static str)> {
    vec![
        ("x-flowmesh-external-id", "user-bob"),
        ("x-flowmesh-org-id", "lumid"),
        ("x-flowmesh-principal-id", "user-bob"),
        ("x-flowmesh-principal-type", "user"),
        ("x-flowmesh-scopes", "workflows:submit workflows:read workflows:cancel tasks:read"),
    ]
}

/// A request over HTTP/1.1 with a chunked body, after which the same spoofs come as trailers.
async fn http1(edge: &Edge, (method, path): (&str, &str), headers: &[(&str, &str)]) -> Answer {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nte: trailers\r\n");
    // Some are also named as headers of this one connection, which a proxy is to drop.
    request += "connection: close, te, x-flowmesh-principal-id, x-flowmesh-scopes\r\ntransfer-encoding: chunked\r\n";
    let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>().concat();
    request += &format!("{lines}\r\n9\r\n- name: a\r\n0\r\n{lines}\r\n");
    edge.raw(request).await
}

async fn http2(edge: &Edge, (method, path): (&str, &str), headers: &[(&str, &str)]) -> Answer {
    let mut client = Http2::connect(edge).await;
    let request = client.request(method, path, headers);
    client.exchange(request, "- name: a", headers).await
}

/// Routes on which Tollgate is asked.
const CHECKED: &[(&str, &str)] =
    &[("POST", "/api/v1/workflows"), ("POST", "/api/v1/workflows/validate"), ("GET", "/api/v1/tasks")];
/// Routes on which only Envoy itself can keep anything out.
const EXEMPT: &[(&str, &str)] =
    &[("GET", "/healthz"), ("POST", "/api/v1/serve/tasks/tsk-1/v1/chat"), ("GET", "/api/v1/serve/tasks/tsk-1/")];

/// With these spoofs as headers and as trailers, over both protocols, FlowMesh sees this identity and no other.
async fn assert_identity(edge: &Edge, routes: &[(&str, &str)], spoofs: &[(&str, &str)], expected: &[(&str, &str)]) {
    let bearer = format!("Bearer {}", BOB.token);
    let headers = [spoofs, &[("authorization", bearer.as_str())]].concat();
    for route in routes {
        for protocol in ["HTTP/1.1", "HTTP/2"] {
            let before = edge.seen().len();
            let answer = match protocol {
                "HTTP/1.1" => http1(edge, *route, &headers).await,
                _ => http2(edge, *route, &headers).await,
            };
            assert!(matches!(answer.status, 200 | 201), "{protocol} {route:?}: {answer:?}");
            let seen = edge.seen().split_off(before);
            let [seen] = seen.as_slice() else { panic!("{protocol} {route:?}: {seen:?}") };
            assert_eq!(identity(seen), expected, "{protocol} {route:?}");
            assert!(seen.trailers.is_empty(), "{protocol} {route:?}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn no_spelling_of_an_identity_header_arrives_on_any_route() {
    let edge = Edge::start().await;
    assert_identity(&edge, CHECKED, &all(), &bob()).await;
    assert_identity(&edge, EXEMPT, &all(), &[]).await;
    edge.finish().await;
}

#[tokio::test]
async fn made_up_identity_lets_nobody_in() {
    let edge = Edge::start().await;
    for route in CHECKED {
        for headers in [all(), [all(), vec![("authorization", "Bearer unknown")]].concat()] {
            assert_eq!(http1(&edge, *route, &headers).await.status, 401, "{route:?}");
            assert_eq!(http2(&edge, *route, &headers).await.status, 401, "{route:?}");
        }
    }
    assert!(edge.seen().is_empty(), "{:?}", edge.seen());
    edge.finish().await;
}

#[tokio::test]
async fn what_is_a_header_to_a_careless_parser_only_arrives_as_none() {
    let edge = Edge::start().await;
    for line in [
        " x-flowmesh-principal-id: admin",
        "\tx-flowmesh-principal-id: admin",
        "x-flowmesh-principal-id : admin",
        "x-flowmesh-principal-id\0: admin",
        "x-b: c\nx-flowmesh-principal-id: admin",
        "x-b: c\rx-flowmesh-principal-id: admin",
    ] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: b\r\n{line}\r\nconnection: close\r\n\r\n");
        assert!(matches!(edge.raw(request).await.status, 200 | 400), "{line:?}");
    }
    for seen in edge.seen() {
        assert_eq!(identity(&seen), [], "{seen:?}");
    }
    edge.finish().await;
}

#[tokio::test]
async fn trailers_bring_no_identity_even_where_the_listener_lets_them_in() {
    let mut edge = Edge::start().await;
    let with_trailers = "http_protocol_options: {enable_trailers: true}\n          http2_protocol_options:";
    edge.change_bootstrap(&[("http2_protocol_options:    #", &format!("{with_trailers}    #"))]).await;
    assert_identity(&edge, CHECKED, &all(), &bob()).await;
    assert_identity(&edge, EXEMPT, &all(), &[]).await;
    edge.finish().await;
}

#[tokio::test]
async fn an_envoy_that_lets_underscores_through_still_removes_them_from_identity() {
    let mut edge = Edge::start().await;
    edge.change_bootstrap(&[UNDERSCORES_ALLOWED]).await;
    assert_identity(&edge, CHECKED, &all(), &bob()).await;
    assert_identity(&edge, EXEMPT, &all(), &[]).await;
    edge.finish().await;
}

#[tokio::test]
async fn without_envoys_own_removal_every_copy_of_a_header_of_tollgates_is_replaced_or_removed() {
    let mut edge = Edge::start().await;
    edge.change_bootstrap(&[EARLY]).await;
    assert_identity(&edge, CHECKED, DUPLICATES, &bob()).await;
    edge.change_bootstrap(&[EARLY, UNDERSCORES_ALLOWED]).await;
    assert_identity(&edge, CHECKED, DUPLICATES, &bob()).await;
    edge.finish().await;
}
