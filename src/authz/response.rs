//! [`Decision`] → `CheckResponse`: the border on the way out. Pure.
//!
//! Every identity header is either set or removed on every request, never left as it came. Envoy applies removals after
//! sets, so a name goes in one list or the other, never both.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use envoy_types::pb::google::rpc;
use tonic::Code;

use super::decision::{Allow, Decision, Denial};
use super::metadata;

const PRINCIPAL_ID: &str = "x-flowmesh-principal-id";
const EXTERNAL_ID: &str = "x-flowmesh-external-id";
const ORG_ID: &str = "x-flowmesh-org-id";
const PRINCIPAL_TYPE: &str = "x-flowmesh-principal-type";
const SCOPES: &str = "x-flowmesh-scopes";
const SUPPLIER_ID: &str = "x-flowmesh-supplier-id";
/// Every header that FlowMesh may take for identity.
pub(super) const IDENTITY_HEADERS: [&str; 6] = [PRINCIPAL_ID, EXTERNAL_ID, ORG_ID, PRINCIPAL_TYPE, SCOPES, SUPPLIER_ID];
const AUTHORIZATION: &str = "authorization";

/// What of the configuration shows in an answer.
#[derive(Debug, Clone)]
pub struct Stamp {
    pub org_id: String,
    /// Whether the caller's bearer goes on to FlowMesh.
    pub forward_authorization: bool,
}

/// Renders a decision.
#[must_use]
pub fn render(decision: &Decision, stamp: &Stamp) -> CheckResponse {
    match decision {
        Decision::Public => {
            ok(OkHttpResponse { headers_to_remove: owned(&IDENTITY_HEADERS), ..OkHttpResponse::default() }, None)
        }
        Decision::Allow(allow) => allowed(allow, stamp),
        Decision::Deny(denial) => denied(denial),
    }
}

fn allowed(allow: &Allow, stamp: &Stamp) -> CheckResponse {
    let principal = &allow.principal;
    let values = [
        (PRINCIPAL_ID, principal.id.as_str()),
        (EXTERNAL_ID, &principal.id),
        (ORG_ID, &stamp.org_id),
        (PRINCIPAL_TYPE, "user"),
        (SCOPES, &principal.scopes),
        (SUPPLIER_ID, allow.supplier.as_deref().unwrap_or_default()),
    ];
    let (set, absent): (Vec<_>, Vec<_>) = values.into_iter().partition(|(_, value)| !value.is_empty());
    let mut headers_to_remove: Vec<String> = absent.into_iter().map(|(name, _)| name.to_owned()).collect();
    if !stamp.forward_authorization {
        headers_to_remove.push(AUTHORIZATION.to_owned());
    }
    let fields = [
        (metadata::PRINCIPAL_ID, Some(principal.id.as_str())),
        (metadata::ORG_ID, Some(stamp.org_id.as_str())),
        (metadata::SUPPLIER_ID, allow.supplier.as_deref()),
        (metadata::SUBMISSION_ID, allow.submission_id.as_deref()),
        (metadata::TASK_ID, allow.task_id.as_deref()),
        (metadata::RECORD, allow.record.then_some(metadata::RECORD_YES)),
    ];
    let fields = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), Value { kind: Some(Kind::StringValue(value?.to_owned())) })))
        .collect();
    let response = OkHttpResponse {
        headers: set.into_iter().map(|(name, value)| header(name, value)).collect(),
        headers_to_remove,
        // Returning this at all makes Envoy rewrite the whole query, so it stays empty where there was no token.
        query_parameters_to_remove: allow.query_keys.clone(),
        ..OkHttpResponse::default()
    };
    ok(response, Some(Struct { fields }))
}

fn ok(response: OkHttpResponse, dynamic_metadata: Option<Struct>) -> CheckResponse {
    // Envoy lets a request through on code OK alone.
    CheckResponse {
        status: Some(status(Code::Ok)),
        dynamic_metadata,
        http_response: Some(HttpResponse::OkResponse(response)),
    }
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
