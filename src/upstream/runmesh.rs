//! Runmesh: balance preflight and ledger entries, both with `X-Bridge-Secret`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::health::Health;
use super::times::Call;
use super::{CallError, Http, parse_object, read_bounded, retry_after};
use crate::config::{Billing, Secret, expose};

/// Both answers are a few fields in an envelope.
const ANSWER_LIMIT: usize = 64 * 1024;
/// How long the body of a 402 is waited for.
const BALANCE_PATIENCE: Duration = Duration::from_millis(500);
/// [`PostError::Retryable`]'s kind for a failure that Runmesh reports inside a 200.
pub const ENVELOPE: &str = "envelope";
/// [`PostError::Retryable`]'s kind when Runmesh does not accept the secret.
pub const UNAUTHORIZED: &str = "unauthorized";
/// How much of a refusal is kept for the operator.
const KEPT_BYTES: usize = 500;
/// What a submission must be good for, in US dollars.
const REQUIRED_AMOUNT: &str = "0.01";

/// The client.
#[derive(Debug, Clone)]
pub struct Runmesh {
    preflights: Http,
    preflight_url: String,
    preflight_time: Call,
    entries: Http,
    entry_url: String,
    entry_time: Call,
    secret: Secret,
}

/// What Runmesh says of a user's balance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    Sufficient,
    /// The balance as Runmesh wrote it, `0.00` when it did not.
    Insufficient(String),
}

/// One billing entry, exactly as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub user_email: String,
    pub user_sub: String,
    /// Runmesh's idempotency key.
    pub task_id: String,
    pub workflow_id: Option<String>,
    /// US dollars, plain decimal notation.
    pub cost: String,
    pub duration_sec: i64,
    /// US dollars per hour.
    pub cost_per_hour: serde_json::Number,
    /// `DONE`, `FAILED` or `CANCELLED`.
    pub task_status: String,
}

/// Why an entry was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// Worth another try, not before `retry_after` when Runmesh named one.
    #[error("{reason}")]
    Retryable { kind: &'static str, reason: String, retry_after: Option<Duration> },
    /// Runmesh will never take this entry.
    #[error("status {status}: {answer}")]
    Rejected { status: u16, answer: String },
}

impl PostError {
    /// A bounded name for metric labels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Retryable { kind, .. } => kind,
            Self::Rejected { .. } => "rejected",
        }
    }
}

impl From<CallError> for PostError {
    fn from(error: CallError) -> Self {
        Self::Retryable { kind: error.kind(), reason: error.to_string(), retry_after: None }
    }
}

impl From<reqwest::Error> for PostError {
    fn from(error: reqwest::Error) -> Self {
        CallError::from(error).into()
    }
}

impl Runmesh {
    /// `http` carries the time limit of an entry; a preflight has its own.
    #[must_use]
    pub fn new(http: Http, billing: &Billing, preflight_timeout: Duration) -> Self {
        Self {
            preflights: http.with_limit(preflight_timeout),
            preflight_time: http.times.of("runmesh", "preflight"),
            entry_time: http.times.of("runmesh", "entry"),
            entries: http,
            preflight_url: billing.base_url.join("/billing/check-balance"),
            entry_url: billing.base_url.join("/billing/flowmesh-entry"),
            secret: billing.secret.clone(),
        }
    }

