//! Typed HTTP clients for the systems on the other side: one file each.
//!
//! Past this module no code sees JSON or HTTP statuses. Every answer is read up to a bound and within a time limit;
//! redirects are never followed, because a credential would follow them.

pub mod flowmesh;
pub mod health;
pub mod lumid;
pub mod runmesh;
pub mod times;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use crate::config::BaseUrl;
use crate::telemetry::traces;
use health::Health;
use times::Times;

/// Below the 5 s after which uvicorn, FlowMesh's server, closes an idle connection.
const IDLE: Duration = Duration::from_secs(4);

/// An HTTP client for one upstream, with the time limit of a whole exchange. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client,
    limit: Duration,
    times: Times,
    health: Arc<Health>,
}

impl Http {
    /// A client for this upstream. One on this machine is reached directly, whatever proxy the environment names.
    ///
    /// # Errors
    /// When TLS is needed and cannot be set up, for instance without any trusted root.
    pub fn new(upstream: &BaseUrl, limit: Duration) -> Result<Self, reqwest::Error> {
        Self::build(upstream.is_loopback(), upstream.is_https(), limit)
    }

    /// A client for this machine's own listeners: plain HTTP, no proxy.
    ///
    /// # Errors
    /// Not in practice: there is nothing to set up.
    pub fn local(limit: Duration) -> Result<Self, reqwest::Error> {
        Self::build(true, false, limit)
    }

    fn build(is_local: bool, is_https: bool, limit: Duration) -> Result<Self, reqwest::Error> {
        // Process-wide and idempotent: a second call finds the first one's choice, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder()
            .pool_idle_timeout(IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")));
        if is_local {
            client = client.no_proxy();
        }
        if !is_https {
            // Else a machine without certificates could not even speak plain HTTP.
            client = client.tls_certs_only([]);
        }
        Ok(Self { client: client.build()?, limit, times: Times::default(), health: Arc::default() })
    }

    /// The same connections with another time limit.
    #[must_use]
    pub fn with_limit(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// The same connections, whose calls are measured here.
    #[must_use]
    pub fn measured(self, times: Times) -> Self {
        Self { times, ..self }
    }

    /// Whether the other side answers, over all clients that share these connections.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// Sends a request, and once more within the same limit when the connection broke before an answer: the other side
    /// may have closed an idle connection just then, with no fault of anybody. So only for requests that may be repeated.
    /// It says of which trace it is part, where it is of one.
    ///
    /// # Errors
    /// [`CallError`] when there is no answer.
    pub async fn send(&self, build: impl Fn(&Client) -> RequestBuilder) -> Result<Response, CallError> {
        let started = Instant::now();
        let attempt = async || {
            let request = traces::carry(build(&self.client));
            request.timeout(self.limit.saturating_sub(started.elapsed())).send().await
        };
        let answer = match attempt().await {
            Err(error) if error.is_request() && !error.is_timeout() && !error.is_connect() => attempt().await,
            answer => answer,
        };
        let answer = answer.map_err(CallError::from);
        let now = Instant::now();
        match &answer {
            Ok(response) if refuses_service(response.status()) => {
                self.health.failed(&CallError::of_status(response), now);
            }
            Ok(_) => self.health.answered(now),
            Err(error) => self.health.failed(error, now),
        }
        answer
    }
}

/// Whether a status is about the other side, or about Tollgate at its door, rather than about what was asked.
fn refuses_service(status: StatusCode) -> bool {
    status.is_server_error()
        || status.is_redirection()
        || matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED
        )
}

/// Why an answer could not be had; each is worth another try later.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("time limit exceeded")]
    Timeout,
    #[error("{0}")]
    Network(String),
    #[error("answer larger than {0} bytes")]
    TooLarge(usize),
    #[error("status {status}")]
    Status {
        status: u16,
        /// When the other side named one.
        retry_after: Option<Duration>,
    },
    #[error("not the agreed JSON: {0}")]
    Malformed(String),
    /// Too many calls were in flight already, and none ended in time.
    #[error("too many calls under way")]
    Busy,
    /// Who asked had too many calls in flight already, and none ended in time.
    #[error("too many calls of one source under way")]
    OverShare,
    #[error("not asked so soon after a failure")]
    Paused,
    #[error("the call was given up")]
    Aborted,
}

