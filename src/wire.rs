//! Of Envoy's messages, what Tollgate reads.
//!
//! These are messages of Envoy's API by their tags and types, and lack what nobody here looks at: that is skipped by its
//! length instead of being built, checked and thrown away. A Check is decoded and looked through in 0.7 µs that way, where
//! decoding all of it takes 1.0 µs; a log entry in 1.1 µs, where that takes 3.3 to 5.6 µs. Maps are lists of entries, which
//! is what they are on the wire; of several with one key the last one counts. Text is bytes of the message that came, not
//! copied and not yet known to be text: one value that is none then spoils nothing but itself, where it would else fail the
//! whole message, and with it its neighbours in the log.
//!
//! A test writes every field here and reads it with the whole schema's types, so that no tag can be another field's.

pub mod codec;

use bytes::Bytes;
use jiff::Timestamp;
use prost::{Message, Oneof};

/// Text, if it is.
#[must_use]
pub fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The value of a key in a map of strings.
#[must_use]
pub fn value<'a>(map: &'a [Header], key: &str) -> Option<&'a str> {
    map.iter().rev().find(|entry| entry.key == key).and_then(|entry| text(&entry.value))
}

impl Metadata {
    /// What a filter, or somebody in its name, has left.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Struct> {
        self.filter_metadata.iter().rev().find(|entry| entry.key == name)?.value.as_ref()
    }
}

impl Struct {
    /// A field that is text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        let value = self.fields.iter().rev().find(|field| field.key == key)?.value.as_ref()?;
        value.string_value.as_deref().and_then(text)
    }
}

/// `envoy.service.auth.v3.CheckRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<AttributeContext>,
}

/// `envoy.service.auth.v3.AttributeContext`.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeContext {
    #[prost(message, optional, tag = "1")]
    pub source: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    pub request: Option<Request>,
    #[prost(message, repeated, tag = "10")]
    pub context_extensions: Vec<Header>,
    #[prost(message, optional, tag = "11")]
    pub metadata_context: Option<Metadata>,
}

/// `envoy.service.auth.v3.AttributeContext.Peer`.
#[derive(Clone, PartialEq, Message)]
pub struct Peer {
    #[prost(message, optional, tag = "1")]
    pub address: Option<Address>,
}

/// `envoy.config.core.v3.Address`.
#[derive(Clone, PartialEq, Message)]
pub struct Address {
    #[prost(oneof = "OneAddress", tags = "1, 2, 3")]
    pub address: Option<OneAddress>,
}

/// The kinds of an [`Address`].
#[derive(Clone, PartialEq, Oneof)]
pub enum OneAddress {
    #[prost(message, tag = "1")]
    Socket(SocketAddress),
    #[prost(message, tag = "2")]
    Pipe(Anything),
    #[prost(message, tag = "3")]
    EnvoyInternal(Anything),
}

/// `envoy.config.core.v3.SocketAddress`.
#[derive(Clone, PartialEq, Message)]
pub struct SocketAddress {
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
}

/// `envoy.service.auth.v3.AttributeContext.Request`.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(message, optional, tag = "1")]
    pub time: Option<Moment>,
    #[prost(message, optional, tag = "2")]
    pub http: Option<HttpRequest>,
}

/// `envoy.service.auth.v3.AttributeContext.HttpRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct HttpRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub method: Bytes,
    /// Without `encode_raw_headers`.
    #[prost(message, repeated, tag = "3")]
    pub headers: Vec<Header>,
    #[prost(bytes = "bytes", tag = "4")]
    pub path: Bytes,
    #[prost(bytes = "bytes", tag = "11")]
    pub body: Bytes,
    #[prost(bytes = "bytes", tag = "12")]
    pub raw_body: Bytes,
    /// With `encode_raw_headers`.
    #[prost(message, optional, tag = "13")]
    pub header_map: Option<HeaderMap>,
}

/// `envoy.config.core.v3.HeaderMap`.
#[derive(Clone, PartialEq, Message)]
pub struct HeaderMap {
    #[prost(message, repeated, tag = "1")]
    pub headers: Vec<Header>,
}

/// `envoy.config.core.v3.HeaderValue`, and an entry of any map of strings, which has no `raw_value`.
#[derive(Clone, PartialEq, Message)]
pub struct Header {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub raw_value: Bytes,
}

