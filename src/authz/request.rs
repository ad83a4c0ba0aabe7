//! `CheckRequest` → [`Inquiry`]: the border past which nothing sees protobuf. Pure.

use envoy_types::pb::envoy::config::core::v3::address;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};

use crate::config::is_visible_ascii;

/// Key of Envoy's `context_extensions` by which a route fixes its supplier.
const SUPPLIER_EXTENSION: &str = "supplier";
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
    /// The address Envoy vouches for, without its port; never a header of the client's.
    pub source: String,
    /// Values of every `authorization` header, as bytes.
    pub authorization: Vec<Vec<u8>>,
    pub is_websocket: bool,
    /// The first bytes of the body, on the route that passes them.
    pub body: Vec<u8>,
    /// Fixed by the route.
    pub supplier: Option<String>,
}

/// Reads a request. One without HTTP attributes, which Envoy's filter never leaves out, has an empty path, which is in no
/// normal form.
#[must_use]
pub fn parse(request: CheckRequest) -> Inquiry {
    let AttributeContext { source, request, mut context_extensions, .. } = request.attributes.unwrap_or_default();
    let http = request.and_then(|request| request.http).unwrap_or_default();
    let request_id = values(&http, "x-request-id")
        .pop()
        .and_then(|id| String::from_utf8(id).ok())
        .filter(|id| id.len() <= LONGEST_REQUEST_ID && is_visible_ascii(id))
        .unwrap_or_else(|| http.id.clone());
    let is_websocket = values(&http, "upgrade")
        .iter()
        .any(|value| value.split(|&byte| byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(b"websocket")));
    Inquiry {
        request_id,
        source: source.map_or_else(String::new, address),
        authorization: values(&http, "authorization"),
        is_websocket,
        supplier: context_extensions.remove(SUPPLIER_EXTENSION).filter(|name| is_visible_ascii(name)),
        body: if http.raw_body.is_empty() { http.body.into_bytes() } else { http.raw_body },
        method: http.method,
        target: http.path,
    }
}

/// Every value of a header. With `encode_raw_headers` they are in the header map, else in the plain one.
fn values(http: &HttpRequest, name: &str) -> Vec<Vec<u8>> {
    match &http.header_map {
        Some(map) => {
            map.headers
                .iter()
                .filter(|header| header.key.eq_ignore_ascii_case(name))
                .map(|header| {
                    if header.raw_value.is_empty() {
                        header.value.clone().into_bytes()
                    } else {
                        header.raw_value.clone()
                    }
                })
                .collect()
        }
        None => http
            .headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone().into_bytes())
            .collect(),
    }
}

fn address(peer: Peer) -> String {
    match peer.address.and_then(|address| address.address) {
        Some(address::Address::SocketAddress(socket)) => socket.address,
        Some(address::Address::Pipe(_)) => "unix".to_owned(),
        _ => String::new(),
    }
}
