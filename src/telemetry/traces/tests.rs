use opentelemetry::trace::TraceContextExt;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::config::BaseUrl;
use crate::upstream::Http;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn parse(traceparent: &[&str], tracestate: &[&str]) -> Option<Parent> {
    let [traceparent, tracestate] =
        [traceparent, tracestate].map(|values| values.iter().map(|value| value.as_bytes()).collect::<Vec<_>>());
    Parent::parse(&traceparent, &tracestate)
}

/// What would be passed on.
fn passed_on(traceparent: &str, tracestate: &[&str]) -> Option<(String, Option<String>)> {
    let context = parse(&[traceparent], tracestate)?.context();
    headers(&context).map(|(parent, state)| (parent, state.map(str::to_owned)))
}

#[test]
fn a_valid_traceparent_is_passed_on_as_it_was_received() {
    for valid in [
        VALID,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        // Flags of a later level of the recommendation.
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03",
    ] {
        assert_eq!(passed_on(valid, &[]), Some((valid.to_owned(), None)));
    }
    // A later version is read as far as it is known, and goes on as the version that was written.
    for later in [format!("cc{}", &VALID[2..]), format!("cc{}-what-the-future-brings", &VALID[2..])] {
        assert_eq!(passed_on(&later, &[]), Some((VALID.to_owned(), None)), "{later}");
    }
}

#[test]
fn an_invalid_traceparent_is_as_good_as_none() {
    for invalid in [
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-000f067aa0ba902b7-01",
        "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-001",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
        "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-\u{e9}",
    ] {
        assert_eq!(parse(&[invalid], &["a=1"]), None, "{invalid}");
    }
    assert_eq!(parse(&[VALID, VALID], &[]), None, "of two nobody knows which");
    assert_eq!(parse(&[], &["a=1"]), None);
}

#[test]
fn a_tracestate_is_passed_on_as_it_was_and_an_invalid_one_alone_is_left_out() {
    let state = |values: &[&str]| passed_on(VALID, values).expect("the traceparent is valid").1;
    assert_eq!(state(&["congo=t61rcWkgMzE,rojo=00f0"]).as_deref(), Some("congo=t61rcWkgMzE,rojo=00f0"));
    assert_eq!(state(&["congo=1", "rojo=2"]).as_deref(), Some("congo=1,rojo=2"));
    assert_eq!(state(&["congo=1 , rojo==2"]).as_deref(), Some("congo=1 , rojo==2"));
    let long = format!("a={}", "x".repeat(600));
    for invalid in ["", "no list", "A B=1", "a=\u{e9}", "a=1\r\nx-evil: 1", &long] {
        assert_eq!(state(&[invalid]), None, "{invalid}");
    }
}

async fn received(work: Option<&Work>) -> wiremock::Request {
    let server = MockServer::start().await;
    Mock::given(wiremock::matchers::any()).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let http = Http::new(&BaseUrl::of_test(&server.uri()), std::time::Duration::from_secs(5)).expect("client");
    within(work, http.send(|client| client.get(server.uri()))).await.expect("an answer");
    server.received_requests().await.expect("recorded").pop().expect("one request")
}

#[tokio::test]
async fn without_a_collector_a_call_carries_what_was_received_and_nothing_where_nothing_was() {
    let parent = parse(&[VALID], &["congo=1,rojo=2"]).expect("valid");
    let request = received(of_request("Check", Some(&parent)).as_ref()).await;
    assert_eq!(request.headers["traceparent"], VALID);
    assert_eq!(request.headers["tracestate"], "congo=1,rojo=2");
    let none = of_request("Check", None);
    assert!(none.is_none(), "there is nothing to be done for it");
    let request = received(none.as_ref()).await;
    assert!(!request.headers.contains_key("traceparent") && !request.headers.contains_key("tracestate"));
}

#[tokio::test]
async fn what_a_piece_of_work_starts_is_part_of_its_trace_and_nothing_beside_it_is() {
    let id = || super::id().map(|id| id.to_string());
    let parent = parse(&[VALID], &[]).expect("valid");
    let work = of_request("Check", Some(&parent));
    let inside = within(work.as_ref(), async {
        let around = Around::here();
        tokio::task::yield_now().await;
        (around, id())
    });
    let ((around, inside), beside) = tokio::join!(inside, async { id() });
    assert_eq!((inside.as_deref(), beside), (Some(TRACE), None));
    let started = tokio::spawn(async move { around.run(async { id() }).await }).await.expect("no panic");
    assert_eq!((started.as_deref(), id()), (Some(TRACE), None));
    assert!(!Context::current().has_active_span());
}
