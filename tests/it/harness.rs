//! The stack of one test, and what must hold at the end of every test.

pub mod browser;
pub mod collector;
pub mod direct;
pub mod documented;
pub mod http2;
mod memory;
mod name_server;
mod postgres;
mod recorder;
pub mod shared;
mod websocket;

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollgate_local::stack::{self, Envoy, PEOPLE, Ports, Stack, StackOptions, wait_for};
use tollgate_local::standin::{Entry, Seen, TruthEntry, same_amount};

pub use direct::Direct;
pub use http2::Http2;
pub use memory::Memory;
pub use name_server::NameServer;
pub use postgres::postgres_database;
pub use recorder::Recorder;
pub use shared::Shared;
pub use websocket::WebSocket;

/// How long anything may take that is not expected to take long.
pub const SOON: Duration = Duration::from_secs(20);
/// After so long without a byte nothing more is expected.
const SILENCE: Duration = Duration::from_millis(100);

/// Everything, with a client in front of it.
pub struct Edge {
    pub stack: Stack,
    pub http: reqwest::Client,
    pub dir: tempfile::TempDir,
}

/// What a client was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tollgate"))
}

pub fn envoy_binary() -> std::path::PathBuf {
    Envoy::fetched(Path::new(env!("CARGO_MANIFEST_DIR")), None).expect("`make envoy` has been run")
}

