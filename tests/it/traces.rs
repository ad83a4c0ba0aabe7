//! W3C trace context from the client to FlowMesh and to Tollgate's own calls, and spans at a collector.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;
use tokio::net::TcpListener;
use tollgate_local::stack::{ACME, ALICE, PEOPLE, free_port, wait_for};
use tollgate_local::standin::Seen;

use crate::harness::collector::{Collector, attribute};
use crate::harness::{Edge, SOON, answer};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const TRACESTATE: &str = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7";
/// For batches to leave at once.
const AT_ONCE: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

/// Tollgate's own questions about that path.
fn own(edge: &Edge, path: &str) -> Vec<Seen> {
    let is_own = |seen: &Seen| seen.header("user-agent").is_some_and(|agent| agent.starts_with("tollgate/"));
    let all = edge.stack.flowmesh.requests().into_iter();
    all.filter(|seen| is_own(seen) && seen.path_and_query.starts_with(path)).collect()
}

/// Tollgate's lines with this text, as JSON.
async fn line(edge: &Edge, text: &str) -> Value {
    edge.says(text).await;
    let lines = edge.stack.tollgate.lines();
    let line = lines.iter().find(|line| line.contains(text)).expect("it was said");
    serde_json::from_str(line).expect("JSON")
}

/// A task that no look-up of a supplier knows yet.
async fn unknown_task(edge: &Edge) -> String {
    edge.submit(ALICE.token, 1).await.1.remove(0)
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[tokio::test]
async fn trace_context_reaches_flowmesh_as_it_was_and_goes_along_on_tollgates_own_calls() {
    let edge = Edge::start().await;
    let task = unknown_task(&edge).await;
    let path = format!("/api/v1/tasks/{task}");
    let read = edge.get(&path).bearer_auth(ALICE.token);
    let read = answer(read.header("traceparent", TRACEPARENT).header("tracestate", TRACESTATE)).await;
    assert_eq!(read.status, 200, "{read:?}");
    let seen = edge.seen().pop().expect("arrived");
    let asked = own(&edge, &format!("{path}?view=status")).pop().expect("its supplier was looked for");
    for seen in [seen, asked] {
        assert_eq!(seen.header_values("traceparent"), [TRACEPARENT], "{seen:?}");
        assert_eq!(seen.header_values("tracestate"), [TRACESTATE], "{seen:?}");
    }
    assert_eq!(line(&edge, &format!("GET {path}: allowed")).await["trace_id"], TRACE);
    edge.finish().await;
}

#[tokio::test]
async fn an_invalid_traceparent_passes_to_flowmesh_and_means_nothing_to_tollgate() {
    let edge = Edge::start().await;
    for invalid in ["00-00000000000000000000000000000000-00f067aa0ba902b7-01", "hello", &TRACEPARENT.to_uppercase()] {
        let task = unknown_task(&edge).await;
        let path = format!("/api/v1/tasks/{task}");
        let read = edge.get(&path).bearer_auth(ALICE.token).header("traceparent", invalid);
        let read = answer(read.header("tracestate", TRACESTATE)).await;
        assert_eq!(read.status, 200, "{read:?}");
        assert_eq!(edge.seen().pop().expect("arrived").header("traceparent"), Some(invalid));
        let asked = own(&edge, &format!("{path}?view=status")).pop().expect("its supplier was looked for");
        assert_eq!((asked.header("traceparent"), asked.header("tracestate")), (None, None), "{invalid}");
        assert!(line(&edge, &format!("GET {path}: allowed")).await.get("trace_id").is_none());
    }
    edge.finish().await;
}

#[tokio::test]
async fn the_spans_of_a_request_connect_to_its_caller_and_to_what_it_caused() {
    let collector = Collector::start().await;
    let endpoint = collector.url();
    let edge = Edge::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), AT_ONCE]).await;
    let submission = edge.submission(ALICE.token, 1).header("traceparent", TRACEPARENT);
    let submitted = answer(submission.header("tracestate", TRACESTATE)).await;
    assert_eq!(submitted.status, 201, "{submitted:?}");
    let of_trace = |name: &'static str| move |span: &Span| hex(&span.trace_id) == TRACE && span.name == name;
    let check = collector.span("Check", of_trace("Check")).await;
    assert_eq!((hex(&check.parent_span_id).as_str(), check.trace_state.as_str()), (PARENT, TRACESTATE));
    for (key, value) in [
        ("tollgate.decision", "allowed"),
        ("tollgate.route", "submit"),
        ("tollgate.cache", "miss"),
        ("tollgate.principal_id", ALICE.sub),
        ("tollgate.request_id", submitted.header("x-request-id").expect("an id")),
    ] {
        assert_eq!(attribute(&check, key).as_deref(), Some(value), "{key}: {check:?}");
    }
    for name in ["introspect", "preflight"] {
        let call = collector.span(name, of_trace(name)).await;
        assert_eq!(call.parent_span_id, check.span_id, "{call:?}");
    }

    let task = submitted.json()["tasks"][0]["task_id"].as_str().expect("an id").to_owned();
    let path = format!("/api/v1/tasks/{task}");
    let read = edge.get(&path).bearer_auth(ALICE.token).header("traceparent", TRACEPARENT);
    assert_eq!(answer(read).await.status, 200);
    let look_up = collector.span("supplier look-up", of_trace("supplier look-up")).await;
    let asked = own(&edge, &format!("{path}?view=status")).pop().expect("its supplier was looked for");
    let expected = format!("00-{TRACE}-{}-01", hex(&look_up.span_id));
    assert_eq!(asked.header("traceparent"), Some(expected.as_str()), "a call carries the span that it is");
    assert_eq!(edge.seen().pop().expect("arrived").header("traceparent"), Some(TRACEPARENT), "FlowMesh's is its own");

    edge.post_result(ACME.token, &task).await;
    edge.entries(1).await;
    let of_task =
        |name: &'static str| move |span: &Span| span.name == name && attribute(span, "tollgate.outcome").is_some();
    for (step, call, outcome) in [("settle", "task", "charged"), ("post", "billing entry", "posted")] {
        let ended =
            |span: &Span| of_task(step)(span) && attribute(span, "tollgate.outcome").as_deref() == Some(outcome);
        let step = collector.span(step, ended).await;
        assert!(step.parent_span_id.is_empty(), "nobody asked for it: {step:?}");
        assert_eq!(attribute(&step, "tollgate.task_id"), Some(task.clone()));
        collector.span(call, |span| span.name == call && span.parent_span_id == step.span_id).await;
    }
    let posted = line(&edge, "posted $").await;
    let post = collector.span("post", of_task("post")).await;
    assert_eq!(posted["trace_id"], hex(&post.trace_id));

    assert_eq!(collector.resource("service.name").as_deref(), Some("tollgate"));
    let everything = format!("{:?}", collector.requests());
    for person in PEOPLE {
        assert!(!everything.contains(person.token) && !everything.contains(person.email), "{everything}");
    }
    edge.finish().await;
}

