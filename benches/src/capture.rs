//! What a real Envoy sends: log entries under the bootstrap that ships, kept in `benches/data`.
//!
//! Each file is a whole message. Its identifier, which only the first message of a stream has, is without the list of all that
//! Envoy has built in: 60 KiB, once.
//!
//! `tollgate-benches capture` takes them anew.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use envoy_types::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse,
    access_log_service_server::{AccessLogService, AccessLogServiceServer},
    stream_access_logs_message::LogEntries,
};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tollgate_local::stack::{ALICE, Envoy, Ports, Stack, StackOptions, wait_for};
use tonic::{Request, Response, Status, Streaming, server::NamedService as _};
use tonic_health::ServingStatus;

use crate::context::Context;

/// How long any of it may take.
const SOON: Duration = Duration::from_secs(20);

/// A submission that made a workflow.
pub const SUBMISSION: &str = "log_submission.binpb";
/// A worker's result.
pub const RESULT: &str = "log_result.binpb";
/// Somebody who looks at a task that is done.
pub const READ: &str = "log_read.binpb";

/// The messages that came, each with one entry here.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<StreamAccessLogsMessage>>>);

#[tonic::async_trait]
impl AccessLogService for Recorder {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

impl Recorder {
    /// The message whose only entry is of this method and path; it gets the identifier of its stream.
    fn message(&self, is_it: impl Fn(&str) -> bool) -> Option<StreamAccessLogsMessage> {
        let messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut identifier = messages.iter().find_map(|message| message.identifier.clone())?;
        if let Some(node) = &mut identifier.node {
            node.extensions.clear();
        }
        messages.iter().find_map(|message| {
            let Some(LogEntries::HttpLogs(logs)) = &message.log_entries else { return None };
            let [entry] = logs.log_entry.as_slice() else { return None };
            let found = is_it(&entry.request.as_ref()?.path);
            found.then(|| StreamAccessLogsMessage { identifier: Some(identifier.clone()), ..message.clone() })
        })
    }
}

/// Runs a submission, its result and a look at its task through Envoy, and writes the messages about them into `benches/data`.
///
/// # Errors
/// When something does not start, or an entry does not come.
pub async fn log_entries(context: &Context) -> Result<()> {
    let (root, to) = (&context.root, context.root.join("benches/data"));
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let options = StackOptions {
        tollgate: context.tollgate()?,
        envoy: Envoy::fetched(root, None)?,
        ports: Ports::default(),
        dir: dir.path().to_owned(),
        settings: Vec::new(),
        tollgate_output: None,
        envoy_output: None,
    };
    let mut stack = Stack::start(options).await?;
    let recorder = Recorder::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no port is free")?;
    let port = listener.local_addr()?.port();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(AccessLogServiceServer::<Recorder>::NAME, ServingStatus::Serving).await;
    let server = tonic::transport::Server::builder()
        .add_service(health_service)
        .add_service(AccessLogServiceServer::new(recorder.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    // Ends with this program.
    tokio::spawn(server);
    stack.envoy.kill_hard().await?;
    let upstream = stack.flowmesh.url().trim_start_matches("http://").to_owned();
    let bootstrap = stack.tollgate.envoy_config("127.0.0.1:0", "127.0.0.1:0", &upstream).await?;
    let here = format!(
        "load_assignment: {{cluster_name: recorder, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
    );
    ensure!(bootstrap.matches("load_assignment: *tollgate").count() == 1, "the bootstrap has changed");
    let bootstrap = bootstrap.replace("load_assignment: *tollgate", &here);
    stack.envoy = Envoy::start(&Envoy::fetched(root, None)?, &bootstrap, dir.path(), 1, None).await?;
    stack.envoy.wait_for_tollgate(SOON).await?;

    let task = traffic(&stack).await?;
    let read = format!("/api/v1/tasks/{task}?view=status");
    for (file, path) in [(SUBMISSION, "/api/v1/workflows"), (RESULT, "/api/v1/results"), (READ, read.as_str())] {
        let message =
            wait_for(format!("the log entry of {path}"), SOON, async || recorder.message(|is| is == path)).await?;
        let file = to.join(file);
        std::fs::write(&file, message.encode_to_vec()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    stack.stop().await
}

/// One workflow from its submission to the look at its only task, which is returned.
async fn traffic(stack: &Stack) -> Result<String> {
    let http = tollgate_local::stack::http_client()?;
    let edge = stack.envoy.edge_url();
    let submitted = http
        .post(format!("{edge}/api/v1/workflows"))
        .bearer_auth(ALICE.token)
        .json(&json!({"tasks": [{"name": "task-1"}]}))
        .send()
        .await?
        .error_for_status()?;
    let submitted: Value = submitted.json().await?;
    let Some(task) = submitted["tasks"][0]["task_id"].as_str() else { bail!("no task in {submitted}") };
    // Entries are flushed every 50 ms: each comes by itself.
    tokio::time::sleep(Duration::from_millis(300)).await;
    wait_for("the task to be dispatched", SOON, async || stack.flowmesh.task(task)?.assigned_worker).await?;
    let worker = stack.flowmesh.task(task).and_then(|task| task.assigned_worker);
    let result = json!({"task_id": task, "worker_id": worker, "metadata": {}, "received_at": "2026-11-22T08:00:00Z",
        "result": {"ok": true}});
    let posted = http.post(format!("{edge}/api/v1/results")).bearer_auth(ALICE.token).json(&result).send().await?;
    posted.error_for_status()?;
    let status = format!("{edge}/api/v1/tasks/{task}?view=status");
    wait_for("the task to be done", SOON, async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let answer: Value = http.get(&status).bearer_auth(ALICE.token).send().await.ok()?.json().await.ok()?;
        (answer["status"] == "DONE").then_some(())
    })
    .await?;
    Ok(task.to_owned())
}
