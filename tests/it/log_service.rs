//! The log service spoken to directly: what Envoy may send after an outage, and a ledger that takes nothing for a while.

use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Metadata, RequestMethod};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, LogEntries, TcpAccessLogEntries,
};
use envoy_types::pb::google::protobuf::{Struct, UInt32Value, Value, value::Kind};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tollgate_local::stack::{ALICE, BOB, wait_for};
use tollgate_local::standin::Outcome;
use tonic::transport::Channel;

use crate::harness::direct::channel;
use crate::harness::{Edge, SOON, answer};

/// A finished look at a task, with so many bytes of query.
pub fn look_at(task: &str, padding: usize) -> HttpAccessLogEntry {
    let fields = HashMap::from([("record".to_owned(), Value { kind: Some(Kind::StringValue("yes".to_owned())) })]);
    let filter_metadata = HashMap::from([("envoy.filters.http.ext_authz".to_owned(), Struct { fields })]);
    HttpAccessLogEntry {
        common_properties: Some(AccessLogCommon {
            metadata: Some(Metadata { filter_metadata, ..Metadata::default() }),
            ..AccessLogCommon::default()
        }),
        request: Some(HttpRequestProperties {
            request_method: RequestMethod::Get.into(),
            path: format!("/api/v1/results/{task}?x={}", "x".repeat(padding)),
            ..HttpRequestProperties::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: Some(UInt32Value { value: 200 }),
            ..HttpResponseProperties::default()
        }),
        ..HttpAccessLogEntry::default()
    }
}

pub fn message(entries: Vec<HttpAccessLogEntry>) -> StreamAccessLogsMessage {
    let logs = HttpAccessLogEntries { log_entry: entries };
    StreamAccessLogsMessage { log_entries: Some(LogEntries::HttpLogs(logs)), ..StreamAccessLogsMessage::default() }
}

/// An open stream, to which messages can be sent.
async fn stream(edge: &Edge) -> mpsc::Sender<StreamAccessLogsMessage> {
    stream_on(channel(edge).await)
}

/// An open stream to the Tollgate at the other end.
pub fn stream_on(channel: Channel) -> mpsc::Sender<StreamAccessLogsMessage> {
    let mut client = AccessLogServiceClient::new(channel);
    let (sender, messages) = mpsc::channel(1);
    // Ends with the sender.
    tokio::spawn(async move { client.stream_access_logs(ReceiverStream::new(messages)).await });
    sender
}

/// Sends entries about fifty tasks until they find no room anywhere on the way. Returns how many went.
pub async fn send_until_held_up(stream: &mpsc::Sender<StreamAccessLogsMessage>) -> usize {
    const ENTRIES: usize = 40_000;
    let mut sent = 0;
    for batch in (0..ENTRIES).collect::<Vec<_>>().chunks(100) {
        let entries = message(batch.iter().map(|n| look_at(&format!("tsk-{}", n % 50), 512)).collect());
        if tokio::time::timeout(Duration::from_millis(500), stream.reserve()).await.is_err() {
            break;
        }
        stream.send(entries).await.expect("sent");
        sent += batch.len();
    }
    assert!(sent < ENTRIES, "the sender was held up");
    sent
}

