//! lum.id: `POST /oauth/introspect` (RFC 7662 with extras, no client authentication).

use reqwest::StatusCode;
use serde::Deserialize;

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
    http: Http,
    url: String,
}

impl LumId {
    /// `http` carries the time limit.
    #[must_use]
    pub fn new(http: Http, base_url: &BaseUrl) -> Self {
        Self { http, url: base_url.join("/oauth/introspect") }
    }

    /// Asks whose token this is.
    ///
    /// # Errors
    /// [`CallError`] when lum.id did not give the agreed answer; nothing is then known of the token.
    pub async fn introspect(&self, token: &str) -> Result<Introspection, CallError> {
        let response = self.http.send(|client| client.post(&self.url).form(&[("token", token)])).await?;
        if response.status() != StatusCode::OK {
            return Err(CallError::Status(response.status().as_u16()));
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
        let large = format!(r#"{{"active": true, "sub": "{}"}}"#, "x".repeat(ANSWER_LIMIT));
        for (what, response, kind) in [
            ("a 500", ResponseTemplate::new(500), "status"),
            ("a redirect", ResponseTemplate::new(302).insert_header("location", "/elsewhere"), "status"),
            ("HTML", ResponseTemplate::new(200).set_body_string("<html>"), "malformed"),
            ("an array", json(serde_json::json!([true, "user-1", null, null, null, null])), "malformed"),
            ("a wrong type", json(serde_json::json!({"active": "yes", "sub": "u"})), "malformed"),
            ("no active", json(serde_json::json!({"sub": "u"})), "malformed"),
            ("active without sub", json(serde_json::json!({"active": true})), "malformed"),
            ("a sub that breaks a header", json(serde_json::json!({"active": true, "sub": "a\nb"})), "malformed"),
            ("a huge answer", ResponseTemplate::new(200).set_body_string(large), "too_large"),
            ("silence", json(serde_json::json!({})).set_delay(Duration::from_secs(5)), "timeout"),
        ] {
            let error = introspect(response).await.expect_err(what);
            assert_eq!(error.kind(), kind, "{what}: {error}");
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
