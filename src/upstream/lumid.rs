//! lum.id: `POST /oauth/introspect` (RFC 7662 with extras, no client authentication).

use reqwest::StatusCode;
use serde::Deserialize;

use super::times::Call;
use super::{CallError, Http, parse_object, read_bounded};
use crate::config::{BaseUrl, is_visible_ascii};
use crate::principal::{Principal, flowmesh_scopes};

/// An introspection answer has a handful of short fields; a scope list of this length would be absurd already.
const ANSWER_LIMIT: usize = 64 * 1024;

/// What lum.id says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introspection {
    /// The token is good until `expires_at` (epoch seconds), if it ends at all.
    Active { principal: Principal, expires_at: Option<i64> },
    /// Unknown, expired or revoked.
    Inactive,
}

/// The client.
#[derive(Debug, Clone)]
pub struct LumId {
    url: String,
    time: Call,
    http: Http,
}

impl LumId {
    /// `http` carries the time limit.
    #[must_use]
    pub fn new(http: Http, base_url: &BaseUrl) -> Self {
        Self { url: base_url.join("/oauth/introspect"), time: http.times.of("lum.id", "introspect"), http }
    }

    /// Asks whose token this is.
    ///
    /// # Errors
    /// [`CallError`] when lum.id did not give the agreed answer; nothing is then known of the token.
    pub async fn introspect(&self, token: &str) -> Result<Introspection, CallError> {
        let _measured = self.time.begin();
        let response = self.http.send(|client| client.post(&self.url).form(&[("token", token)])).await?;
        if response.status() != StatusCode::OK {
            return Err(CallError::of_status(&response));
        }
        parse(&read_bounded(response, ANSWER_LIMIT).await?)
    }
}

#[derive(Deserialize)]
struct Answer {
    active: bool,
    sub: Option<String>,
    email: Option<String>,
    scopes: Option<Vec<String>>,
    scope: Option<String>,
    exp: Option<i64>,
}

