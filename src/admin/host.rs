//! The pages that show who was charged what, and take purges, are for who asks for this listener by its own name.
//!
//! A browser gives a web page whatever comes back from the page's own name, and its owner may have that name resolve to the
//! address of this listener meanwhile (DNS rebinding). Such a request has the stranger's name as its `Host`. Probes and
//! scrapes are left alone: `/healthz`, `/readyz` and `/metrics` name nobody.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Admin;

const REFUSED: &str = "This page is not shown under that name. Ask for it by an address or by localhost; a name of this \
                       listener's own goes into TOLLGATE_ADMIN_HOSTS.\n";

/// Refuses a request that is meant for another host.
pub async fn known(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let named = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    // Which of the two counts when they differ is not for us to know, so both must be right.
    let mut hosts = request.uri().authority().map(Authority::as_str).into_iter().chain(named);
    // None at all is what no browser sends.
    if hosts.all(|host| admin.hosts.knows(host)) {
        next.run(request).await
    } else {
        (StatusCode::MISDIRECTED_REQUEST, REFUSED).into_response()
    }
}
