//! `CheckRequest` → [`Inquiry`]: the border past which nothing sees protobuf. Pure.

use std::net::IpAddr;

use bytes::Bytes;
use jiff::Timestamp;

use crate::config::is_visible_ascii;
use crate::telemetry::traces::Parent;
use crate::wire::{self, AttributeContext, CheckRequest, HttpRequest, Metadata, Moment, OneAddress, Peer};

/// Key of Envoy's `context_extensions` by which a route fixes its supplier.
const SUPPLIER_EXTENSION: &str = "supplier";
/// Where the bootstrap puts the client's address, load balancers in front taken into account.
const SOURCE_NAMESPACE: &str = "tollgate";
const SOURCE_KEY: &str = "source";
/// What is logged of a request id: Envoy's own are UUIDs.
const LONGEST_REQUEST_ID: usize = 128;

/// What Check needs to know of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inquiry {
    pub method: String,
    /// Path and query, as FlowMesh will see them.
    pub target: String,
    /// Envoy's `x-request-id`, or its stream id where the header was not passed on.
    pub request_id: String,
    /// When the request began, by Envoy's clock: the same however often its Check is repeated.
    pub began: Option<Timestamp>,
    /// The address Envoy vouches for, without its port; never a header of the client's. The one in the metadata, else
    /// that of the connection.
    pub source: String,
    /// Values of every `authorization` header, as bytes.
    pub authorization: Vec<Bytes>,
    pub is_websocket: bool,
    /// The first bytes of the body, on the route that passes them.
    pub body: Bytes,
    /// Fixed by the route.
    pub supplier: Option<String>,
    /// The trace that the client says it is part of.
    pub trace: Option<Parent>,
}

/// Reads a request. One without HTTP attributes, which Envoy's filter never leaves out, has an empty path, which is in no
/// normal form. Nor is one that is not text.
#[must_use]
pub fn parse(request: CheckRequest) -> Inquiry {
    let AttributeContext { source, request, context_extensions, metadata_context } =
        request.attributes.unwrap_or_default();
    let wire::Request { time, http } = request.unwrap_or_default();
    let http = http.unwrap_or_default();
    let request_id = values(&http, "x-request-id")
        .last()
        .and_then(|id| wire::text(id))
        .filter(|id| id.len() <= LONGEST_REQUEST_ID && is_visible_ascii(id))
        .or_else(|| wire::text(&http.id))
        .unwrap_or_default()
        .to_owned();
    let is_websocket = values(&http, "upgrade")
        .any(|value| value.split(|&byte| byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(b"websocket")));
    Inquiry {
        request_id,
        began: time.and_then(Moment::time),
        source: metadata_context.as_ref().and_then(vouched).or_else(|| source.and_then(address)).unwrap_or_default(),
        authorization: values(&http, "authorization").cloned().collect(),
        trace: trace(&http),
        is_websocket,
        supplier: wire::value(&context_extensions, SUPPLIER_EXTENSION)
            .filter(|name| is_visible_ascii(name))
            .map(ToOwned::to_owned),
        body: if http.raw_body.is_empty() { http.body.clone() } else { http.raw_body.clone() },
        method: String::from_utf8_lossy(&http.method).into_owned(),
        target: String::from_utf8_lossy(&http.path).into_owned(),
    }
}

/// By most requests it is one look into their headers.
fn trace(http: &HttpRequest) -> Option<Parent> {
    let traceparent: Vec<&[u8]> = values(http, "traceparent").map(AsRef::as_ref).collect();
    if traceparent.is_empty() {
        return None;
    }
    let tracestate: Vec<&[u8]> = values(http, "tracestate").map(AsRef::as_ref).collect();
    Parent::parse(&traceparent, &tracestate)
}

/// Every value of a header. With `encode_raw_headers` they are in the header map, else in the plain one.
fn values<'a>(http: &'a HttpRequest, name: &'static str) -> impl Iterator<Item = &'a Bytes> {
    let headers = http.header_map.as_ref().map_or(&http.headers, |map| &map.headers);
    headers
        .iter()
        .filter(move |header| header.key.eq_ignore_ascii_case(name.as_bytes()))
        .map(|header| if header.raw_value.is_empty() { &header.value } else { &header.raw_value })
}

