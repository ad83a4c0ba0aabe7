//! Checks with many tokens: the request that Envoy sends, with another token each time.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use prost::Message as _;
use tokio::task::JoinSet;

use crate::{
    template::{DIGITS, Template},
    wire::Connection,
};

/// What a token looks like, but for the number at its end. As long as a real one: `lm_pat_live_` and 64 digits.
const TOKEN: &str = "Bearer lm_pat_live_0123456789abcdef0123456789abcdef0123456789abcdef0123";

/// Checks to choose from.
#[derive(Debug, Clone)]
pub struct Checks(Template);

impl Checks {
    /// Of the captured request in `benches/data`.
    pub fn captured(root: &Path) -> Result<Self> {
        let path = root.join("benches/data/check.binpb");
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut request = CheckRequest::decode(Bytes::from(bytes)).context("check.binpb is no CheckRequest")?;
        let http =
            request.attributes.as_mut().and_then(|all| all.request.as_mut()).and_then(|request| request.http.as_mut());
        let headers = http.and_then(|http| http.header_map.as_mut()).context("check.binpb has no headers")?;
        let bearer = headers.headers.iter_mut().find(|header| header.key == "authorization");
        let hole = "X".repeat(DIGITS);
        bearer.context("check.binpb has no bearer")?.raw_value = format!("{TOKEN}{hole}").into_bytes();
        Ok(Self(Template::new(request.encode_to_vec(), &[&hole])?))
    }

    /// The request with this token.
    #[must_use]
    pub fn of(&self, token: u64) -> Bytes {
        self.0.message(token)
    }

    /// The token itself.
    #[must_use]
    pub fn token(token: u64) -> String {
        format!("{}{token:0DIGITS$}", TOKEN.trim_start_matches("Bearer "))
    }
}

/// Whether it was let through.
fn is_ok(answer: &Bytes) -> bool {
    // Envoy goes by the code alone.
    CheckResponse::decode(answer.clone()).is_ok_and(|answer| answer.status.is_none_or(|status| status.code == 0))
}

/// Sends `count` Checks, `at_once` at a time over `connections`; the tokens are those that `token` gives for 0, 1, 2…
/// All must be let through.
pub async fn send(
    address: &str,
    checks: &Checks,
    count: u64,
    (connections, at_once): (u64, u64),
    token: impl Fn(u64) -> u64 + Clone + Send + 'static,
) -> Result<Duration> {
    let mut clients = JoinSet::new();
    let next = Arc::new(AtomicU64::new(0));
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::open(address).await?);
    }
    let begun = Instant::now();
    for (client, connection) in (0..at_once).zip(open.iter().cycle()) {
        let (mut connection, checks, next, token) = (connection.clone(), checks.clone(), next.clone(), token.clone());
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                let answer =
                    connection.check(checks.of(token(number))).await.with_context(|| format!("client {client}"))?;
                if !is_ok(&answer) {
                    bail!("a Check was refused: {:?}", CheckResponse::decode(answer));
                }
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(begun.elapsed())
}

/// Sends so many Checks with one token all at once, and tells for each how long after the first was sent it was answered.
pub async fn burst(address: &str, checks: &Checks, count: u64, connections: u64, token: u64) -> Result<Vec<Duration>> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::open(address).await?);
    }
    let request = checks.of(token);
    let mut clients = JoinSet::new();
    let begun = Instant::now();
    for (_, connection) in (0..count).zip(open.iter().cycle()) {
        let (mut connection, request) = (connection.clone(), request.clone());
        clients.spawn(async move {
            let answer = connection.check(request).await?;
            ensure!(is_ok(&answer), "a Check was refused: {:?}", CheckResponse::decode(answer));
            Ok(begun.elapsed())
        });
    }
    let mut answered = Vec::new();
    while let Some(client) = clients.join_next().await {
        answered.push(client??);
    }
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_its_own_token_and_is_otherwise_the_captured_one() {
        let checks = Checks::captured(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
        // The bearer, and the request without it.
        let split = |token| {
            let mut request = CheckRequest::decode(checks.of(token)).unwrap();
            let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
            let headers = &mut http.header_map.as_mut().unwrap().headers;
            let bearer = headers.iter().position(|header| header.key == "authorization").unwrap();
            (String::from_utf8(headers.remove(bearer).raw_value).unwrap(), request)
        };
        let ((bearer, one), (other_bearer, other)) = (split(1), split(2));
        assert_eq!(bearer, format!("Bearer {}", Checks::token(1)));
        assert_eq!(bearer.len(), "Bearer lm_pat_live_".len() + 64);
        assert_ne!(bearer, other_bearer);
        assert_eq!(one, other);
    }
}
