//! What is written with these messages is read with the whole schema's.

use envoy_types::pb::envoy::config::core::v3::{EnvoyInternalAddress, Pipe, RequestMethod, address};
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;
use envoy_types::pb::envoy::service::accesslog::v3 as als;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries as WholeEntries;
use envoy_types::pb::envoy::service::auth::v3 as auth;
use envoy_types::pb::google::protobuf::value::Kind;

use super::*;

/// Read by somebody else.
fn read_as<T: Message + Default>(message: &impl Message) -> T {
    T::decode(message.encode_to_vec().as_slice()).expect("a message")
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn header(key: &'static str, value: &'static str, raw_value: &'static str) -> Header {
    Header { key: bytes(key), value: bytes(value), raw_value: bytes(raw_value) }
}

fn metadata() -> Metadata {
    let value = Value { string_value: Some(bytes("text")) };
    let fields = vec![Field { key: bytes("key"), value: Some(value) }];
    Metadata { filter_metadata: vec![Namespace { key: bytes("name"), value: Some(Struct { fields }) }] }
}

fn check() -> CheckRequest {
    let address = OneAddress::Socket(SocketAddress { address: bytes("192.0.2.1") });
    let http = HttpRequest {
        id: bytes("id"),
        method: bytes("GET"),
        headers: vec![header("a", "b", "")],
        path: bytes("/path"),
        body: bytes("body"),
        raw_body: bytes("raw body"),
        header_map: Some(HeaderMap { headers: vec![header("c", "d", "e")] }),
    };
    let attributes = AttributeContext {
        source: Some(Peer { address: Some(Address { address: Some(address) }) }),
        request: Some(Request { time: Some(Moment { seconds: 3, nanos: 4 }), http: Some(http) }),
        context_extensions: vec![header("supplier", "acme", "")],
        metadata_context: Some(metadata()),
    };
    CheckRequest { attributes: Some(attributes) }
}

#[test]
fn a_check_is_what_envoy_calls_it() {
    let attributes = read_as::<auth::CheckRequest>(&check()).attributes.expect("attributes");
    let source = attributes.source.and_then(|peer| peer.address?.address).expect("a source");
    assert!(matches!(source, address::Address::SocketAddress(socket) if socket.address == "192.0.2.1"));
    assert_eq!(attributes.context_extensions["supplier"], "acme");
    let field = &attributes.metadata_context.expect("metadata").filter_metadata["name"].fields["key"];
    assert_eq!(field.kind, Some(Kind::StringValue("text".into())));
    let request = attributes.request.expect("a request");
    assert_eq!(request.time.map(|time| (time.seconds, time.nanos)), Some((3, 4)));
    let http = request.http.expect("HTTP");
    assert_eq!((http.id.as_str(), http.method.as_str(), http.path.as_str()), ("id", "GET", "/path"));
    assert_eq!((http.body.as_str(), http.raw_body.as_slice()), ("body", b"raw body".as_slice()));
    assert_eq!(http.headers["a"], "b");
    let raw = &http.header_map.expect("a map").headers[0];
    assert_eq!((raw.key.as_str(), raw.value.as_str(), raw.raw_value.as_slice()), ("c", "d", b"e".as_slice()));
}

#[test]
fn every_kind_of_address_is_what_envoy_calls_it() {
    for (ours, theirs) in [
        (OneAddress::Pipe(Anything {}), address::Address::Pipe(Pipe::default())),
        (
            OneAddress::EnvoyInternal(Anything {}),
            address::Address::EnvoyInternalAddress(EnvoyInternalAddress::default()),
        ),
    ] {
        let read: envoy_types::pb::envoy::config::core::v3::Address = read_as(&Address { address: Some(ours) });
        assert_eq!(read.address, Some(theirs));
    }
}

fn entry() -> HttpLogEntry {
    HttpLogEntry {
        common_properties: Some(LogCommon {
            start_time: Some(Moment { seconds: 1, nanos: 2 }),
            metadata: Some(metadata()),
            duration: Some(Moment { seconds: 3, nanos: 4 }),
            intermediate_log_entry: true,
            upstream_wire_bytes_sent: 5,
            access_log_type: AccessLogType::DownstreamEnd.into(),
        }),
        request: Some(LogRequest { request_method: RequestMethod::Post.into(), path: bytes("/path") }),
        response: Some(LogResponse {
            response_code: Some(UInt32Value { value: 201 }),
            response_headers: vec![header("a", "b", "")],
            response_trailers: vec![header("c", "d", "")],
            response_code_details: bytes("via_upstream"),
        }),
    }
}

#[test]
fn a_log_entry_is_what_envoy_calls_it() {
    let logs = HttpLogs { log_entry: vec![entry()] };
    let message = StreamAccessLogsMessage { log_entries: Some(LogEntries::Http(logs)) };
    let read = read_as::<als::StreamAccessLogsMessage>(&message).log_entries;
    let Some(WholeEntries::HttpLogs(logs)) = read else { panic!("{read:?}") };
    let common = logs.log_entry[0].common_properties.as_ref().expect("common properties");
    let (start, duration) = (common.start_time.as_ref().expect("a start"), common.duration.expect("a duration"));
    assert_eq!((start.seconds, start.nanos, duration.seconds, duration.nanos), (1, 2, 3, 4));
    #[expect(deprecated, reason = "older Envoys mark intermediate entries by this alone")]
    let intermediate = common.intermediate_log_entry;
    assert!(intermediate);
    assert_eq!((common.upstream_wire_bytes_sent, common.access_log_type()), (5, AccessLogType::DownstreamEnd));
    assert!(common.metadata.as_ref().expect("metadata").filter_metadata.contains_key("name"));
    let request = logs.log_entry[0].request.as_ref().expect("a request");
    assert_eq!((request.request_method(), request.path.as_str()), (RequestMethod::Post, "/path"));
    let response = logs.log_entry[0].response.as_ref().expect("a response");
    assert_eq!(response.response_code.map(|code| code.value), Some(201));
    assert_eq!((&response.response_headers["a"], &response.response_trailers["c"]), (&"b".into(), &"d".into()));
    assert_eq!(response.response_code_details, "via_upstream");

    let logs = TcpLogs { log_entry: vec![Anything {}, Anything {}] };
    let message = StreamAccessLogsMessage { log_entries: Some(LogEntries::Tcp(logs)) };
    let read = read_as::<als::StreamAccessLogsMessage>(&message).log_entries;
    assert!(matches!(read, Some(WholeEntries::TcpLogs(logs)) if logs.log_entry.len() == 2));
}

#[test]
fn what_is_not_text_spoils_nothing_but_itself() {
    let mut spoilt = entry();
    if let Some(response) = &mut spoilt.response {
        response.response_headers =
            vec![Header { value: Bytes::from_static(b"\xff"), ..header("a", "", "") }, header("b", "c", "")];
    }
    let logs = HttpLogs { log_entry: vec![spoilt, entry()] };
    let read: HttpLogs = read_as(&logs);
    let headers = &read.log_entry[0].response.as_ref().expect("a response").response_headers;
    assert_eq!((value(headers, "a"), value(headers, "b")), (None, Some("c")));
    assert_eq!(read.log_entry[1], entry());
}

#[test]
fn of_several_values_of_a_key_the_last_one_counts() {
    let map = [header("a", "1", ""), header("b", "2", ""), header("a", "3", "")];
    assert_eq!((value(&map, "a"), value(&map, "b"), value(&map, "c")), (Some("3"), Some("2"), None));
}
