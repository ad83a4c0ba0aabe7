//! Streams that stay open for hours: no time limit ends them, and they take nobody's connections.

use std::time::{Duration, Instant};

use tollgate_local::stack::ALICE;
use tollgate_local::standin::{Fault, Outcome};

use crate::harness::{Edge, SOON, WebSocket, answer};

/// Every time limit of the bootstrap that could be about a request, made short enough to be waited out.
const SHORT: &[(&str, &str)] = &[
    ("timeout: 60s", "timeout: 1s"),
    ("timeout: 300s", "timeout: 1s"),
    ("timeout: 600s", "timeout: 1s"),
    ("timeout: 3600s", "timeout: 1s"),
    ("timeout: 4s", "timeout: 1s"),
];
const OUTLAST: Duration = Duration::from_secs(3);

fn bearer() -> String {
    format!("authorization: Bearer {}\r\n", ALICE.token)
}

async fn log_stream(edge: &Edge, task: &str) -> reqwest::Response {
    let path = format!("/api/v1/tasks/{task}/logs/stream");
    let stream = edge.get(&path).bearer_auth(ALICE.token).send().await.expect("an answer");
    assert_eq!(stream.status(), 200);
    stream
}

/// The next event of a log stream.
async fn event(stream: &mut reqwest::Response) -> String {
    let chunk = tokio::time::timeout(SOON, stream.chunk()).await.expect("an event in time");
    String::from_utf8_lossy(&chunk.expect("the stream is open").expect("not at its end")).into_owned()
}

async fn open_websocket(edge: &Edge, task: &str) -> WebSocket {
    let opened = WebSocket::open(edge, &format!("/api/v1/ssh/tasks/{task}/proxy"), &bearer()).await;
    opened.unwrap_or_else(|refused| panic!("{refused:?}"))
}

#[tokio::test]
async fn a_silent_stream_outlives_every_time_limit_of_other_requests() {
    let mut edge = Edge::start().await;
    edge.change_bootstrap(SHORT).await;
    let (workflow, tasks) = edge.submit(ALICE.token, 1).await;
    edge.stack.flowmesh.options(|options| options.event_interval = OUTLAST);
    let started = Instant::now();
    let mut logs = log_stream(&edge, &tasks[0]).await;
    let path = format!("/api/v1/workflows/{workflow}/logs/stream");
    let mut more_logs = edge.get(&path).bearer_auth(ALICE.token).send().await.expect("an answer");
    let mut socket = open_websocket(&edge, &tasks[0]).await;
    socket.assert_alive().await;
    assert!(event(&mut logs).await.starts_with("id: 0-0"));
    assert!(event(&mut more_logs).await.starts_with("id: 0-0"));
    // The limits are what they were made: another request that takes as long is cut off.
    edge.stack.flowmesh.fail_on("GET /api/v1/nodes", Fault::Slow(OUTLAST));
    assert_eq!(answer(edge.get("/api/v1/nodes").bearer_auth(ALICE.token)).await.status, 504);
    assert!(event(&mut logs).await.starts_with("id: 1-0"));
    assert!(event(&mut more_logs).await.starts_with("id: 1-0"));
    assert!(started.elapsed() >= OUTLAST, "{:?}", started.elapsed());
    socket.assert_alive().await;
    edge.finish().await;
}

/// Opens many streams of both kinds and shows that the API has room beside them, and that all of them work to the end.
async fn assert_room_beside_streams(edge: Edge, each: usize) {
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let (mut logs, mut sockets) = (Vec::new(), Vec::new());
    for _ in 0..each {
        logs.push(log_stream(&edge, &tasks[0]).await);
        sockets.push(open_websocket(&edge, &tasks[0]).await);
    }
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..20 {
        requests.spawn(answer(edge.get("/api/v1/nodes").bearer_auth(ALICE.token)));
        requests.spawn(answer(edge.submission(ALICE.token, 1)));
    }
    while let Some(answer) = requests.join_next().await {
        let answer = answer.expect("answered");
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    }
    for socket in &mut sockets {
        socket.assert_alive().await;
    }
    for task in edge.stack.flowmesh.tasks() {
        edge.stack.flowmesh.complete(&task.task_id, Outcome::done(1.0, 1.5));
    }
    for stream in logs {
        let events = tokio::time::timeout(SOON, stream.text()).await.expect("in time").expect("whole");
        assert!(events.ends_with("event: eos\ndata:\n\n"), "{events}");
    }
    edge.entries(21).await;
    edge.finish().await;
}

#[tokio::test]
async fn two_hundred_open_streams_leave_the_api_as_it_was() {
    assert_room_beside_streams(Edge::start().await, 100).await;
}

#[tokio::test]
async fn streams_use_no_connection_of_the_api() {
    let mut edge = Edge::start().await;
    edge.replace_envoy("max_connections: 2048,", "max_connections: 2,").await;
    assert_room_beside_streams(edge, 8).await;
}
