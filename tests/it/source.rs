//! Whose address a request has: Envoy's word, never the client's.

use tollgate_local::stack::wait_for;

use crate::harness::{Edge, SOON, answer};

/// The source in the log line of a refused request with these headers.
async fn source_of(edge: &Edge, headers: &[(&str, &str)]) -> String {
    let mut request = edge.get("/api/v1/tasks");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let refused = answer(request).await;
    assert_eq!(refused.status, 401, "{refused:?}");
    let id = refused.header("x-request-id").expect("an id").to_owned();
    wait_for("the log line of the refusal", SOON, async || {
        let lines = edge.stack.tollgate.lines().into_iter().filter_map(|line| serde_json::from_str(&line).ok());
        lines
            .filter(|line: &serde_json::Value| line["request_id"] == id.as_str())
            .find_map(|line| Some(line["source"].as_str()?.to_owned()))
    })
    .await
    .expect("logged")
}

#[tokio::test]
async fn no_header_of_a_client_changes_its_address() {
    let edge = Edge::start().await;
    let all: &[(&str, &str)] = &[
        ("x-forwarded-for", "203.0.113.7"),
        ("X-Forwarded-For", "203.0.113.7, 203.0.113.8"),
        ("x-envoy-external-address", "203.0.113.7"),
        ("x-tollgate-source", "203.0.113.7"),
        ("X-Tollgate-Source", "203.0.113.8"),
        ("x_tollgate_source", "203.0.113.7"),
        ("x-real-ip", "203.0.113.7"),
        ("forwarded", "for=203.0.113.7"),
    ];
    assert_eq!(source_of(&edge, &[]).await, "127.0.0.1");
    assert_eq!(source_of(&edge, all).await, "127.0.0.1");
    for header in all {
        assert_eq!(source_of(&edge, &[*header]).await, "127.0.0.1", "{header:?}");
    }
    edge.finish().await;
}

#[tokio::test]
async fn behind_a_load_balancer_the_address_is_the_one_that_it_appended() {
    let mut edge = Edge::start().await;
    edge.replace_envoy("xff_num_trusted_hops: 0", "xff_num_trusted_hops: 1").await;
    for (forwarded, expected) in [
        ("203.0.113.7", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("127.0.0.1, 10.0.0.1, 203.0.113.7", "203.0.113.7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        // Nothing that a load balancer writes: what remains is the connection.
        ("203.0.113.7, nonsense", "127.0.0.1"),
        ("", "127.0.0.1"),
    ] {
        let headers = [
            ("x-forwarded-for", forwarded),
            ("x-tollgate-source", "192.0.2.1"),
            ("x-envoy-external-address", "192.0.2.1"),
        ];
        assert_eq!(source_of(&edge, &headers).await, expected, "{forwarded:?}");
    }
    assert_eq!(source_of(&edge, &[]).await, "127.0.0.1", "who comes around the load balancer");
    edge.finish().await;
}

#[tokio::test]
async fn the_address_travels_to_tollgate_and_nowhere_else() {
    let edge = Edge::start().await;
    for (path, status) in [("/healthz", 200), ("/api/v1/serve/tasks/tsk-1/x", 200)] {
        assert_eq!(answer(edge.get(path).header("x-tollgate-source", "192.0.2.1")).await.status, status);
    }
    edge.submit(tollgate_local::stack::ALICE.token, 1).await;
    let requests = edge.stack.flowmesh.requests();
    assert!(requests.len() >= 3);
    for seen in requests {
        assert!(!seen.headers.iter().any(|(name, _)| name.contains("tollgate-source")), "{seen:?}");
    }
    edge.finish_unbilled().await;
}