/// `envoy.config.core.v3.Metadata`.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(message, repeated, tag = "1")]
    pub filter_metadata: Vec<Namespace>,
}

/// An entry of `filter_metadata`.
#[derive(Clone, PartialEq, Message)]
pub struct Namespace {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    #[prost(message, repeated, tag = "1")]
    pub fields: Vec<Field>,
}

/// An entry of a [`Struct`].
#[derive(Clone, PartialEq, Message)]
pub struct Field {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(message, optional, tag = "2")]
    pub value: Option<Value>,
}

/// `google.protobuf.Value`, as far as it is text.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub string_value: Option<Bytes>,
}

/// A message of which only its being there counts.
#[derive(Clone, PartialEq, Message)]
pub struct Anything {}

/// `envoy.service.accesslog.v3.StreamAccessLogsMessage`.
#[derive(Clone, PartialEq, Message)]
pub struct StreamAccessLogsMessage {
    #[prost(oneof = "LogEntries", tags = "2, 3")]
    pub log_entries: Option<LogEntries>,
}

/// The kinds of log entries.
#[derive(Clone, PartialEq, Oneof)]
pub enum LogEntries {
    #[prost(message, tag = "2")]
    Http(HttpLogs),
    #[prost(message, tag = "3")]
    Tcp(TcpLogs),
}

/// `envoy.service.accesslog.v3.StreamAccessLogsMessage.HTTPAccessLogEntries`.
#[derive(Clone, PartialEq, Message)]
pub struct HttpLogs {
    #[prost(message, repeated, tag = "1")]
    pub log_entry: Vec<HttpLogEntry>,
}

/// `envoy.service.accesslog.v3.StreamAccessLogsMessage.TCPAccessLogEntries`.
#[derive(Clone, PartialEq, Message)]
pub struct TcpLogs {
    #[prost(message, repeated, tag = "1")]
    pub log_entry: Vec<Anything>,
}

/// `envoy.data.accesslog.v3.HTTPAccessLogEntry`.
#[derive(Clone, PartialEq, Message)]
pub struct HttpLogEntry {
    #[prost(message, optional, tag = "1")]
    pub common_properties: Option<LogCommon>,
    #[prost(message, optional, tag = "3")]
    pub request: Option<LogRequest>,
    #[prost(message, optional, tag = "4")]
    pub response: Option<LogResponse>,
}

/// `envoy.data.accesslog.v3.AccessLogCommon`.
#[derive(Clone, PartialEq, Message)]
pub struct LogCommon {
    #[prost(message, optional, tag = "5")]
    pub start_time: Option<Moment>,
    #[prost(message, optional, tag = "17")]
    pub metadata: Option<Metadata>,
    #[prost(message, optional, tag = "23")]
    pub duration: Option<Moment>,
    /// Older Envoys mark intermediate entries by this alone.
    #[prost(bool, tag = "27")]
    pub intermediate_log_entry: bool,
    #[prost(uint64, tag = "31")]
    pub upstream_wire_bytes_sent: u64,
    #[prost(int32, tag = "33")]
    pub access_log_type: i32,
}

/// `google.protobuf.Timestamp` and `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Moment {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Moment {
    /// The time that it says, if it is one.
    #[must_use]
    pub fn time(self) -> Option<Timestamp> {
        Timestamp::new(self.seconds, self.nanos).ok()
    }
}

/// `envoy.data.accesslog.v3.HTTPRequestProperties`.
#[derive(Clone, PartialEq, Message)]
pub struct LogRequest {
    #[prost(int32, tag = "1")]
    pub request_method: i32,
    #[prost(bytes = "bytes", tag = "5")]
    pub path: Bytes,
}

/// `envoy.data.accesslog.v3.HTTPResponseProperties`.
#[derive(Clone, PartialEq, Message)]
pub struct LogResponse {
    #[prost(message, optional, tag = "1")]
    pub response_code: Option<UInt32Value>,
    #[prost(message, repeated, tag = "4")]
    pub response_headers: Vec<Header>,
    #[prost(message, repeated, tag = "5")]
    pub response_trailers: Vec<Header>,
    #[prost(bytes = "bytes", tag = "6")]
    pub response_code_details: Bytes,
}

/// `google.protobuf.UInt32Value`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct UInt32Value {
    #[prost(uint32, tag = "1")]
    pub value: u32,
}

#[cfg(test)]
mod tests;