impl Edge {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With settings of Tollgate beside the stack's own; a later one of the same name wins.
    pub async fn with(settings: &[(&'static str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut all = vec![("TOLLGATE_RECONCILE_GRACE_SECS", "1".to_owned()), ("TOLLGATE_LOG", "debug".to_owned())];
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let options = StackOptions {
            tollgate: binary().to_owned(),
            envoy: envoy_binary(),
            ports: Ports::default(),
            dir: dir.path().to_owned(),
            settings: all,
            tollgate_output: None,
            envoy_output: None,
        };
        let stack = Stack::start(options).await.expect("the stack starts");
        Self { stack, http: stack::http_client().expect("a client"), dir }
    }

    /// Replaces Envoy by one with a bootstrap in which this text is another.
    pub async fn replace_envoy(&mut self, shipped: &str, other: &str) {
        self.change_bootstrap(&[(shipped, other)]).await;
    }

    /// Replaces Envoy by one with a bootstrap in which each of these texts is another.
    pub async fn change_bootstrap(&mut self, changes: &[(&str, &str)]) {
        self.stack.envoy.kill_hard().await.expect("killed");
        let upstream = self.stack.flowmesh.url();
        let upstream = upstream.trim_start_matches("http://");
        let mut bootstrap =
            self.stack.tollgate.envoy_config("127.0.0.1:0", "127.0.0.1:0", upstream).await.expect("printed");
        for (shipped, other) in changes {
            assert!(bootstrap.contains(shipped), "{shipped} is in the bootstrap");
            bootstrap = bootstrap.replace(shipped, other);
        }
        self.stack.envoy =
            Envoy::start(&envoy_binary(), &bootstrap, self.dir.path(), 2, None).await.expect("Envoy starts");
        self.stack.envoy.wait_for_tollgate(SOON).await.expect("healthy");
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.stack.envoy.edge_url()))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// Submits a workflow of so many tasks; its id and theirs.
    pub async fn submit(&self, token: &str, tasks: usize) -> (String, Vec<String>) {
        let answer = answer(self.submission(token, tasks)).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        let body = answer.json();
        let id = |value: &Value| value.as_str().expect("an id").to_owned();
        let tasks = body["tasks"].as_array().expect("tasks").iter().map(|task| id(&task["task_id"])).collect();
        (id(&body["workflow_id"]), tasks)
    }

    pub fn submission(&self, token: &str, tasks: usize) -> RequestBuilder {
        let tasks: Vec<Value> = (0..tasks).map(|n| json!({"name": format!("task-{n}")})).collect();
        self.post("/api/v1/workflows").bearer_auth(token).json(&json!({"tasks": tasks}))
    }

    /// What the task's worker does when it is done.
    pub async fn post_result(&self, token: &str, task: &str) {
        let worker = self.stack.flowmesh.task(task).and_then(|task| task.assigned_worker);
        let body = json!({"task_id": task, "worker_id": worker, "metadata": {}, "received_at": "2026-11-22T08:00:00Z",
            "result": {"ok": true}});
        let answer = answer(self.post("/api/v1/results").bearer_auth(token).json(&body)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    /// Waits until Runmesh has so many entries.
    pub async fn entries(&self, count: usize) -> Vec<Entry> {
        let runmesh = &self.stack.runmesh;
        wait_for(format!("{count} entries at Runmesh"), SOON, async || {
            Some(runmesh.entries()).filter(|entries| entries.len() >= count)
        })
        .await
        .unwrap_or_else(|error| {
            panic!("{error}; there are {:?}; {:#?}", runmesh.entries(), self.stack.tollgate.lines())
        })
    }

    /// Waits until a metric of Tollgate's has a value.
    pub async fn metric(&self, name: &str, wanted: f64) {
        let last = std::cell::Cell::new(None);
        wait_for(format!("{name} to be {wanted}"), SOON, async || {
            last.set(self.stack.tollgate.metric(name).await);
            last.get().filter(|value| (value - wanted).abs() < f64::EPSILON)
        })
        .await
        .unwrap_or_else(|error| panic!("{error}; it is {:?}; {:#?}", last.get(), self.stack.tollgate.lines()));
    }

    /// Waits until Tollgate's log has this text.
    pub async fn says(&self, text: &str) {
        let said = async || self.stack.tollgate.lines().iter().any(|line| line.contains(text)).then_some(());
        let said = wait_for(format!("Tollgate to say {text:?}"), SOON, said).await;
        said.unwrap_or_else(|error| panic!("{error}; {:#?}", self.stack.tollgate.lines()));
    }

    /// Waits until nothing is left to settle or to post.
    pub async fn quiet(&self) {
        self.metric("tollgate_due_tasks", 0.0).await;
        self.metric("tollgate_charges_pending", 0.0).await;
    }

    /// Sends bytes as they are and reads the answer to its end.
    pub async fn raw(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect().await;
        // What is refused early is not read to its end; the answer is there all the same.
        let _ = stream.write_all(request.as_ref()).await;
        read_answer(&mut stream).await
    }

    /// Sends bytes that may be more than one request, and reads until the edge has nothing more to say.
    pub async fn raw_until_silent(&self, requests: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect().await;
        let _ = stream.write_all(requests.as_ref()).await;
        let mut answer = Vec::new();
        let mut patience = SOON;
        while let Ok(Ok(1..)) = tokio::time::timeout(patience, stream.read_buf(&mut answer)).await {
            patience = SILENCE;
        }
        parse(&String::from_utf8_lossy(&answer))
    }

    /// What FlowMesh got from clients, without Tollgate's own questions.
    pub fn seen(&self) -> Vec<Seen> {
        let own = |seen: &Seen| seen.header("user-agent").is_some_and(|agent| agent.starts_with("tollgate/"));
        self.stack.flowmesh.requests().into_iter().filter(|seen| !own(seen)).collect()
    }

    pub async fn connect(&self) -> TcpStream {
        let address = self.stack.envoy.edge_url().trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(address).await.expect("the edge listens");
        // As every HTTP client does: else the window of HTTP/2 is refilled at the pace of delayed acknowledgements.
        stream.set_nodelay(true).expect("set");
        stream
    }

    /// What must hold at the end of every test: the stand-ins were spoken to as agreed, what Runmesh has is the truth of
    /// FlowMesh, and no log holds a token or an e-mail address.
    pub async fn finish(self) {
        self.quiet().await;
        self.assert_billed_as_truth(&self.stack.flowmesh.truth());
        self.finish_unbilled().await;
    }

    /// As [`Self::finish`], for tests after which something is rightly not billed.
    pub async fn finish_unbilled(self) {
        self.assert_polite();
        self.assert_metrics_documented().await;
        self.stack.kill_hard().await;
    }

    /// Whatever the test has brought about, `/metrics` has no label with a value that docs/METRICS.md does not name.
    async fn assert_metrics_documented(&self) {
        let answer = self.http.get(format!("{}/metrics", self.stack.tollgate.admin_url())).send().await;
        // A test may have ended it, or its ledger.
        if let Ok(answer) = answer.and_then(reqwest::Response::error_for_status) {
            documented::Exposed::parse(&answer.text().await.expect("text")).assert_documented();
        }
    }

    pub fn assert_billed_as_truth(&self, truth: &[TruthEntry]) {
        let entries = self.stack.runmesh.entries();
        for expected in truth {
            let found: Vec<&Entry> =
                entries.iter().filter(|entry| expected.task_ids.contains(&entry.task_id)).collect();
            let [entry] = found.as_slice() else { panic!("{expected:?} is billed as {found:?}") };
            assert_eq!(entry.cost, expected.total_cost, "{entry:?}");
            assert!(same_amount(&entry.cost_per_hour.to_string(), &expected.cost_per_hour.to_string()), "{entry:?}");
            assert_eq!(entry.task_status, expected.status, "{entry:?}");
        }
        assert_eq!(entries.len(), truth.len(), "billed: {entries:#?}; the truth: {truth:#?}");
    }

    fn assert_polite(&self) {
        assert_eq!(self.stack.lum_id.violations(), Vec::<String>::new());
        assert_eq!(self.stack.runmesh.violations(), Vec::<String>::new());
        let lines = [self.stack.tollgate.lines(), self.stack.envoy.lines()].concat();
        for line in &lines {
            for person in PEOPLE {
                assert!(!line.contains(person.token) && !line.contains(person.email), "in a log: {line}");
            }
            assert!(!line.contains("panicked"), "{line}");
        }
    }
}

/// A refusal as agreed: JSON that FlowMesh's clients show, with an id to ask about it by.
pub fn assert_refused(answer: &Answer, status: u16, body: &str, headers: &[(&str, &str)]) {
    assert_eq!((answer.status, answer.body.as_str()), (status, body));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("x-request-id").is_some_and(|id| id.len() == 36), "{answer:?}");
    for (name, value) in headers {
        assert_eq!(answer.header(name), Some(*value), "{answer:?}");
    }
}

pub async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    Answer { status, headers, body: response.text().await.expect("a body") }
}

/// Reads one answer from a connection, to its end.
pub async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> Answer {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, async {
        // A reset after the answer is an end, too.
        while !is_whole(&answer) && stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
    });
    read.await.expect("the edge answers in time");
    parse(&String::from_utf8_lossy(&answer))
}

/// Whether all of an answer with a `content-length` is there.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((_, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = parse(&text).header("content-length").and_then(|length| length.parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
}

/// An answer as it was on the wire; a chunked body stays so.
pub fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Answer { status: status.unwrap_or(0), headers, body: body.to_owned() }
}
