//! `GET /readyz`: each part by name, so that "not ready" says which.
//!
//! Only what keeps Tollgate from doing its work makes it unready: the ledger, and a stop. What is wrong with the systems
//! on the other side is told and changes nothing: another start would not mend it, and Check is answered all the same.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::json;

use super::Admin;
use super::gauges::age;

pub async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let draining = admin.stopping.drain.is_cancelled();
    let (ledger, age) = match admin.backlog().await {
        None => (Ok("off".to_owned()), None),
        Some(Ok(backlog)) => (Ok("ok".to_owned()), Some(age(backlog.oldest_pending, Timestamp::now()))),
        Some(Err(reason)) => (Err(reason), None),
    };
    let circuit = |paused: &Gauge| match (&admin.ledger, paused.get()) {
        (None, _) => "off",
        (Some(_), 0) => "ok",
        (Some(_), _) => "paused",
    };
    let ready = !draining && ledger.is_ok();
    let parts = json!({
        "ready": ready,
        "parts": {
            "listeners": if draining { "draining" } else { "ok" },
            "ledger": ledger.unwrap_or_else(|error| error),
            "lum.id": admin.identity.heard().to_string(),
            "posting": circuit(&admin.metrics.posting_paused),
            "asking": circuit(&admin.metrics.asking_paused),
        },
        // Of the oldest charge that is to be posted; 0 without one, null when that cannot be told.
        "backlog_age_seconds": age,
    });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(parts)).into_response()
}