impl CallError {
    /// A bounded name for metric labels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Network(_) => "network",
            Self::TooLarge(_) => "too_large",
            Self::Status { .. } => "status",
            Self::Malformed(_) => "malformed",
            Self::Busy => "busy",
            Self::OverShare => "over_share",
            Self::Paused => "paused",
            Self::Aborted => "aborted",
        }
    }

    /// Whether the other side is not there, rather than that this one answer was odd.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Timeout | Self::Network(_) | Self::Status { .. } => true,
            Self::TooLarge(_) | Self::Malformed(_) | Self::Busy | Self::OverShare | Self::Paused | Self::Aborted => {
                false
            }
        }
    }

    /// When the other side would like to be asked again, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Of an answer whose status says that it is not the one that was agreed.
    #[must_use]
    pub fn of_status(response: &Response) -> Self {
        Self::Status {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers(), Timestamp::now()),
        }
    }
}

impl From<reqwest::Error> for CallError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Timeout;
        }
        // reqwest's own text ends before the cause ("error sending request"); its URL adds nothing to the log.
        let error = error.without_url();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Network(text)
    }
}

impl From<serde_json::Error> for CallError {
    fn from(error: serde_json::Error) -> Self {
        // Only the place: serde's message can quote the answer, and an answer can hold an e-mail address.
        Self::Malformed(format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()))
    }
}

/// `Retry-After`, as seconds or as a date.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// [`CallError`] when it is longer, or breaks off.
pub async fn read_bounded(mut response: Response, limit: usize) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(CallError::TooLarge(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads a JSON object. What is a list is not taken for an object whose fields come in order.
///
/// # Errors
/// [`CallError::Malformed`].
pub fn parse_object<T: DeserializeOwned>(body: &[u8]) -> Result<T, CallError> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(CallError::Malformed("no object".to_owned()));
    }
    Ok(serde_json::from_slice(body)?)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers the first request of the first connection only, and closes at the second one.
    async fn closing_at_the_second(listener: TcpListener) {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let mut request = [0; 4096];
        let (mut first, _) = listener.accept().await.expect("accepted");
        let _ = first.read(&mut request).await.expect("read");
        first.write_all(answer).await.expect("written");
        let _ = first.read(&mut request).await.expect("read");
        drop(first);
        let (mut second, _) = listener.accept().await.expect("accepted");
        let _ = second.read(&mut request).await.expect("read");
        second.write_all(answer).await.expect("written");
    }

    #[tokio::test]
    async fn a_kept_connection_that_is_closed_under_a_request_is_no_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tokio::spawn(closing_at_the_second(listener));
        let http = Http::new(&BaseUrl::of_test(&url), Duration::from_secs(5)).expect("client");
        for _ in 0..2 {
            let response = http.send(|client| client.get(&url)).await.expect("an answer");
            assert_eq!(read_bounded(response, 10).await.expect("a body"), b"{}");
        }
        server.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_second_try_has_no_time_of_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let _ = stream.read(&mut [0; 4096]).await.expect("read");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        let http = Http::new(&BaseUrl::of_test(&url), Duration::from_secs(3)).expect("client");
        let started = Instant::now();
        let error = http.send(|client| client.get(&url)).await.expect_err("no answer");
        assert_eq!(error.kind(), "timeout", "{error}");
        assert!(started.elapsed() < Duration::from_millis(4500), "{:?}", started.elapsed());
        server.abort();
    }

    #[test]
    fn a_list_is_no_object() {
        let parse = |text: &str| parse_object::<std::collections::HashMap<String, u8>>(text.as_bytes());
        assert!(parse(" {\"a\": 1}").is_ok());
        for text in ["[]", "", "null", "1", "{"] {
            assert_eq!(parse(text).expect_err(text).kind(), "malformed");
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now: Timestamp = "2026-11-22T08:00:00Z".parse().expect("valid");
        let read = |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("valid"))]), now);
        assert_eq!(read("Sun, 22 Nov 2026 08:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(read("Sun, 22 Nov 2026 07:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
    }
}
