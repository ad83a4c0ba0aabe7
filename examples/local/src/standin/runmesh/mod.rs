//! Runmesh, as far as it concerns Tollgate: the balance preflight and the billing entry.
//!
//! Entries are idempotent on `taskId`, as at the real one. Everything else is stricter than the real
//! one is known to be: whatever the contract does not mention is a violation.

mod contract;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex},
};

use axum::{
    body::to_bytes,
    extract::Request,
    http::{Method, StatusCode},
    response::Response,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value, json};
use tokio::sync::mpsc;

use super::{
    Subscribers, decimal,
    fault::{self, Fault, Faults},
    lock,
    server::{Answer, Closed, Server},
};

/// The accepted entries, for people to look at: no part of the contract, and outside of any base path.
const RECEIVED: &str = "/_received";

/// What an account holds that nobody has set.
const DEFAULT_BALANCE: &str = "5.00";

/// A stand-in for Runmesh.
#[derive(Clone)]
pub struct Runmesh {
    server: Arc<Server>,
    inner: Arc<Inner>,
}

/// One accepted billing entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `userEmail`
    pub user_email: String,
    /// `userSub`
    pub user_sub: String,
    /// `taskId`
    pub task_id: String,
    /// `workflowId`
    pub workflow_id: Option<String>,
    /// `cost`, as it was written.
    pub cost: String,
    /// `durationSec`
    pub duration_sec: i64,
    /// `costPerHour`
    pub cost_per_hour: Number,
    /// `taskStatus`
    pub task_status: String,
    /// The whole body.
    pub raw: Value,
    /// When it was accepted for the first time.
    pub received_at: Timestamp,
}

/// What a subscriber is told. Displayed as one line.
#[derive(Clone, Debug)]
pub enum Happened {
    /// A balance was asked for.
    Checked {
        /// Whose.
        user_email: String,
        /// How much is wanted.
        required: String,
        /// How much there is.
        balance: String,
        /// Whether that is enough.
        sufficient: bool,
    },
    /// An entry was accepted.
    Charged {
        /// The entry.
        entry: Box<Entry>,
        /// Whether its task had been charged before, so that no money moved.
        repeated: bool,
    },
    /// A request departed from the contract.
    Violated(String),
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checked { user_email, required, balance, sufficient } => {
                let verdict = if *sufficient { "enough" } else { "not enough" };
                write!(f, "preflight {user_email}: ${balance} for ${required}, {verdict}")
            }
            Self::Charged { entry, repeated } => {
                let again = if *repeated { " (again; no effect)" } else { "" };
                let (email, task) = (&entry.user_email, &entry.task_id);
                let (cost, seconds, status) = (&entry.cost, entry.duration_sec, &entry.task_status);
                write!(f, "entry {task} {status}: {email} pays ${cost} for {seconds} s{again}")
            }
            Self::Violated(what) => write!(f, "VIOLATION: {what}"),
        }
    }
}

struct Inner {
    base_path: String,
    secret: String,
    state: Mutex<State>,
    check_faults: Faults,
    entry_faults: Faults,
    subscribers: Subscribers<Happened>,
}

#[derive(Default)]
struct State {
    balances: HashMap<String, String>,
    entries: Vec<Entry>,
    posts: Vec<Value>,
    checks: Vec<Value>,
    violations: Vec<String>,
}

impl Runmesh {
    /// Serves at `listen` under `base_path` (for example `/Runmesh`, or empty) to those who know `secret`.
    pub async fn start(listen: &str, base_path: &str, secret: &str) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            base_path: base_path.trim_end_matches('/').to_owned(),
            secret: secret.to_owned(),
            state: Mutex::default(),
            check_faults: Faults::default(),
            entry_faults: Faults::default(),
            subscribers: Subscribers::default(),
        });
        let server = Server::start(listen, {
            let inner = inner.clone();
            move |request, _| handle(inner.clone(), request)
        })
        .await?;
        Ok(Self { server, inner })
    }

    /// `http://127.0.0.1:PORT`, without the base path.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The URL with the base path: what `RUNMESH_BILLING_BASE_URL` is set to.
    pub fn billing_url(&self) -> String {
        format!("{}{}", self.server.url(), self.inner.base_path)
    }

    /// The port it has.
    pub(crate) fn server(&self) -> Arc<Server> {
        self.server.clone()
    }

    /// Closes the port and every connection; the state stays.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Listens again on the same port.
    pub async fn resume(&self) -> io::Result<()> {
        self.server.resume().await
    }

    /// How to answer everything from now on.
    pub fn fail_with(&self, fault: Fault) {
        self.fail_checks_with(fault.clone());
        self.fail_entries_with(fault);
    }

    /// How to answer balance checks from now on.
    pub fn fail_checks_with(&self, fault: Fault) {
        self.inner.check_faults.set(fault);
    }

    /// How to answer billing entries from now on.
    pub fn fail_entries_with(&self, fault: Fault) {
        self.inner.entry_faults.set(fault);
    }

    /// Answers everything properly from now on.
    pub fn heal(&self) {
        self.inner.check_faults.heal();
        self.inner.entry_faults.heal();
    }

    /// What `email` has, as a decimal. Entries do not change it.
    pub fn set_balance(&self, email: &str, decimal: &str) {
        lock(&self.inner.state).balances.insert(email.to_owned(), decimal.to_owned());
    }

    /// The accepted entries, one per task, in the order of their first arrival.
    pub fn entries(&self) -> Vec<Entry> {
        lock(&self.inner.state).entries.clone()
    }

    /// The body of every entry POST that carried the right secret: repeats too, and those that a fault
    /// kept from being accepted.
    pub fn posts(&self) -> Vec<Value> {
        lock(&self.inner.state).posts.clone()
    }

    /// The body of every balance check that carried the right secret.
    pub fn checks(&self) -> Vec<Value> {
        lock(&self.inner.state).checks.clone()
    }

    /// Whatever departed from the contract, among it one task charged with two different contents.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.inner.state).violations.clone()
    }

    /// A running account of what is asked and charged from now on.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Happened> {
        self.inner.subscribers.subscribe()
    }
}