fn parse(body: &[u8]) -> Result<Introspection, CallError> {
    let answer: Answer = parse_object(body)?;
    if !answer.active {
        return Ok(Introspection::Inactive);
    }
    let id = answer.sub.unwrap_or_default();
    if id.is_empty() {
        return Err(CallError::Malformed("active without sub".to_owned()));
    }
    if id.len() > 256 || !is_visible_ascii(&id) {
        return Err(CallError::Malformed("sub cannot be sent in a header".to_owned()));
    }
    let scopes = match &answer.scopes {
        Some(list) => flowmesh_scopes(list.iter().map(String::as_str)),
        None => flowmesh_scopes(answer.scope.as_deref().unwrap_or_default().split_ascii_whitespace()),
    };
    Ok(Introspection::Active {
        principal: Principal { id, email: answer.email.filter(|email| !email.trim().is_empty()), scopes },
        expires_at: answer.exp.filter(|&exp| exp != 0),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use wiremock::matchers::{body_string, header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    async fn answering(response: ResponseTemplate) -> (MockServer, LumId) {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .and(path("/oauth/introspect"))
            .and(header("content-type", "application/x-www-form-urlencoded"))
            .and(body_string("token=a%2Bb%26c"))
            .respond_with(response)
            .mount(&server)
            .await;
        let base = BaseUrl::of_test(&server.uri());
        let http = Http::new(&base, Duration::from_secs(1)).expect("client");
        (server, LumId::new(http, &base))
    }

    async fn introspect(response: ResponseTemplate) -> Result<Introspection, CallError> {
        let (_server, lum_id) = answering(response).await;
        lum_id.introspect("a+b&c").await
    }

    fn json(value: serde_json::Value) -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_json(value)
    }

    #[tokio::test]
    async fn the_token_is_form_encoded_and_an_active_answer_names_its_owner() {
        let answer = serde_json::json!({"active": true, "sub": "user-1", "email": "a@example.com", "scopes":
            ["flowmesh:tasks:read", "qa:x"], "scope": "ignored", "exp": 1_900_000_000, "source": "native"});
        let expected = Introspection::Active {
            principal: Principal {
                id: "user-1".into(),
                email: Some("a@example.com".into()),
                scopes: "tasks:read".into(),
            },
            expires_at: Some(1_900_000_000),
        };
        assert_eq!(introspect(json(answer)).await.expect("agreed JSON"), expected);
    }

    #[tokio::test]
    async fn scope_is_read_when_scopes_is_absent_or_null_and_exp_zero_means_none() {
        let answer = serde_json::json!({"active": true, "sub": "u", "email": "", "scopes": null,
            "scope": "flowmesh:tasks:read *", "exp": 0});
        let expected = Introspection::Active {
            principal: Principal { id: "u".into(), email: None, scopes: "tasks:read *".into() },
            expires_at: None,
        };
        assert_eq!(introspect(json(answer)).await.expect("agreed JSON"), expected);
    }

    #[tokio::test]
    async fn an_inactive_token_needs_no_other_field() {
        let answer = serde_json::json!({"active": false, "reason": "revoked"});
        assert_eq!(introspect(json(answer)).await.expect("agreed JSON"), Introspection::Inactive);
    }

    #[tokio::test]
    async fn anything_but_the_agreed_answer_is_an_error_and_never_a_decision() {
        let large = |length: usize| format!(r#"{{"active": true, "sub": "u", "x": "{}"}}"#, "x".repeat(length));
        for (what, response, kind) in [
            ("a 500", ResponseTemplate::new(500), "status"),
            ("a 401", ResponseTemplate::new(401), "status"),
            ("a 204", ResponseTemplate::new(204), "status"),
            ("a 429", ResponseTemplate::new(429).insert_header("retry-after", "7"), "status"),
            (
                "a 201",
                ResponseTemplate::new(201).set_body_json(serde_json::json!({"active": true, "sub": "u"})),
                "status",
            ),
            ("a redirect", ResponseTemplate::new(302).insert_header("location", "/elsewhere"), "status"),
            ("HTML", ResponseTemplate::new(200).set_body_string("<html>"), "malformed"),
            ("an array", json(serde_json::json!([true, "user-1", null, null, null, null])), "malformed"),
            ("a wrong type", json(serde_json::json!({"active": "yes", "sub": "u"})), "malformed"),
            ("another wrong type", json(serde_json::json!({"active": 1, "sub": "u"})), "malformed"),
            ("a sub that is no text", json(serde_json::json!({"active": true, "sub": 7})), "malformed"),
            (
                "an expiry that is no number",
                json(serde_json::json!({"active": true, "sub": "u", "exp": "9"})),
                "malformed",
            ),
            (
                "an expiry that is no whole number",
                json(serde_json::json!({"active": true, "sub": "u", "exp": 1e30})),
                "malformed",
            ),
            (
                "active twice",
                ResponseTemplate::new(200).set_body_string(r#"{"active": true, "active": false, "sub": "u"}"#),
                "malformed",
            ),
            (
                "half an object",
                ResponseTemplate::new(200).set_body_string(r#"{"active": true, "sub": "u""#),
                "malformed",
            ),
            (
                "more than an object",
                ResponseTemplate::new(200).set_body_string(r#"{"active": true, "sub": "u"}{}"#),
                "malformed",
            ),
            (
                "no UTF-8",
                ResponseTemplate::new(200).set_body_bytes(b"{\"active\": true, \"sub\": \"\xff\"}".to_vec()),
                "malformed",
            ),
            ("no active", json(serde_json::json!({"sub": "u"})), "malformed"),
            ("active without sub", json(serde_json::json!({"active": true})), "malformed"),
            ("a sub that breaks a header", json(serde_json::json!({"active": true, "sub": "a\nb"})), "malformed"),
            (
                "a sub that fits no header",
                json(serde_json::json!({"active": true, "sub": "x".repeat(257)})),
                "malformed",
            ),
            ("a large answer", ResponseTemplate::new(200).set_body_string(large(ANSWER_LIMIT)), "too_large"),
            ("a huge answer", ResponseTemplate::new(200).set_body_string(large(50 << 20)), "too_large"),
            ("silence", json(serde_json::json!({})).set_delay(Duration::from_secs(5)), "timeout"),
        ] {
            let error = introspect(response).await.expect_err(what);
            assert_eq!(error.kind(), kind, "{what}: {error}");
        }
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let (server, lum_id) =
            answering(ResponseTemplate::new(307).insert_header("location", "/oauth/introspect")).await;
        assert_eq!(lum_id.introspect("a+b&c").await.expect_err("no answer").kind(), "status");
        assert_eq!(server.received_requests().await.map(|requests| requests.len()), Some(1));
    }

    #[tokio::test]
    async fn lum_id_may_say_when_to_ask_again() {
        let error =
            introspect(ResponseTemplate::new(429).insert_header("retry-after", "7")).await.expect_err("no answer");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    }

    /// Anything that JSON can be, as far as an answer's fields are concerned.
    fn any_value() -> impl Strategy<Value = serde_json::Value> {
        prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            "\\PC{0,8}".prop_map(Into::into),
            any::<String>().prop_map(Into::into),
            prop::collection::vec("[a-z:*]{0,12}", 0..4).prop_map(Into::into),
            Just(serde_json::json!({"active": true})),
        ]
    }

    proptest! {
        #[test]
        fn no_answer_is_active_but_one_that_says_so_and_names_somebody(
            fields in prop::collection::hash_map(
                prop::sample::select(vec!["active", "sub", "email", "scopes", "scope", "exp", "iat", "role", "x"]),
                any_value(),
                0..9,
            ),
            active: bool,
        ) {
            let mut fields: serde_json::Map<_, _> = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            if active {
                fields.insert("active".to_owned(), true.into());
            }
            let body = serde_json::Value::Object(fields.clone()).to_string();
            if let Ok(Introspection::Active { principal, expires_at }) = parse(body.as_bytes()) {
                prop_assert_eq!(&fields["active"], &serde_json::Value::Bool(true));
                prop_assert_eq!(fields["sub"].as_str(), Some(principal.id.as_str()));
                prop_assert!(is_visible_ascii(&principal.id));
                prop_assert_eq!(expires_at, fields.get("exp").and_then(serde_json::Value::as_i64).filter(|&exp| exp != 0));
                prop_assert!(principal.scopes.is_empty() || principal.scopes.split(' ').all(is_visible_ascii));
            }
        }

        #[test]
        fn no_bytes_panic_and_none_are_active_by_accident(body in prop::collection::vec(any::<u8>(), 0..128)) {
            let is_active = matches!(parse(&body), Ok(Introspection::Active { .. }));
            prop_assert!(!is_active);
        }
    }

    #[tokio::test]
    async fn lum_id_out_of_reach_is_a_network_error() {
        let base = BaseUrl::of_test("http://127.0.0.1:1");
        let http = Http::new(&base, Duration::from_secs(1)).expect("client");
        let error = LumId::new(http, &base).introspect("x").await.expect_err("nobody listens on port 1");
        assert_eq!(error.kind(), "network", "{error}");
    }
}