    /// Whether it answers, preflights and entries alike.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.entries.health()
    }

    async fn call(&self, http: &Http, url: &str, body: &impl Serialize) -> Result<Response, CallError> {
        http.send(|client| client.post(url).header("x-bridge-secret", expose(&self.secret.get())).json(body)).await
    }

    /// Asks whether a user can pay for a submission.
    ///
    /// # Errors
    /// [`CallError`] when Runmesh gave no decision; the contract is then to let the submission through.
    pub async fn preflight(&self, email: &str) -> Result<Balance, CallError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Question<'a> {
            user_email: &'a str,
            required_amount: &'a str,
        }
        let _measured = self.preflight_time.begin();
        let question = Question { user_email: email, required_amount: REQUIRED_AMOUNT };
        let response = self.call(&self.preflights, &self.preflight_url, &question).await?;
        let status = response.status();
        if !matches!(status, StatusCode::OK | StatusCode::PAYMENT_REQUIRED) {
            return Err(CallError::of_status(&response));
        }
        let body = read_bounded(response, ANSWER_LIMIT);
        let body = if status == StatusCode::PAYMENT_REQUIRED {
            // The status says all that matters; what is only a text for the user must not turn it into a time-out.
            tokio::time::timeout(BALANCE_PATIENCE, body).await.unwrap_or(Err(CallError::Timeout))
        } else {
            body.await
        };
        let answer = body.and_then(|body| parse_preflight(&body));
        match answer {
            // A 402 refuses whatever its body says; the body may still name the balance.
            answer if status == StatusCode::PAYMENT_REQUIRED => {
                Ok(Balance::Insufficient(answer.map_or_else(|_| "0.00".to_owned(), |data| balance_text(data.balance))))
            }
            Ok(data) if data.sufficient => Ok(Balance::Sufficient),
            Ok(data) => Ok(Balance::Insufficient(balance_text(data.balance))),
            Err(error) => Err(error),
        }
    }

    /// Posts an entry. Idempotent on the task id: posting it again moves no money.
    ///
    /// # Errors
    /// [`PostError`], classified once for all callers.
    pub async fn post(&self, entry: &Entry) -> Result<(), PostError> {
        let _measured = self.entry_time.begin();
        let response = self.call(&self.entries, &self.entry_url, entry).await?;
        let status = response.status();
        let retry_after = retry_after(response.headers(), Timestamp::now());
        match status.as_u16() {
            200 => match envelope_code(&read_bounded(response, ANSWER_LIMIT).await?) {
                None | Some(0 | 200) => Ok(()),
                Some(code) => Err(PostError::Retryable {
                    kind: ENVELOPE,
                    reason: format!("status 200 with code {code} in the envelope"),
                    retry_after,
                }),
            },
            // It is there already.
            409 => Ok(()),
            401 | 403 => {
                Err(PostError::Retryable { kind: UNAUTHORIZED, reason: format!("status {status}"), retry_after })
            }
            408 | 425 | 429 => {
                Err(PostError::Retryable { kind: "status", reason: format!("status {status}"), retry_after })
            }
            400..=499 => {
                let body = read_bounded(response, ANSWER_LIMIT).await.unwrap_or_default();
                let kept = body.get(..KEPT_BYTES).unwrap_or(&body);
                Err(PostError::Rejected { status: status.as_u16(), answer: String::from_utf8_lossy(kept).into_owned() })
            }
            _ => Err(PostError::Retryable { kind: "status", reason: format!("status {status}"), retry_after }),
        }
    }
}

struct PreflightData {
    sufficient: bool,
    balance: Option<Value>,
}

/// Reads the `data` object. Without one, or with a `sufficient` that is no boolean, there is no decision.
fn parse_preflight(body: &[u8]) -> Result<PreflightData, CallError> {
    #[derive(Deserialize)]
    struct Answer {
        data: Map<String, Value>,
    }
    let mut data = parse_object::<Answer>(body)?.data;
    let sufficient = match data.get("sufficient") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(sufficient)) => *sufficient,
        Some(_) => return Err(CallError::Malformed("sufficient is no boolean".to_owned())),
    };
    Ok(PreflightData { sufficient, balance: data.remove("balance") })
}

/// The balance for a message to the user: digits only, whatever came.
fn balance_text(balance: Option<Value>) -> String {
    let text = match balance {
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let plain = text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_digit() || b"-.".contains(&byte));
    if plain && !text.is_empty() { text } else { "0.00".to_owned() }
}