#[tokio::test]
async fn what_envoy_has_kept_through_an_outage_is_taken_as_one_large_message() {
    let edge = Edge::start().await;
    let stream = stream(&edge).await;
    let entries: Vec<_> = (0..2600).map(|n| look_at(&format!("tsk-{}", n % 5), 2048)).collect();
    let large = message(entries);
    assert!(prost::Message::encoded_len(&large) > 5 << 20);
    stream.send(large).await.expect("sent");
    edge.metric("tollgate_log_entries_total", 2600.0).await;
    edge.metric("tollgate_due_tasks", 5.0).await;
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn entries_that_tell_nothing_are_counted_by_why() {
    let edge = Edge::start().await;
    let stream = stream(&edge).await;
    let changed = |change: fn(&mut HttpAccessLogEntry)| {
        let mut entry = look_at("tsk-1", 0);
        change(&mut entry);
        entry
    };
    let entries = vec![
        changed(|entry| entry.common_properties.as_mut().expect("set").access_log_type = 4),
        changed(|entry| entry.common_properties.as_mut().expect("set").metadata = None),
        changed(|entry| {
            entry.response.as_mut().expect("set").response_code = Some(UInt32Value { value: 404 });
        }),
        changed(|entry| entry.request.as_mut().expect("set").path = "/api/v1/workers".to_owned()),
        changed(|entry| entry.response = None),
        changed(|_| {}),
    ];
    stream.send(message(entries)).await.expect("sent");
    let connections = TcpAccessLogEntries { log_entry: vec![TcpAccessLogEntry::default(); 3] };
    let connections = Some(LogEntries::TcpLogs(connections));
    stream.send(StreamAccessLogsMessage { log_entries: connections, ..Default::default() }).await.expect("sent");
    for (kind, count) in [
        ("ignored_not_final", 1.0),
        ("ignored_not_ours", 1.0),
        ("ignored_not_2xx", 1.0),
        ("ignored_irrelevant", 1.0),
        ("ignored_malformed", 1.0),
        ("task_touched", 1.0),
        ("ignored_not_http", 3.0),
        ("lost_intake_closed", 0.0),
    ] {
        edge.metric(&format!("tollgate_log_entries_total{{kind=\"{kind}\"}}"), count).await;
    }
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn a_ledger_that_takes_nothing_stops_the_reading_of_streams_and_loses_no_entry() {
    let edge = Edge::start().await;
    let stream = stream(&edge).await;
    // Somebody else writes, and goes on and on.
    let options = SqliteConnectOptions::new().filename(edge.dir.path().join("ledger.db"));
    let mut other: SqliteConnection = options.connect().await.expect("opened");
    let held = other.begin_with("BEGIN IMMEDIATE").await.expect("begun");
    let sent = send_until_held_up(&stream).await;
    let queued = edge.stack.tollgate.metric("tollgate_intake_queued_events").await;
    assert!(queued.is_some_and(|queued| (4096.0..=4096.0 + 512.0).contains(&queued)), "{queued:?}");
    assert!(edge.stack.tollgate.metric("tollgate_log_entries_total").await < Some(20_000.0), "the rest is not read");
    held.rollback().await.expect("ended");
    let all = f64::from(u32::try_from(sent).expect("small"));
    let taken = async || edge.stack.tollgate.metric("tollgate_log_entries_total").await.filter(|taken| *taken >= all);
    wait_for("all of them to be taken", SOON * 2, taken).await.expect("taken");
    edge.metric("tollgate_intake_queued_events", 0.0).await;
    edge.metric("tollgate_due_tasks", 50.0).await;
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn a_submission_of_which_nothing_was_written_down_is_nobody_elses_by_elimination() {
    for killed in [true, false] {
        let mut edge = Edge::start().await;
        edge.replace_envoy(r#"string_match: {exact: "yes"}"#, r#"string_match: {exact: "never"}"#).await;
        // Bob's made no workflow, and nobody tells: he is the only candidate in the ledger.
        let empty = edge.post("/api/v1/workflows").bearer_auth(BOB.token).header("content-type", "text/plain").body("");
        assert_eq!(answer(empty).await.status, 422);
        let options = SqliteConnectOptions::new().filename(edge.dir.path().join("ledger.db"));
        let mut other: SqliteConnection = options.connect().await.expect("opened");
        let held = other.begin_with("BEGIN IMMEDIATE").await.expect("begun");
        let (_, tasks) = edge.submit(ALICE.token, 1).await;
        edge.says("goes through without a row").await;
        if killed {
            edge.stack.tollgate.kill_hard().await.expect("killed");
            held.rollback().await.expect("ended");
            edge.stack.tollgate.restart().await.expect("restarted");
            edge.stack.envoy.wait_for_tollgate(SOON).await.expect("healthy again");
        } else {
            held.rollback().await.expect("ended");
        }
        edge.stack.flowmesh.complete(&tasks[0], Outcome::done(1.0, 1.5));
        edge.metric("tollgate_held_workflows", 1.0).await;
        edge.metric("tollgate_charges_held", 1.0).await;
        let reason = if killed { "could not be written down" } else { "submissions of several were open" };
        edge.says(reason).await;
        assert!(edge.stack.runmesh.posts().is_empty(), "killed {killed}");
        edge.finish_unbilled().await;
    }
}
