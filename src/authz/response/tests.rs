use std::sync::Arc;

use proptest::prelude::*;

use super::{
    Allow, CheckResponse, Decision, Denial, HeaderAppendAction, HttpResponse, IDENTITY_HEADERS, Kind, Message,
    OkHttpResponse, Principal, Stamp,
};
use crate::identity::Caller;
use crate::route::NotNormal;

fn caller(id: &str, scopes: &str) -> Arc<Caller> {
    let email = Some("alice@example.com".into());
    Arc::new(Caller::new(Arc::new(Principal { id: id.into(), email, scopes: scopes.into() })))
}

fn allow() -> Allow {
    Allow {
        caller: caller("user-1", "tasks:read"),
        supplier: None,
        submission_id: None,
        task_id: None,
        record: false,
        query_keys: Vec::new(),
    }
}

fn stamp() -> Stamp {
    Stamp::new("lumid".into(), false)
}

/// As Envoy reads it.
fn render(decision: &Decision, stamp: &Stamp) -> CheckResponse {
    CheckResponse::decode(super::render(decision, stamp).parts().concat().as_slice()).expect("a message")
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
    assert_eq!(ok.headers_to_remove, ["authorization", "x-flowmesh-supplier-id"]);
    assert!(ok.query_parameters_to_remove.is_empty());
    assert!(!format!("{:?}", render(&Decision::Allow(allow()), &stamp())).contains("alice@"));
}

#[test]
fn the_bearer_goes_on_only_when_asked_for() {
    let stamp = Stamp::new("lumid".into(), true);
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

#[test]
fn the_parts_of_an_answer_are_one_message_with_all_of_it() {
    let allow = Allow {
        supplier: Some("acme".into()),
        submission_id: Some("sub-1".into()),
        task_id: Some("tsk-1".into()),
        record: true,
        query_keys: vec!["%74oken".into()],
        ..allow()
    };
    // The second answer has what the first one left ready.
    for _ in 0..2 {
        let decision = Decision::Allow(allow.clone());
        let (ok, set) = ok_response(&decision, &stamp());
        assert!(set.contains(&("x-flowmesh-supplier-id".to_owned(), "acme".to_owned())), "{set:?}");
        assert!(set.contains(&("x-flowmesh-principal-id".to_owned(), "user-1".to_owned())), "{set:?}");
        assert_eq!(ok.headers_to_remove, ["authorization"]);
        assert_eq!(ok.query_parameters_to_remove, ["%74oken"]);
        let fields = render(&decision, &stamp()).dynamic_metadata.expect("metadata").fields;
        let mut names: Vec<_> = fields.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["org_id", "principal_id", "record", "submission_id", "supplier_id", "task_id"]);
    }
}

proptest! {
    #[test]
    fn every_identity_header_is_either_set_or_removed_and_never_both(scopes in "[a-z:* ]{0,20}",
            supplier in prop::option::of("[a-z]{0,8}"), forward: bool, public: bool) {
        let mut allow = allow();
        allow.caller = caller("u", &scopes);
        allow.supplier = supplier.map(Arc::from);
        let decision = if public { Decision::Public } else { Decision::Allow(allow) };
        let (ok, set) = ok_response(&decision, &Stamp::new("o".into(), forward));
        for name in IDENTITY_HEADERS {
            let is_set = set.iter().any(|(key, value)| key == name && !value.is_empty());
            prop_assert!(is_set != ok.headers_to_remove.iter().any(|key| key == name), "{}", name);
        }
    }
}
