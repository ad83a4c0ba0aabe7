use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::principal::Principal;
use crate::route::NotNormal;

fn allow() -> Allow {
    Allow {
        principal: Arc::new(Principal {
            id: "user-1".into(),
            email: Some("alice@example.com".into()),
            scopes: "tasks:read".into(),
        }),
        supplier: None,
        submission_id: None,
        task_id: None,
        record: false,
        query_keys: Vec::new(),
    }
}

fn stamp() -> Stamp {
    Stamp { org_id: "lumid".into(), forward_authorization: false }
}

fn ok_response(decision: &Decision, stamp: &Stamp) -> (OkHttpResponse, Vec<(String, String)>) {
    let response = render(decision, stamp);
    assert_eq!(response.status.map(|status| status.code), Some(0));
    let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!("not OK") };
    let set = ok
        .headers
        .iter()
        .map(|option| {
            assert_eq!(option.append_action(), HeaderAppendAction::OverwriteIfExistsOrAdd);
            let header = option.header.clone().expect("a header");
            (header.key, header.value)
        })
        .collect();
    (ok, set)
}

#[test]
fn a_principal_goes_upstream_as_headers_and_never_as_an_e_mail() {
    let (ok, set) = ok_response(&Decision::Allow(allow()), &stamp());
    let expected = [
        ("x-flowmesh-principal-id", "user-1"),
        ("x-flowmesh-external-id", "user-1"),
        ("x-flowmesh-org-id", "lumid"),
        ("x-flowmesh-principal-type", "user"),
        ("x-flowmesh-scopes", "tasks:read"),
    ];
    assert_eq!(set, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(ok.headers_to_remove, ["x-flowmesh-supplier-id", "authorization"]);
    assert!(ok.query_parameters_to_remove.is_empty());
    assert!(!format!("{:?}", render(&Decision::Allow(allow()), &stamp())).contains("alice@"));
}

#[test]
fn the_bearer_goes_on_only_when_asked_for() {
    let stamp = Stamp { forward_authorization: true, ..stamp() };
    let (ok, _) = ok_response(&Decision::Allow(allow()), &stamp);
    assert_eq!(ok.headers_to_remove, ["x-flowmesh-supplier-id"]);
}

#[test]
fn a_public_route_loses_every_identity_header_and_keeps_its_own_authorization() {
    let (ok, set) = ok_response(&Decision::Public, &stamp());
    assert!(set.is_empty());
    assert_eq!(ok.headers_to_remove, IDENTITY_HEADERS);
}

#[test]
fn the_log_entry_is_asked_for_with_the_ids_it_needs() {
    let allow = Allow { submission_id: Some("sub-1".into()), record: true, ..allow() };
    let response = render(&Decision::Allow(allow), &stamp());
    let fields = response.dynamic_metadata.expect("metadata").fields;
    let text = |key: &str| match fields.get(key).and_then(|value| value.kind.clone()) {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    };
    assert_eq!(text("record").as_deref(), Some("yes"));
    assert_eq!(text("submission_id").as_deref(), Some("sub-1"));
    assert_eq!(text("principal_id").as_deref(), Some("user-1"));
    assert_eq!(text("task_id"), None);
}

#[test]
fn every_refusal_is_the_agreed_answer() {
    let cases = [
        (Denial::Path(NotNormal::Path), 400, r#"{"detail":"Request path is not in normal form"}"#, None),
        (Denial::MissingBearer, 401, r#"{"detail":"Missing bearer token"}"#, Some(("www-authenticate", "Bearer"))),
        (
            Denial::InactiveToken,
            401,
            r#"{"detail":"No identity provider accepted the token"}"#,
            Some(("www-authenticate", "Bearer error=\"invalid_token\"")),
        ),
        (
            Denial::Balance("0.00".into()),
            402,
            r#"{"detail":"Insufficient balance ($0.00). Top up at https://lum.id/app/billing before submitting workflows."}"#,
            None,
        ),
        (
            Denial::TooManyUnknown { retry_after: 3 },
            429,
            r#"{"detail":"Too many unrecognised tokens"}"#,
            Some(("retry-after", "3")),
        ),
        (
            Denial::IdentityUnavailable { retry_after: 2 },
            503,
            r#"{"detail":"Identity provider unavailable"}"#,
            Some(("retry-after", "2")),
        ),
    ];
    for (denial, status, body, extra) in cases {
        let response = render(&Decision::Deny(denial.clone()), &stamp());
        assert_ne!(response.status.map(|status| status.code), Some(0), "{denial:?} would be an allow");
        let denied = match response.http_response {
            Some(HttpResponse::DeniedResponse(denied)) => denied,
            // An Envoy with `failure_mode_allow` would let it through.
            other => panic!("{denial:?}: {other:?}"),
        };
        assert_eq!(denied.status.map(|status| status.code), Some(status), "{denial:?}");
        assert_eq!(denied.body, body);
        let headers: Vec<_> = denied.headers.iter().filter_map(|option| option.header.as_ref()).collect();
        let header = |name: &str| headers.iter().find(|header| header.key == name).map(|header| header.value.as_str());
        assert_eq!(header("content-type"), Some("application/json"));
        if let Some((name, value)) = extra {
            assert_eq!(header(name), Some(value));
        }
    }
}

proptest! {
    #[test]
    fn every_identity_header_is_either_set_or_removed_and_never_both(scopes in "[a-z:* ]{0,20}",
            supplier in prop::option::of("[a-z]{0,8}"), forward: bool, public: bool) {
        let mut allow = allow();
        allow.principal = Arc::new(Principal { id: "u".into(), email: None, scopes });
        allow.supplier = supplier.map(Arc::from);
        let decision = if public { Decision::Public } else { Decision::Allow(allow) };
        let (ok, set) = ok_response(&decision, &Stamp { org_id: "o".into(), forward_authorization: forward });
        for name in IDENTITY_HEADERS {
            let is_set = set.iter().any(|(key, value)| key == name && !value.is_empty());
            prop_assert!(is_set != ok.headers_to_remove.iter().any(|key| key == name), "{}", name);
        }
    }
}
