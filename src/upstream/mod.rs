//! Typed HTTP clients for the systems on the other side: one file each.
//!
//! Past this module no code sees JSON or HTTP statuses. Every answer is read up to a bound and within a time limit;
//! redirects are never followed, because a credential would follow them.

pub mod flowmesh;
pub mod lumid;
pub mod runmesh;

use std::time::Duration;

use reqwest::{Client, Response};

/// A client for one upstream, with its time limit for a whole exchange.
///
/// # Errors
/// When the TLS library cannot be set up, for instance without any trusted root.
pub fn client(timeout: Duration) -> Result<Client, reqwest::Error> {
    // Process-wide and idempotent: a second call finds the first one's choice, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")))
        .build()
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
    #[error("status {0}")]
    Status(u16),
    #[error("not the agreed JSON: {0}")]
    Malformed(String),
}

impl CallError {
    /// A bounded name for metric labels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Network(_) => "network",
            Self::TooLarge(_) => "too_large",
            Self::Status(_) => "status",
            Self::Malformed(_) => "malformed",
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
