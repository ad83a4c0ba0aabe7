//! [`Decision`] → `CheckResponse`: the border on the way out. Pure.
//!
//! Every identity header is either set or removed on every request, never left as it came. Envoy applies removals after
//! sets, so a name goes in one list or the other, never both.

use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use envoy_types::pb::google::rpc;
use prost::Message;
use tonic::Code;

use super::decision::{Allow, Decision, Denial};
use super::metadata;
use crate::principal::Principal;

const PRINCIPAL_ID: &str = "x-flowmesh-principal-id";
const EXTERNAL_ID: &str = "x-flowmesh-external-id";
const ORG_ID: &str = "x-flowmesh-org-id";
const PRINCIPAL_TYPE: &str = "x-flowmesh-principal-type";
const SCOPES: &str = "x-flowmesh-scopes";
const SUPPLIER_ID: &str = "x-flowmesh-supplier-id";
/// Every header that FlowMesh may take for identity.
pub(super) const IDENTITY_HEADERS: [&str; 6] = [PRINCIPAL_ID, EXTERNAL_ID, ORG_ID, PRINCIPAL_TYPE, SCOPES, SUPPLIER_ID];
const AUTHORIZATION: &str = "authorization";

/// What of the configuration shows in an answer, and what of answers is always the same.
#[derive(Debug, Clone)]
pub struct Stamp {
    org_id: String,
    forward_authorization: bool,
    public: Bytes,
    without_supplier: Bytes,
    recorded: Bytes,
}

impl Stamp {
    /// `forward_authorization`: whether the caller's bearer goes on to FlowMesh.
    #[must_use]
    pub fn new(org_id: String, forward_authorization: bool) -> Self {
        let ok = OkHttpResponse { headers_to_remove: owned(&IDENTITY_HEADERS), ..OkHttpResponse::default() };
        // Envoy lets a request through on code OK alone.
        let public = CheckResponse { status: Some(status(Code::Ok)), ..part(ok, &[]) };
        let recorded = part(OkHttpResponse::default(), &[(metadata::RECORD, Some(metadata::RECORD_YES))]);
        Self {
            org_id,
            forward_authorization,
            public: encoded(&public),
            without_supplier: encoded(&of_supplier(None)),
            recorded: encoded(&recorded),
        }
    }
}

/// An encoded `CheckResponse`, in parts that follow each other: encoded messages one after the other are one message that
/// has the fields of all of them, by the rules of Protocol Buffers. So what does not change is encoded once, and
/// an answer from memory is put together in 0.03 µs, and without an allocation.
#[derive(Debug, Clone)]
pub struct Answer([Bytes; 3]);

impl Answer {
    fn whole(message: &CheckResponse) -> Self {
        Self([encoded(message), Bytes::new(), Bytes::new()])
    }

    /// The parts, in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.0
    }
}

/// Renders a decision.
#[must_use]
pub fn render(decision: &Decision, stamp: &Stamp) -> Answer {
    match decision {
        Decision::Public => Answer([stamp.public.clone(), Bytes::new(), Bytes::new()]),
        Decision::Allow(allow) => Answer([
            allow.caller.answer(|principal| encoded(&of_caller(principal, stamp))),
            match allow.supplier.as_deref() {
                None | Some("") => stamp.without_supplier.clone(),
                supplier => encoded(&of_supplier(supplier)),
            },
            of_request(allow, stamp),
        ]),
        Decision::Deny(denial) => Answer::whole(&denied(denial)),
    }
}

/// What is said of somebody, whatever they ask for.
fn of_caller(principal: &Principal, stamp: &Stamp) -> CheckResponse {
    let values = [
        (PRINCIPAL_ID, principal.id.as_str()),
        (EXTERNAL_ID, &principal.id),
        (ORG_ID, &stamp.org_id),
        (PRINCIPAL_TYPE, "user"),
        (SCOPES, &principal.scopes),
    ];
    let (set, absent): (Vec<_>, Vec<_>) = values.into_iter().partition(|(_, value)| !value.is_empty());
    let mut headers_to_remove: Vec<String> = absent.into_iter().map(|(name, _)| name.to_owned()).collect();
    if !stamp.forward_authorization {
        headers_to_remove.push(AUTHORIZATION.to_owned());
    }
    let headers = set.into_iter().map(|(name, value)| header(name, value)).collect();
    let fields = [(metadata::PRINCIPAL_ID, Some(principal.id.as_str())), (metadata::ORG_ID, Some(&stamp.org_id))];
    let ok = OkHttpResponse { headers, headers_to_remove, ..OkHttpResponse::default() };
    CheckResponse { status: Some(status(Code::Ok)), ..part(ok, &fields) }
}

