//! The asking half of [`super`]: one client for each stand-in.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Balance, Completed, Completion, Count, Delay, Requests, Revocation, Wanted};
use crate::standin::{Entry, Outcome, Task, TruthEntry, Worker, Workflow};

/// What all have in common.
#[derive(Clone, Debug)]
struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn new(http: &reqwest::Client, url: &str) -> Self {
        Self { http: http.clone(), url: url.trim_end_matches('/').to_owned() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Reads something; none when there is no such thing.
    async fn read<T: DeserializeOwned>(&self, path: &str, request: RequestBuilder) -> Result<Option<T>> {
        let what = || format!("GET {}{path}", self.url);
        let answer = request.send().await.with_context(what)?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => Ok(Some(answer.json().await.with_context(what)?)),
            status => bail!("{}: {status} {}", what(), answer.text().await.unwrap_or_default()),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let found = self.read(path, self.request(Method::GET, path)).await?;
        found.with_context(|| format!("there is no {}{path}", self.url))
    }

    async fn post(&self, path: &str, body: impl Serialize) -> Result<reqwest::Response> {
        let what = || format!("POST {}{path}", self.url);
        let answer = self.request(Method::POST, path).json(&body).send().await.with_context(what)?;
        if !answer.status().is_success() {
            let status = answer.status();
            bail!("{}: {status} {}", what(), answer.text().await.unwrap_or_default());
        }
        Ok(answer)
    }
}

/// What every stand-in can be told.
macro_rules! port {
    ($standin:ident) => {
        impl $standin {
            /// The client for the control listener at `url`.
            #[must_use]
            pub fn new(http: &reqwest::Client, url: &str) -> Self {
                Self(Client::new(http, url))
            }

            /// Closes its port and every connection; the state stays.
            ///
            /// # Errors
            /// When its control does not answer.
            pub async fn stop(&self) -> Result<()> {
                self.0.post("/stop", ()).await.map(drop)
            }

            /// It listens again on the same port.
            ///
            /// # Errors
            /// When its control does not answer, or it cannot.
            pub async fn resume(&self) -> Result<()> {
                self.0.post("/resume", ()).await.map(drop)
            }
        }
    };
}

/// Controls a lum.id stand-in. Each method fails when the control does not answer.
#[derive(Clone, Debug)]
pub struct LumId(Client);

/// Controls a Runmesh stand-in. Each method fails when the control does not answer.
#[derive(Clone, Debug)]
pub struct Runmesh(Client);

/// Controls a FlowMesh stand-in. Each method fails when the control does not answer.
#[derive(Clone, Debug)]
pub struct FlowMesh(Client);

port!(LumId);
port!(Runmesh);
port!(FlowMesh);

#[allow(clippy::missing_errors_doc, reason = "said once, at each type")]
impl LumId {
    /// How many times a token was asked about.
    pub async fn introspection_count(&self) -> Result<usize> {
        Ok(self.0.get::<Count>("/introspections").await?.count)
    }

    /// Makes `token` inactive.
    pub async fn revoke(&self, token: &str) -> Result<()> {
        self.0.post("/revoke", Revocation { token: token.to_owned() }).await.map(drop)
    }

    /// Requests that departed from the contract.
    pub async fn violations(&self) -> Result<Vec<String>> {
        self.0.get("/violations").await
    }
}

#[allow(clippy::missing_errors_doc, reason = "said once, at each type")]
impl Runmesh {
    /// The accepted entries, one per task, in the order of their first arrival.
    pub async fn entries(&self) -> Result<Vec<Entry>> {
        self.0.get("/entries").await
    }

    /// The body of every balance check that carried the right secret.
    pub async fn checks(&self) -> Result<Vec<Value>> {
        self.0.get("/checks").await
    }

    /// What `email` has, as a decimal. Refused when it is none.
    pub async fn set_balance(&self, email: &str, balance: &str) -> Result<()> {
        self.0.post("/balance", Balance { email: email.to_owned(), balance: balance.to_owned() }).await.map(drop)
    }

    /// Whatever departed from the contract.
    pub async fn violations(&self) -> Result<Vec<String>> {
        self.0.get("/violations").await
    }
}

#[allow(clippy::missing_errors_doc, reason = "said once, at each type")]
impl FlowMesh {
    /// One task.
    pub async fn task(&self, task_id: &str) -> Result<Option<Task>> {
        let path = format!("/tasks/{task_id}");
        self.0.read(&path, self.0.request(Method::GET, &path)).await
    }

    /// The workers.
    pub async fn workers(&self) -> Result<Vec<Worker>> {
        self.0.get("/workers").await
    }

    /// The workflows, oldest first.
    pub async fn workflows(&self) -> Result<Vec<Workflow>> {
        self.0.get("/workflows").await
    }

    /// What ought to be billed, one entry per execution.
    pub async fn truth(&self) -> Result<Vec<TruthEntry>> {
        self.0.get("/truth").await
    }

    /// How many requests have come in.
    pub async fn request_count(&self) -> Result<usize> {
        Ok(self.0.get::<Requests>("/requests").await?.count)
    }

    /// The requests of this method to this path, query included.
    pub async fn requests_of(&self, method: &str, path: &str) -> Result<Requests> {
        let wanted = Wanted { method: Some(method.to_owned()), path: Some(path.to_owned()) };
        let request = self.0.request(Method::GET, "/requests").query(&wanted);
        self.0.read("/requests", request).await?.context("FlowMesh's control does not tell requests")
    }

    /// Ends tasks now as one execution, the first one's. How many had not ended before.
    pub async fn complete(&self, task_ids: &[String], outcome: Outcome) -> Result<usize> {
        let answer = self.0.post("/complete", Completion { task_ids: task_ids.to_vec(), outcome }).await?;
        let completed: Completed = answer.json().await.context("FlowMesh's control does not say what ended")?;
        Ok(completed.ended)
    }

    /// How long a task waits for its dispatch from now on.
    pub async fn set_dispatch_delay(&self, delay: Duration) -> Result<()> {
        self.0.post("/dispatch-delay", Delay { seconds: delay.as_secs_f64() }).await.map(drop)
    }
}