/// The integer `code` of a JSON envelope, if there is one.
fn envelope_code(body: &[u8]) -> Option<i64> {
    let value: Value = serde_json::from_slice(body).ok()?;
    value.get("code")?.as_i64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wiremock::matchers::{body_json, header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::config::BaseUrl;

    async fn runmesh(at: &str, body: serde_json::Value, response: ResponseTemplate) -> (MockServer, Runmesh) {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .and(path(format!("/Runmesh/billing/{at}")))
            .and(header("x-bridge-secret", "s3cret"))
            .and(body_json(body))
            .respond_with(response)
            .mount(&server)
            .await;
        let billing =
            Billing { base_url: BaseUrl::of_test(&format!("{}/Runmesh/", server.uri())), secret: "s3cret".into() };
        let http = Http::new(&billing.base_url, Duration::from_secs(1)).expect("client");
        (server, Runmesh::new(http, &billing, Duration::from_secs(1)))
    }

    async fn preflight(response: ResponseTemplate) -> Result<Balance, CallError> {
        let question = json!({"userEmail": "alice@example.com", "requiredAmount": "0.01"});
        let (_server, runmesh) = runmesh("check-balance", question, response).await;
        runmesh.preflight("alice@example.com").await
    }

    fn ok(value: serde_json::Value) -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_json(value)
    }

    #[tokio::test]
    async fn a_preflight_refuses_only_on_a_clear_word() {
        let poor = |text: &str| Balance::Insufficient(text.to_owned());
        for (response, expected) in [
            (ok(json!({"data": {"sufficient": true, "balance": "5.00"}})), Balance::Sufficient),
            (ok(json!({"data": {"sufficient": false, "balance": "0.00"}})), poor("0.00")),
            (ok(json!({"data": {"balance": 0.5}})), poor("0.5")),
            (ok(json!({"data": {"sufficient": false, "balance": "<script>"}})), poor("0.00")),
            (ResponseTemplate::new(402), poor("0.00")),
            (ResponseTemplate::new(402).set_body_json(json!({"data": {"balance": "0.003"}})), poor("0.003")),
        ] {
            assert_eq!(preflight(response).await.expect("a decision"), expected);
        }
        for (kind, response) in [
            ("status", ResponseTemplate::new(500)),
            ("status", ResponseTemplate::new(404)),
            ("malformed", ResponseTemplate::new(200).set_body_string("ok")),
            ("malformed", ok(json!({"code": 200}))),
            ("malformed", ok(json!({"data": null}))),
            ("malformed", ok(json!({"data": [true, "5.00"]}))),
            ("malformed", ok(json!({"data": {"sufficient": "no"}}))),
            ("malformed", ok(json!([{"sufficient": false}]))),
            ("timeout", ok(json!({})).set_delay(Duration::from_secs(5))),
        ] {
            assert_eq!(preflight(response).await.expect_err(kind).kind(), kind);
        }
    }

    fn entry() -> Entry {
        Entry {
            user_email: "alice@example.com".into(),
            user_sub: "user-1".into(),
            task_id: "tsk-1".into(),
            workflow_id: Some("wfl-1".into()),
            cost: "0.42".into(),
            duration_sec: 12,
            cost_per_hour: serde_json::Number::from_f64(1.5).expect("finite"),
            task_status: "DONE".into(),
        }
    }

    async fn post(response: ResponseTemplate) -> Result<(), PostError> {
        let body = json!({"userEmail": "alice@example.com", "userSub": "user-1", "taskId": "tsk-1",
            "workflowId": "wfl-1", "cost": "0.42", "durationSec": 12, "costPerHour": 1.5, "taskStatus": "DONE"});
        let (_server, runmesh) = runmesh("flowmesh-entry", body, response).await;
        runmesh.post(&entry()).await
    }

    #[tokio::test]
    async fn an_entry_is_exactly_the_agreed_json_and_200_or_409_settle_it() {
        post(ok(json!({"code": 200, "msg": "ok", "data": null}))).await.expect("accepted");
        post(ok(json!({"code": 0}))).await.expect("accepted");
        post(ResponseTemplate::new(200)).await.expect("a 200 without an envelope is a 200");
        post(ResponseTemplate::new(409)).await.expect("it is there already");
    }

    #[tokio::test]
    async fn trouble_is_retryable_and_refusals_are_kept_with_their_answer() {
        for status in [201, 302, 401, 403, 408, 425, 429, 500, 503] {
            let error = post(ResponseTemplate::new(status)).await.expect_err("not accepted");
            assert!(matches!(error, PostError::Retryable { .. }), "{status}: {error}");
        }
        let envelope = post(ok(json!({"code": 500, "msg": "no"}))).await.expect_err("a failing envelope");
        assert!(matches!(envelope, PostError::Retryable { kind: ENVELOPE, .. }), "{envelope}");
        let response = ResponseTemplate::new(422).set_body_string("x".repeat(600));
        match post(response).await.expect_err("refused") {
            PostError::Rejected { status: 422, answer } => assert_eq!(answer.len(), KEPT_BYTES),
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn retry_after_comes_with_the_failure() {
        let response = ResponseTemplate::new(429).insert_header("retry-after", "7");
        let error = post(response).await.expect_err("not accepted");
        assert!(matches!(error, PostError::Retryable { retry_after: Some(after), .. } if after.as_secs() == 7));
    }
}
