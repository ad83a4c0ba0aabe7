//! What a request to Runmesh must look like, to the letter.

use axum::http::{Method, request::Parts};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    super::{decimal, media_type},
    Entry,
};

/// Whether a value is what its key promises.
type Holds = fn(&Value) -> bool;

pub(super) fn knows_secret(parts: &Parts, secret: &str) -> bool {
    let mut values = parts.headers.get_all("x-bridge-secret").iter();
    values.next().is_some_and(|value| value == secret) && values.next().is_none()
}

/// What is wrong with a request before its body is looked at.
pub(super) fn envelope_violations(parts: &Parts) -> Vec<String> {
    let mut violations = Vec::new();
    if parts.method != Method::POST {
        violations.push(format!("method {}", parts.method));
    }
    if parts.uri.query().is_some() {
        violations.push("a query string".to_owned());
    }
    let media_type = media_type(&parts.headers);
    if media_type != "application/json" {
        violations.push(format!("content type {media_type:?}"));
    }
    violations
}

pub(super) fn check_violations(body: &Value) -> Vec<String> {
    violations_of(body, &[("userEmail", is_filled), ("requiredAmount", is_amount)])
}

pub(super) fn entry_violations(body: &Value) -> Vec<String> {
    violations_of(
        body,
        &[
            ("userEmail", is_filled),
            ("userSub", is_filled),
            ("taskId", is_filled),
            ("workflowId", |value| value.is_null() || is_filled(value)),
            ("cost", is_amount),
            ("durationSec", |value| value.as_i64().is_some_and(|s| s >= 0)),
            ("costPerHour", Value::is_number),
            ("taskStatus", |value| matches!(value.as_str(), Some("DONE" | "FAILED" | "CANCELLED"))),
        ],
    )
}

/// Compares the keys of an object with those it must have, no more and no fewer, and their values.
fn violations_of(body: &Value, keys: &[(&str, Holds)]) -> Vec<String> {
    let Some(object) = body.as_object() else {
        return vec![format!("not a JSON object: {body}")];
    };
    let unknown =
        object.keys().filter(|key| keys.iter().all(|(known, _)| known != key)).map(|key| format!("unknown key {key}"));
    let wrong = keys.iter().filter_map(|(key, holds)| match object.get(*key) {
        None => Some(format!("missing key {key}")),
        Some(value) if !holds(value) => Some(format!("{key} is {value}")),
        Some(_) => None,
    });
    unknown.chain(wrong).collect()
}

fn is_filled(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

fn is_amount(value: &Value) -> bool {
    value.as_str().is_some_and(decimal::is_plain)
}

pub(super) fn parse_entry(body: &Value) -> Option<Entry> {
    let text = |key: &str| body[key].as_str().map(ToOwned::to_owned);
    Some(Entry {
        user_email: text("userEmail")?,
        user_sub: text("userSub")?,
        task_id: text("taskId")?,
        workflow_id: text("workflowId"),
        cost: text("cost")?,
        duration_sec: body["durationSec"].as_i64()?,
        cost_per_hour: body["costPerHour"].as_number()?.clone(),
        task_status: text("taskStatus")?,
        raw: body.clone(),
        received_at: Timestamp::now(),
    })
}