#[tokio::test]
async fn a_caller_that_samples_nothing_gets_no_span_and_is_carried_on_all_the_same() {
    let collector = Collector::start().await;
    let endpoint = collector.url();
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_SERVICE_NAME", "tollgate-eu"), AT_ONCE];
    let edge = Edge::with(&settings).await;
    let task = unknown_task(&edge).await;
    let path = format!("/api/v1/tasks/{task}");
    let read = |traceparent: &'static str| edge.get(&path).bearer_auth(ALICE.token).header("traceparent", traceparent);
    assert_eq!(answer(read(UNSAMPLED)).await.status, 200);
    let asked = own(&edge, &format!("{path}?view=status")).pop().expect("its supplier was looked for");
    let carried = asked.header("traceparent").expect("it is part of the trace").to_owned();
    assert!(carried.starts_with(&UNSAMPLED[..36]) && carried.ends_with("-00"), "{carried}");
    // One after it that is sampled, so that a span too many would have come before.
    assert_eq!(answer(read(TRACEPARENT)).await.status, 200);
    collector.span("Check", |span| hex(&span.trace_id) == TRACE).await;
    let unsampled = collector.spans().into_iter().find(|span| hex(&span.trace_id) == UNSAMPLED[3..35]);
    assert_eq!(unsampled, None);
    assert_eq!(collector.resource("service.name").as_deref(), Some("tollgate-eu"));
    edge.finish().await;
}

#[tokio::test]
async fn the_last_spans_are_handed_over_at_the_stop() {
    let collector = Collector::start().await;
    let endpoint = collector.url();
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "3600000")];
    let edge = Edge::with(&settings).await;
    let read = edge.get("/api/v1/nodes").bearer_auth(ALICE.token).header("traceparent", TRACEPARENT);
    assert_eq!(answer(read).await.status, 200);
    assert_eq!(collector.spans(), Vec::new());
    assert!(edge.stack.tollgate.terminate().await.expect("stopped").success());
    assert!(collector.spans().iter().any(|span| span.name == "Check" && hex(&span.trace_id) == TRACE));
    edge.finish_unbilled().await;
}

/// Works as ever and stops in time with that collector.
async fn assert_unharmed_by(endpoint: &str, outcome: &str) {
    let edge = Edge::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), AT_ONCE]).await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let counted = async || {
        // While somebody goes on working.
        let started = Instant::now();
        assert_eq!(answer(edge.get("/api/v1/nodes").bearer_auth(ALICE.token)).await.status, 200);
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        let series = format!("tollgate_span_exports_total{{outcome=\"{outcome}\"}}");
        edge.stack.tollgate.metric(&series).await.filter(|count| *count >= 2.0)
    };
    wait_for("two tries that failed", SOON, counted).await.expect("counted");
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    edge.quiet().await;
    let told = edge.stack.tollgate.lines().iter().filter(|line| line.contains("does not take spans")).count();
    assert_eq!(told, 1, "{:#?}", edge.stack.tollgate.lines());
    let started = Instant::now();
    assert!(edge.stack.tollgate.terminate().await.expect("stopped").success());
    assert!(started.elapsed() < Duration::from_secs(9), "within docker's patience: {:?}", started.elapsed());
    let panicked = edge.stack.tollgate.lines().into_iter().find(|line| line.contains("panicked"));
    assert_eq!(panicked, None);
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn a_collector_that_is_down_costs_one_line_and_nothing_else() {
    assert_unharmed_by(&format!("http://127.0.0.1:{}", free_port().expect("a port")), "network").await;
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_one_line_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let silent = format!("http://{}", listener.local_addr().expect("an address"));
    // Nobody accepts: what connects waits in the kernel.
    assert_unharmed_by(&silent, "timeout").await;
    drop(listener);
}
