//! `POST /cache/purge`: makes a revocation at lum.id immediate.
//!
//! It lets nobody in, but whoever repeats it all day makes every request wait for lum.id. So it is for this machine only,
//! wherever the listener can be reached from, and not for web pages in a browser on it. This machine is loopback, or, where
//! the listener is on one address of a network, that address itself: nobody else can connect from there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Admin;
use crate::identity::Purge;

/// What may be asked for.
const USAGE: &str =
    r#"send application/json, one of {"token_sha256": "<64 hex digits>"}, {"principal_id": "<sub>"}, {"all": true}"#;

/// Forgets what lum.id said, so that the next request asks again.
pub async fn purge(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !is_this_machine(peer.ip(), admin.address.ip()) {
        return refused(StatusCode::FORBIDDEN, "purge from the machine that Tollgate runs on");
    }
    // A browser says whose page it is that sends this; nothing else has an origin.
    if headers.contains_key(header::ORIGIN) {
        return refused(StatusCode::FORBIDDEN, "this is not for web pages");
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, USAGE);
    }
    let Some(what) = Purge::parse(&body) else { return refused(StatusCode::BAD_REQUEST, USAGE) };
    let purged = admin.identity.purge(&what);
    tracing::info!(purged, "cache purge of {what}: {purged} forgotten");
    if let Some(replica) = &admin.replica
        && let Err(error) = replica.announce(&what).await
    {
        tracing::error!(%error, "the other replicas could not be told of a cache purge: {error}");
        let why = format!(
            "{purged} forgotten here, but the other replicas could not be told ({error}): repeat it, or ask each"
        );
        return refused(StatusCode::SERVICE_UNAVAILABLE, &why);
    }
    Json(json!({ "purged": purged })).into_response()
}

fn is_this_machine(peer: IpAddr, listener: IpAddr) -> bool {
    let peer = peer.to_canonical();
    peer.is_loopback() || peer == listener.to_canonical()
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "detail": why }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_the_listeners_own_address_are_this_machine() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("valid");
        for (peer, listener, expected) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "0.0.0.0", true),
            ("::ffff:127.0.0.1", "::", true),
            ("::1", "::", true),
            ("10.0.0.5", "10.0.0.5", true),
            ("::ffff:10.0.0.5", "10.0.0.5", true),
            ("10.0.0.6", "10.0.0.5", false),
            ("10.0.0.5", "0.0.0.0", false),
            ("2001:db8::1", "::", false),
        ] {
            assert_eq!(is_this_machine(ip(peer), ip(listener)), expected, "{peer} at {listener}");
        }
    }
}