/// The client's address that the bootstrap's filters put into the metadata, which no client can set.
fn vouched(metadata: &Metadata) -> Option<String> {
    let text = metadata.namespace(SOURCE_NAMESPACE)?.text(SOURCE_KEY)?;
    Some(match text.parse::<IpAddr>().ok()? {
        // Has one spelling.
        IpAddr::V4(_) => text.to_owned(),
        address @ IpAddr::V6(_) => address.to_canonical().to_string(),
    })
}

/// The other end of the connection.
fn address(peer: Peer) -> Option<String> {
    match peer.address?.address? {
        OneAddress::Socket(socket) => wire::text(&socket.address).map(ToOwned::to_owned),
        OneAddress::Pipe(_) => Some("unix".to_owned()),
        OneAddress::EnvoyInternal(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::core::v3::{Address, Metadata, SocketAddress, address};
    use envoy_types::pb::envoy::service::auth::v3::{self, AttributeContext, attribute_context::Peer};
    use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
    use prost::Message;

    use jiff::Timestamp;

    use super::parse;
    use crate::wire::{self, CheckRequest, Moment, Request};

    /// The source of a request over a connection from 10.0.0.1.
    fn source(metadata: &[(&str, &str, Kind)]) -> String {
        let address = address::Address::SocketAddress(SocketAddress {
            address: "10.0.0.1".to_owned(),
            ..SocketAddress::default()
        });
        let peer = Peer { address: Some(Address { address: Some(address) }), ..Peer::default() };
        let mut filter_metadata: HashMap<String, Struct> = HashMap::new();
        for (namespace, key, kind) in metadata {
            let fields = &mut filter_metadata.entry((*namespace).to_owned()).or_default().fields;
            fields.insert((*key).to_owned(), Value { kind: Some(kind.clone()) });
        }
        let attributes = AttributeContext {
            source: Some(peer),
            metadata_context: Some(Metadata { filter_metadata, ..Metadata::default() }),
            ..AttributeContext::default()
        };
        let sent = v3::CheckRequest { attributes: Some(attributes) }.encode_to_vec();
        parse(CheckRequest::decode(sent.as_slice()).expect("a message")).source
    }

    #[test]
    fn when_a_request_began_is_envoys_word() {
        let request = |time| {
            let request = Request { time, http: None };
            let attributes = wire::AttributeContext { request: Some(request), ..wire::AttributeContext::default() };
            parse(CheckRequest { attributes: Some(attributes) }).began
        };
        let moment = |seconds| Moment { seconds, nanos: 1_000_000 };
        assert_eq!(request(Some(moment(7))), Timestamp::from_millisecond(7001).ok());
        assert_eq!((request(None), request(Some(moment(i64::MAX)))), (None, None));
    }

    fn text(value: &str) -> Kind {
        Kind::StringValue(value.to_owned())
    }

    #[test]
    fn the_source_is_the_address_in_the_metadata_when_there_is_one() {
        assert_eq!(source(&[("tollgate", "source", text("203.0.113.7"))]), "203.0.113.7");
        // One spelling each, or one client would have many budgets.
        assert_eq!(source(&[("tollgate", "source", text("2001:DB8:0:0::7"))]), "2001:db8::7");
        assert_eq!(source(&[("tollgate", "source", text("::ffff:203.0.113.7"))]), "203.0.113.7");
    }

    #[test]
    fn without_a_valid_address_in_the_metadata_the_source_is_the_peer() {
        assert_eq!(source(&[]), "10.0.0.1");
        for value in ["", "-", "203.0.113.7:80", "203.0.113", "example.com", "203.0.113.7, 203.0.113.8", " 203.0.113.7"]
        {
            assert_eq!(source(&[("tollgate", "source", text(value))]), "10.0.0.1", "{value:?}");
        }
        assert_eq!(source(&[("tollgate", "source", Kind::NumberValue(7.0))]), "10.0.0.1");
        assert_eq!(source(&[("tollgate", "address", text("203.0.113.7"))]), "10.0.0.1");
        assert_eq!(source(&[("other", "source", text("203.0.113.7"))]), "10.0.0.1");
        assert_eq!(parse(CheckRequest::default()).source, "");
    }
}