fn of_supplier(supplier: Option<&str>) -> CheckResponse {
    let mut ok = OkHttpResponse::default();
    match supplier {
        Some(supplier) => ok.headers.push(header(SUPPLIER_ID, supplier)),
        None => ok.headers_to_remove.push(SUPPLIER_ID.to_owned()),
    }
    part(ok, &[(metadata::SUPPLIER_ID, supplier)])
}

/// What is left to say. By most requests that is nothing, or that the log entry is wanted.
fn of_request(allow: &Allow, stamp: &Stamp) -> Bytes {
    let Allow { submission_id, task_id, record, query_keys, .. } = allow;
    if submission_id.is_none() && task_id.is_none() && query_keys.is_empty() {
        return if *record { stamp.recorded.clone() } else { Bytes::new() };
    }
    let fields = [
        (metadata::SUBMISSION_ID, submission_id.as_deref()),
        (metadata::TASK_ID, task_id.as_deref()),
        (metadata::RECORD, record.then_some(metadata::RECORD_YES)),
    ];
    // Returning this at all makes Envoy rewrite the whole query, so it stays empty where there was no token.
    let ok = OkHttpResponse { query_parameters_to_remove: query_keys.clone(), ..OkHttpResponse::default() };
    encoded(&part(ok, &fields))
}

/// A part of an OK: headers, and fields of the metadata that have a value.
fn part(ok: OkHttpResponse, fields: &[(&str, Option<&str>)]) -> CheckResponse {
    let fields: HashMap<_, _> = fields
        .iter()
        .filter_map(|(key, value)| Some(((*key).to_owned(), Value { kind: Some(Kind::StringValue((*value)?.into())) })))
        .collect();
    let dynamic_metadata = (!fields.is_empty()).then_some(Struct { fields });
    CheckResponse { status: None, dynamic_metadata, http_response: Some(HttpResponse::OkResponse(ok)) }
}

fn encoded(message: &CheckResponse) -> Bytes {
    message.encode_to_vec().into()
}

fn denied(denial: &Denial) -> CheckResponse {
    let mut headers = vec![header("content-type", "application/json")];
    match denial {
        Denial::MissingBearer => headers.push(header("www-authenticate", "Bearer")),
        Denial::InactiveToken => headers.push(header("www-authenticate", "Bearer error=\"invalid_token\"")),
        Denial::TooManyUnknown { retry_after } | Denial::IdentityUnavailable { retry_after } => {
            headers.push(header("retry-after", &retry_after.to_string()));
        }
        Denial::Path(_) | Denial::Balance(_) => {}
    }
    let response = DeniedHttpResponse {
        status: Some(HttpStatus { code: i32::from(denial.status()) }),
        headers,
        body: serde_json::json!({ "detail": denial.detail() }).to_string(),
    };
    let code = match denial {
        Denial::IdentityUnavailable { .. } => Code::Unavailable,
        Denial::TooManyUnknown { .. } => Code::ResourceExhausted,
        Denial::MissingBearer | Denial::InactiveToken => Code::Unauthenticated,
        Denial::Path(_) | Denial::Balance(_) => Code::PermissionDenied,
    };
    // Never an `error_response`, not even for lum.id's trouble: an Envoy with `failure_mode_allow` lets those through.
    let http_response = Some(HttpResponse::DeniedResponse(response));
    CheckResponse { status: Some(status(code)), dynamic_metadata: None, http_response }
}

fn status(code: Code) -> rpc::Status {
    rpc::Status { code: code.into(), ..rpc::Status::default() }
}

fn header(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[cfg(test)]
mod tests;
