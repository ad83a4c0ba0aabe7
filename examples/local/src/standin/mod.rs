//! Stand-ins for lum.id, Runmesh and FlowMesh.
//!
//! A handle is cheap to clone and shares its state with its clones. A stand-in serves until its last
//! handle is dropped or until `stop`; after `resume` it serves again on the same port with the state
//! it had, which is what a restart looks like from outside. What it received is kept for as long as
//! it lives, and a departure from the contract is recorded, not only refused, so that a test can end
//! by asserting that there was none.

mod decimal;
mod fault;
mod flowmesh;
mod lum_id;
mod runmesh;
mod server;

use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use serde_json::Value;
use tokio::sync::mpsc;

pub use decimal::{plain_decimal, same_amount};
pub use fault::Fault;
pub use flowmesh::{
    FlowMesh, Happened as FlowMeshHappened, Options, Outcome, Seen, Status, Task, TruthEntry, Usage, Worker, Workflow,
};
pub use lum_id::{Happened as LumIdHappened, LumId};
pub use runmesh::{Entry, Happened as RunmeshHappened, Runmesh};
pub use server::Server;

/// The content of a mutex. A panic of another holder does not matter here: the panicking test fails
/// by itself, and what it left behind is still the best account of what happened.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those who want a running account of what a stand-in does.
struct Subscribers<T>(Mutex<Vec<mpsc::UnboundedSender<T>>>);

impl<T> Default for Subscribers<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Subscribers<T> {
    fn subscribe(&self) -> mpsc::UnboundedReceiver<T> {
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.0).push(sender);
        receiver
    }

    fn publish(&self, happened: &T) {
        lock(&self.0).retain(|subscriber| subscriber.send(happened.clone()).is_ok());
    }
}

/// A whole answer with a JSON body.
fn json(status: StatusCode, body: &Value) -> Response {
    text(status, "application/json", body.to_string())
}

/// A whole answer.
fn text(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// The media type of a message, without its parameters, in lower case.
fn media_type(headers: &HeaderMap) -> String {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

#[cfg(test)]
mod testing {
    use std::time::{Duration, Instant};

    /// An HTTP client that keeps no idle connections and gives up in time.
    pub fn client() -> reqwest::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(5))
            .build()
            .expect("a client")
    }

    /// Polls until `condition` holds, and fails the test when it does not within five seconds.
    pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !condition().await {
            assert!(Instant::now() < deadline, "not within five seconds: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