impl Inner {
    fn violated(&self, what: String) {
        lock(&self.state).violations.push(what.clone());
        self.subscribers.publish(&Happened::Violated(what));
    }

    fn check_balance(&self, body: &Value) -> Response {
        let (Some(email), Some(required)) = (body["userEmail"].as_str(), body["requiredAmount"].as_str()) else {
            return refusal("malformed balance check");
        };
        let state = lock(&self.state);
        let balance = state.balances.get(email).map_or(DEFAULT_BALANCE, |b| b);
        let sufficient = decimal::compare(balance, required).is_some_and(std::cmp::Ordering::is_ge);
        let happened = Happened::Checked {
            user_email: email.to_owned(),
            required: required.to_owned(),
            balance: balance.to_owned(),
            sufficient,
        };
        let data = json!({"sufficient": sufficient, "balance": balance});
        drop(state);
        self.subscribers.publish(&happened);
        envelope(data)
    }

    fn accept(&self, entry: Entry) -> Response {
        let mut state = lock(&self.state);
        let known = state.entries.iter().find(|e| e.task_id == entry.task_id);
        let repeated = known.is_some();
        let conflict = known.filter(|known| known.raw != entry.raw).map(|known| {
            let (old, new) = (&known.raw, &entry.raw);
            format!("{} posted with different contents: {old}, then {new}", entry.task_id)
        });
        if !repeated {
            state.entries.push(entry.clone());
        }
        drop(state);
        if let Some(conflict) = conflict {
            self.violated(conflict);
        }
        self.subscribers.publish(&Happened::Charged { entry: Box::new(entry), repeated });
        envelope(Value::Null)
    }
}

impl Inner {
    /// One entry per line, as they were posted.
    fn received(&self) -> Response {
        let entries: Vec<_> = lock(&self.state).entries.iter().map(|entry| entry.raw.to_string()).collect();
        let body = if entries.is_empty() { "[]\n".to_owned() } else { format!("[{}]\n", entries.join(",\n ")) };
        super::text(StatusCode::OK, "application/json", body)
    }
}

#[derive(Clone, Copy)]
enum Endpoint {
    Checks,
    Entries,
}

async fn handle(inner: Arc<Inner>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    // A body that ends before its time comes from a client who has gone.
    let body = to_bytes(body, 1 << 20).await.map_err(|_| Closed)?;
    if parts.method == Method::GET && parts.uri.path() == RECEIVED {
        return Ok(inner.received());
    }
    let endpoint = match parts.uri.path().strip_prefix(&inner.base_path) {
        Some("/billing/check-balance") => Endpoint::Checks,
        Some("/billing/flowmesh-entry") => Endpoint::Entries,
        _ => {
            inner.violated(format!("{} {}", parts.method, parts.uri.path()));
            return Ok(super::json(
                StatusCode::NOT_FOUND,
                &json!({"code": 404, "msg": "no such endpoint", "data": null}),
            ));
        }
    };
    let fault = match endpoint {
        Endpoint::Checks => inner.check_faults.next(),
        Endpoint::Entries => inner.entry_faults.next(),
    };
    if !contract::knows_secret(&parts, &inner.secret) {
        inner.violated(format!("{}: wrong or missing secret", parts.uri.path()));
        let body = json!({"code": 401, "msg": "bad bridge secret", "data": null});
        let work = async { super::json(StatusCode::UNAUTHORIZED, &body) };
        return fault::answer(fault, work).await;
    }
    let parsed = serde_json::from_slice::<Value>(&body);
    let (mut violations, body) = match parsed {
        Ok(body) => (contract::envelope_violations(&parts), body),
        Err(error) => (vec![format!("not JSON: {error}")], Value::Null),
    };
    let entry = match endpoint {
        Endpoint::Checks => {
            lock(&inner.state).checks.push(body.clone());
            violations.extend(contract::check_violations(&body));
            None
        }
        Endpoint::Entries => {
            lock(&inner.state).posts.push(body.clone());
            violations.extend(contract::entry_violations(&body));
            contract::parse_entry(&body)
        }
    };
    let refused = !violations.is_empty();
    for violation in violations {
        inner.violated(format!("{}: {violation}", parts.uri.path()));
    }
    let work = async {
        match (endpoint, entry) {
            _ if refused => refusal("the request departs from the contract"),
            (Endpoint::Checks, _) => inner.check_balance(&body),
            (Endpoint::Entries, Some(entry)) => inner.accept(entry),
            (Endpoint::Entries, None) => refusal("malformed entry"),
        }
    };
    fault::answer(fault, work).await
}

fn envelope(data: Value) -> Response {
    let body = json!({"code": 200, "msg": "ok", "data": data});
    super::json(StatusCode::OK, &body)
}

fn refusal(message: &str) -> Response {
    let body = json!({"code": 400, "msg": message, "data": null});
    super::json(StatusCode::BAD_REQUEST, &body)
}
