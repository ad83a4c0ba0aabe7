//! `GET /`: the console, a page for people.
//!
//! Rendered here, as a whole, with no script, no form and nothing from elsewhere; it asks the browser to come again every ten
//! seconds, unless it was asked for with `?refresh=off`. It tells what `/metrics` and `tollgate ledger` tell, and neither e-mail
//! addresses nor secrets. Whatever is broken, the page comes: the ledger has a bounded time, and says so in its place.

mod chart;
mod page;
mod tables;
mod text;
mod verdict;
mod view;

use std::sync::{Arc, LazyLock};

use axum::extract::{Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Admin;
pub use view::Console;
use view::View;

const STYLE: &str = include_str!("console/style.css");

/// Nothing but this one style sheet, and an icon that is part of the page.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
});

#[derive(Debug, Default, Deserialize)]
pub struct Wish {
    refresh: Option<String>,
}

pub async fn console(State(admin): State<Arc<Admin>>, Query(wish): Query<Wish>) -> Response {
    let view = View::gather(&admin).await;
    let page = page::page(&view, wish.refresh.as_deref() != Some("off"));
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, page.into_string()).into_response()
}

#[cfg(test)]
mod tests;
