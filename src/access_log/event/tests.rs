use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{Metadata, RequestMethod};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties,
};
use envoy_types::pb::google::protobuf::{self, Struct, UInt32Value, Value, value::Kind};
use jiff::Timestamp;
use proptest::prelude::*;
use prost::Message;

use super::{AccessLogType, Event, HttpLogEntry, Ignored, Over, RESPONSE_NAMESPACE, USAGE_NAMESPACE, metadata};

/// As it comes over the wire.
fn extract(entry: &HttpAccessLogEntry, now: Timestamp) -> Result<Event, Ignored> {
    super::extract(&HttpLogEntry::decode(entry.encode_to_vec().as_slice()).expect("a message"), now)
}

fn fields(pairs: &[(&str, &str)]) -> Struct {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    Struct { fields: pairs.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect() }
}

/// An entry as Envoy sends it for a request that passed Check: metadata of Check, captured response, route and answer.
fn entry(
    method: RequestMethod,
    path: &str,
    code: u32,
    check: &[(&str, &str)],
    captured: &[(&str, &str)],
) -> HttpAccessLogEntry {
    let check: Vec<_> = [("record", "yes"), ("principal_id", "user-1")].iter().chain(check).copied().collect();
    let filter_metadata = HashMap::from([
        (metadata::NAMESPACE.to_owned(), fields(&check)),
        (RESPONSE_NAMESPACE.to_owned(), fields(captured)),
    ]);
    HttpAccessLogEntry {
        common_properties: Some(AccessLogCommon {
            metadata: Some(Metadata { filter_metadata, ..Metadata::default() }),
            start_time: Some(protobuf::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
            duration: Some(protobuf::Duration { seconds: 2, nanos: 500_000_000 }),
            upstream_wire_bytes_sent: 100,
            access_log_type: AccessLogType::DownstreamEnd.into(),
            ..AccessLogCommon::default()
        }),
        request: Some(HttpRequestProperties {
            request_method: method.into(),
            path: path.to_owned(),
            ..HttpRequestProperties::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: (code > 0).then_some(UInt32Value { value: code }),
            response_code_details: "via_upstream".to_owned(),
            ..HttpResponseProperties::default()
        }),
        ..HttpAccessLogEntry::default()
    }
}

fn submission(code: u32, captured: &[(&str, &str)]) -> HttpAccessLogEntry {
    entry(RequestMethod::Post, "/api/v1/workflows", code, &[("submission_id", "sub-1")], captured)
}

fn said(entry: &HttpAccessLogEntry) -> Result<Event, Ignored> {
    extract(entry, Timestamp::UNIX_EPOCH)
}

fn over() -> Over {
    Over {
        submission_id: "sub-1".into(),
        principal_id: Some("user-1".into()),
        began: Timestamp::new(1_800_000_000, 0).expect("valid"),
        at: ended_at(),
    }
}

fn ended_at() -> Timestamp {
    Timestamp::new(1_800_000_002, 500_000_000).expect("valid")
}

/// An entry of a task's read whose answer reports usage so: in metadata, in trailers, or in plain headers.
fn reporting(place: &str, reported: &[(&str, &str)]) -> HttpAccessLogEntry {
    let mut entry = entry(RequestMethod::Get, "/api/v1/tasks/tsk-1", 200, &[("supplier_id", "acme")], &[]);
    let as_headers: HashMap<String, String> = reported
        .iter()
        .map(|(name, value)| (format!("x-flowmesh-task-{}", name.replace('_', "-")), (*value).into()))
        .collect();
    if let (Some(common), Some(response)) = (&mut entry.common_properties, &mut entry.response) {
        match place {
            "metadata" => {
                let all = common.metadata.get_or_insert_default();
                all.filter_metadata.insert(USAGE_NAMESPACE.to_owned(), fields(reported));
            }
            "trailers" => response.response_trailers = as_headers,
            _ => response.response_headers = as_headers,
        }
    }
    entry
}

const REPORTED: [(&str, &str); 5] =
    [("id", "tsk-1"), ("status", "DONE"), ("cost", "4.2e-1"), ("runtime_sec", "12.9"), ("cost_per_hour", "1.5")];

#[test]
fn usage_in_an_answer_is_a_charge_wherever_it_is_reported() {
    for place in ["metadata", "trailers", "headers"] {
        let Ok(Event::UsageReported { task_id, usage }) = said(&reporting(place, &REPORTED)) else { panic!("{place}") };
        assert_eq!((task_id.as_str(), usage.cost.as_str(), usage.duration_sec), ("tsk-1", "0.42", 12));
        assert_eq!((usage.cost_per_hour.as_str(), usage.task_status.as_str()), ("1.5", "DONE"));
        assert_eq!(usage.supplier_id.as_deref(), Some("acme"));
    }
}

#[test]
fn usage_that_is_not_whole_is_a_hint_and_never_a_guess() {
    for (name, value) in [
        ("cost", "much"),
        ("cost", "-1"),
        ("cost", "inf"),
        ("cost", "0.42, 0.42"),
        ("runtime_sec", ""),
        ("runtime_sec", "NaN"),
        ("runtime_sec", "-1"),
        ("cost_per_hour", "+1"),
        ("cost_per_hour", "-1"),
    ] {
        let odd = REPORTED.map(|(key, good)| (key, if key == name { value } else { good }));
        assert_eq!(
            said(&reporting("metadata", &odd)),
            Ok(Event::TaskEnded { task_id: "tsk-1".into() }),
            "{name} {value}"
        );
    }
    // Nor for another task than the one that was asked about, nor put together from several places.
    let other = REPORTED.map(|(key, good)| (key, if key == "id" { "tsk-9" } else { good }));
    assert_eq!(said(&reporting("headers", &other)), Ok(Event::TaskEnded { task_id: "tsk-9".into() }));
    let mut mixed = reporting("metadata", &REPORTED[..2]);
    mixed.response.as_mut().expect("an answer").response_headers =
        reporting("headers", &REPORTED).response.expect("an answer").response_headers;
    assert_eq!(said(&mixed), Ok(Event::TaskEnded { task_id: "tsk-1".into() }));
    // What does not name a finished task is no report at all.
    for (name, value) in [("id", "a/b"), ("id", ""), ("status", "DISPATCHED"), ("status", "done")] {
        let odd = REPORTED.map(|(key, good)| (key, if key == name { value } else { good }));
        assert_eq!(
            said(&reporting("metadata", &odd)),
            Ok(Event::TaskTouched { task_id: "tsk-1".into() }),
            "{name} {value}"
        );
    }
}

#[test]
fn a_submission_with_its_workflow_is_the_principals_of_our_own_metadata() {
    let expected = Event::Submitted {
        submission_id: "sub-1".into(),
        principal_id: "user-1".into(),
        workflow_id: "wfl-1".into(),
        at: ended_at(),
    };
    assert_eq!(said(&submission(201, &[("workflow_id", "wfl-1")])), Ok(expected));
}

#[test]
fn a_submission_that_flowmesh_refused_or_never_saw_made_no_workflow() {
    let refused = Ok(Event::SubmissionRefused { over: over() });
    assert_eq!(said(&submission(422, &[])), refused);
    let mut unreachable = submission(503, &[]);
    if let (Some(common), Some(response)) = (&mut unreachable.common_properties, &mut unreachable.response) {
        common.upstream_wire_bytes_sent = 0;
        response.response_code_details = "upstream_reset_before_response_started".to_owned();
    }
    assert_eq!(said(&unreachable), refused);
}

#[test]
fn a_submission_of_unknown_outcome_stays_open_until_its_end() {
    let ended = |failed| Ok(Event::SubmissionEnded { over: over(), failed });
    let unknown = ended(false);
    // FlowMesh failed, half-way or at once.
    assert_eq!(said(&submission(500, &[])), ended(true));
    let mut late = submission(504, &[]);
    if let Some(response) = &mut late.response {
        response.response_code_details = "response_timeout".to_owned();
    }
    assert_eq!(said(&late), unknown);
    // The client left; the answer was lost, or not captured.
    for entry in [submission(0, &[]), submission(201, &[]), submission(201, &[("workflow_id", "a/b")])] {
        assert_eq!(said(&entry), unknown, "{entry:?}");
    }
    let mut cut = submission(413, &[]);
    if let Some(response) = &mut cut.response {
        response.response_code_details = "request_payload_too_large".to_owned();
    }
    assert_eq!(said(&cut), unknown);
}

#[test]
fn a_result_post_names_its_task_by_what_check_read_from_the_body() {
    let post = |code, check: &[(&str, &str)]| entry(RequestMethod::Post, "/api/v1/results", code, check, &[]);
    assert_eq!(said(&post(200, &[("task_id", "tsk-1")])), Ok(Event::TaskEnded { task_id: "tsk-1".into() }));
    assert_eq!(said(&post(200, &[])), Err(Ignored::Malformed));
    assert_eq!(said(&post(500, &[("task_id", "tsk-1")])), Err(Ignored::NotSuccessful));
}

#[test]
fn a_status_read_tells_when_it_is_terminal_and_a_plain_read_is_a_touch() {
    let read =
        |captured: &[(&str, &str)]| entry(RequestMethod::Get, "/api/v1/tasks/tsk-1?view=status", 200, &[], captured);
    for status in ["DONE", "FAILED", "CANCELLED"] {
        assert_eq!(said(&read(&[("status", status)])), Ok(Event::TaskEnded { task_id: "tsk-1".into() }));
    }
    assert_eq!(said(&read(&[("status", "DISPATCHED")])), Err(Ignored::Irrelevant));
    assert_eq!(said(&read(&[])), Ok(Event::TaskTouched { task_id: "tsk-1".into() }));
    let failed = entry(RequestMethod::Get, "/api/v1/tasks/tsk-1", 404, &[], &[]);
    assert_eq!(said(&failed), Err(Ignored::NotSuccessful));
}

#[test]
fn artifacts_touch_their_task_and_workflows_are_seen() {
    let touched = Ok(Event::TaskTouched { task_id: "tsk-1".into() });
    for (method, path) in [
        (RequestMethod::Post, "/api/v1/results/tsk-1/files"),
        (RequestMethod::Get, "/api/v1/results/tsk-1/bundle"),
        (RequestMethod::Post, "/api/v1/traces/tasks/tsk-1/spans"),
    ] {
        assert_eq!(said(&entry(method, path, 200, &[], &[])), touched);
    }
    let seen = Ok(Event::WorkflowSeen { workflow_id: "wfl-1".into() });
    let read = |captured: &[(&str, &str)]| entry(RequestMethod::Get, "/api/v1/workflows/wfl-1", 200, &[], captured);
    assert_eq!(said(&read(&[])), seen);
    assert_eq!(said(&read(&[("status", "FAILED")])), seen);
    assert_eq!(said(&read(&[("status", "DISPATCHED")])), Err(Ignored::Irrelevant));
    assert_eq!(
        said(&entry(RequestMethod::Post, "/api/v1/workflows/wfl-1/cancel", 200, &[], &[("status", "PENDING")])),
        seen
    );
}

#[test]
fn only_final_entries_with_our_own_mark_count() {
    let with = |change: fn(&mut AccessLogCommon)| {
        let mut entry = submission(201, &[("workflow_id", "wfl-1")]);
        change(entry.common_properties.as_mut().expect("set above"));
        said(&entry)
    };
    assert_eq!(
        with(|common| common.access_log_type = AccessLogType::DownstreamPeriodic.into()),
        Err(Ignored::NotFinal)
    );
    assert_eq!(with(|common| common.access_log_type = AccessLogType::DownstreamStart.into()), Err(Ignored::NotFinal));
    assert_eq!(with(|common| common.access_log_type = 99), Err(Ignored::NotFinal));
    assert!(with(|common| common.access_log_type = AccessLogType::NotSet.into()).is_ok());
    assert_eq!(with(|common| common.metadata = None), Err(Ignored::NotOurs));
    // What only FlowMesh's answer says is not ours.
    assert_eq!(
        with(|common| drop(common.metadata.as_mut().expect("set above").filter_metadata.remove(metadata::NAMESPACE))),
        Err(Ignored::NotOurs)
    );
    let mut cut = submission(201, &[("workflow_id", "wfl-1")]);
    cut.response = None;
    for odd in [HttpAccessLogEntry::default(), cut] {
        assert_eq!(said(&odd), Err(Ignored::Malformed));
    }
    let elsewhere = entry(RequestMethod::Get, "/api//v1/tasks/tsk-1", 200, &[], &[]);
    assert_eq!(said(&elsewhere), Err(Ignored::Malformed), "Check lets no such path through");
}

#[test]
fn a_serve_route_tells_nothing_whatever_its_entry_claims() {
    let entry = entry(
        RequestMethod::Post,
        "/api/v1/serve/tasks/tsk-1/v1/chat",
        200,
        &[("task_id", "tsk-1"), ("submission_id", "sub-1")],
        &[("workflow_id", "wfl-1"), ("status", "DONE")],
    );
    assert_eq!(said(&entry), Err(Ignored::Irrelevant));
}

proptest! {
    #[test]
    fn no_entry_panics(path in "\\PC{0,40}", code in 0_u32..700, seconds: i64, nanos: i32, task in "\\PC{0,10}") {
        let mut entry = entry(RequestMethod::Post, &path, code, &[("submission_id", "s"), ("task_id", &task)], &[]);
        if let Some(common) = &mut entry.common_properties {
            common.start_time = Some(protobuf::Timestamp { seconds, nanos });
            common.duration = Some(protobuf::Duration { seconds, nanos });
        }
        let _ = said(&entry);
    }
}
