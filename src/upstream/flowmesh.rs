//! FlowMesh, read-only: tasks, workflows and workers, as settling, sweeping and the worker directory need them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Number;
use serde_json::value::RawValue;

use super::health::Health;
use super::times::{Call, Times};
use super::{CallError, Http, parse_object, read_bounded};
use crate::config::{self, expose};

/// One task or workflow; a task holds its whole spec.
const ITEM_LIMIT: usize = 64 * 1024 * 1024;
/// A task or worker that a request waits for: a huge one is not worth it.
const LOOKUP_LIMIT: usize = 1024 * 1024;
/// A list of everything FlowMesh remembers.
const LIST_LIMIT: usize = 256 * 1024 * 1024;
/// A 404 that is not FlowMesh's own word for "no such thing".
const NOT_FOUND: CallError = CallError::Status { status: 404, retry_after: None };

/// The client.
#[derive(Debug, Clone)]
pub struct FlowMesh {
    calls: Calls,
    http: Http,
    config: config::Flowmesh,
}

/// How long each kind of call takes; the two of which a request waits for the answer are apart.
#[derive(Debug, Clone)]
struct Calls {
    task: Call,
    task_status: Call,
    workflow: Call,
    workflows: Call,
    workers: Call,
    worker: Call,
}

impl Calls {
    fn new(times: &Times) -> Self {
        let call = |name| times.of("flowmesh", name);
        Self {
            task: call("task"),
            task_status: call("task_status"),
            workflow: call("workflow"),
            workflows: call("workflows"),
            workers: call("workers"),
            worker: call("worker"),
        }
    }
}

/// A task, as far as billing is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Task {
    pub task_id: String,
    pub workflow_id: Option<String>,
    pub status: String,
    #[serde(default)]
    pub assigned_worker: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub usages: Vec<Usage>,
}

/// One entry of a task's `usages`. Numbers stay the text that FlowMesh wrote, so that no digit can change on the way;
/// what they are worth is settlement's business.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Usage {
    #[serde(default)]
    pub started_at: Option<String>,
    #[serde(default)]
    pub finished_at: Option<String>,
    #[serde(default, deserialize_with = "number_text")]
    pub runtime_sec: Option<String>,
    #[serde(default, deserialize_with = "number_text")]
    pub cost_per_hour: Option<String>,
    #[serde(default, deserialize_with = "number_text")]
    pub total_cost: Option<String>,
    #[serde(default)]
    pub status: Option<String>,
}

/// A workflow with its tasks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Workflow {
    pub workflow_id: String,
    #[serde(default, deserialize_with = "timestamp")]
    pub submitted_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub task_ids: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub completed_tasks: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub failed_tasks: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub cancelled_tasks: Vec<String>,
}

/// A line of the workflow list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WorkflowSummary {
    pub workflow_id: String,
    #[serde(default, deserialize_with = "timestamp")]
    pub submitted_at: Option<Timestamp>,
}

/// A worker and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Worker {
    pub id: String,
    #[serde(default)]
    pub namespace: Option<String>,
}

impl FlowMesh {
    /// `http` carries the time limit of a call where nobody waits.
    #[must_use]
    pub fn new(http: Http, config: config::Flowmesh) -> Self {
        Self { calls: Calls::new(&http.times), http, config }
    }

    /// Whether it answers.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.http.health()
    }

    /// A task; `None` when FlowMesh does not know it (any more).
    ///
    /// # Errors
    /// [`CallError`] when FlowMesh did not give the agreed answer.
    pub async fn task(&self, task_id: &str) -> Result<Option<Task>, CallError> {
        let _measured = self.calls.task.begin();
        self.get(&self.http, &format!("/api/v1/tasks/{task_id}"), ITEM_LIMIT).await
    }

    /// A task without its usages, for who waits only `limit` to know its worker.
    ///
    /// # Errors
    /// As [`FlowMesh::task`].
    pub async fn task_status(&self, task_id: &str, limit: Duration) -> Result<Option<Task>, CallError> {
        let _measured = self.calls.task_status.begin();
        let path = format!("/api/v1/tasks/{task_id}?view=status");
        self.get(&self.http.with_limit(limit), &path, LOOKUP_LIMIT).await
    }

    /// A workflow; `None` when FlowMesh does not know it (any more).
    ///
    /// # Errors
    /// As [`FlowMesh::task`].
    pub async fn workflow(&self, workflow_id: &str) -> Result<Option<Workflow>, CallError> {
        let _measured = self.calls.workflow.begin();
        self.get(&self.http, &format!("/api/v1/workflows/{workflow_id}"), ITEM_LIMIT).await
    }

    /// Every workflow FlowMesh remembers.
    ///
    /// # Errors
    /// As [`FlowMesh::task`].
    pub async fn workflows(&self) -> Result<Vec<WorkflowSummary>, CallError> {
        let _measured = self.calls.workflows.begin();
        // Counts instead of lists keep a long answer short; older servers ignore the parameter.
        self.list("/api/v1/workflows?view=status").await
    }

    /// Every worker.
    ///
    /// # Errors
    /// As [`FlowMesh::task`].
    pub async fn workers(&self) -> Result<Vec<Worker>, CallError> {
        let _measured = self.calls.workers.begin();
        self.list("/api/v1/workers").await
    }

    /// One worker, for who waits only `limit` to know it.
    ///
    /// # Errors
    /// As [`FlowMesh::task`].
    pub async fn worker(&self, worker_id: &str, limit: Duration) -> Result<Option<Worker>, CallError> {
        let _measured = self.calls.worker.begin();
        self.get(&self.http.with_limit(limit), &format!("/api/v1/workers/{worker_id}"), LOOKUP_LIMIT).await
    }

    /// Whether FlowMesh answers at all. It does so to anybody.
    ///
    /// # Errors
    /// As [`FlowMesh::task`].
    pub async fn healthy(&self) -> Result<(), CallError> {
        let response = self.send(&self.http, &self.config.base_url.join("/healthz")).await?;
        if response.status() == StatusCode::OK { Ok(()) } else { Err(CallError::of_status(&response)) }
    }

    /// A list without the items that are not as agreed: one odd item must not hide all the others.
    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, CallError> {
        let items = self.get(&self.http, path, LIST_LIMIT).await.and_then(|items| items.ok_or(NOT_FOUND));
        // Every FlowMesh has these lists: who answers otherwise is none, or nobody who can be worked with.
        let items: Vec<Box<RawValue>> = items.inspect_err(|error| self.http.health.failed(error, Instant::now()))?;
        let count = items.len();
        let read: Vec<T> = items.iter().filter_map(|item| serde_json::from_str(item.get()).ok()).collect();
        if read.len() < count {
            let odd = count - read.len();
            tracing::error!(path, odd, "{odd} of {count} items of FlowMesh's {path} are not as agreed and left out");
        }
        Ok(read)
    }

    async fn send(&self, http: &Http, url: &str) -> Result<Response, CallError> {
        http.send(|client| match &self.config.api_key {
            Some(key) => client.get(url).bearer_auth(expose(&key.get())),
            None => client.get(url),
        })
        .await
    }

    async fn get<T: DeserializeOwned>(&self, http: &Http, path: &str, size: usize) -> Result<Option<T>, CallError> {
        let response = self.send(http, &self.config.base_url.join(path)).await?;
        match response.status() {
            StatusCode::OK => Ok(Some(serde_json::from_slice(&read_bounded(response, size).await?)?)),
            StatusCode::NOT_FOUND => {
                // FlowMesh's own word, and not that of something in between which does not know FlowMesh's paths.
                #[derive(Deserialize)]
                struct Unknown {
                    #[serde(rename = "detail")]
                    _detail: String,
                }
                if parse_object::<Unknown>(&read_bounded(response, LOOKUP_LIMIT).await?).is_ok() {
                    return Ok(None);
                }
                self.http.health.failed(&NOT_FOUND, Instant::now());
                Err(NOT_FOUND)
            }
            _ => Err(CallError::of_status(&response)),
        }
    }
}

/// Whether a task or workflow status is final. One that this version does not know is not.
#[must_use]
pub fn is_terminal(status: &str) -> bool {
    matches!(status, "DONE" | "FAILED" | "CANCELLED")
}

fn null_as_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A time with an offset, or without one: then it is UTC. Anything else is no time.
fn timestamp<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    let utc = || text.parse::<DateTime>().and_then(|time| time.to_zoned(TimeZone::UTC)).map(|time| time.timestamp());
    Ok(text.parse().or_else(|_| utc()).ok())
}

/// The text of a JSON number, or of a string that holds one; `None` for anything else.
fn number_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let Some(raw) = Option::<Box<RawValue>>::deserialize(from)? else { return Ok(None) };
    let text = serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
    let text = text.trim();
    Ok(serde_json::from_str::<Number>(text).is_ok().then(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wiremock::matchers::{header, method, path, query_param};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::config::BaseUrl;

    fn client_of(server: &MockServer) -> FlowMesh {
        let config = config::Flowmesh { base_url: BaseUrl::of_test(&server.uri()), api_key: Some("key".into()) };
        FlowMesh::new(Http::new(&config.base_url, Duration::from_secs(2)).expect("client"), config)
    }

    #[tokio::test]
    async fn a_task_is_read_with_the_api_key_and_unknown_fields_are_ignored() {
        let server = MockServer::start().await;
        let task = json!({"task_id": "tsk-1", "workflow_id": "wfl-1", "status": "DONE", "assigned_worker": "wrk-9",
            "merged_children": null, "spec": {"a": [1]}, "usages": [{"started_at": "2026-11-22T08:00:02Z",
            "finished_at": "2026-11-22T08:01:14.5Z", "runtime_sec": 72.5, "hardware": {}, "cost_per_hour": 1.5,
            "total_cost": 0.030_208_333_333_333_334, "status": "DONE"}]});
        Mock::given(method("GET"))
            .and(path("/api/v1/tasks/tsk-1"))
            .and(header("authorization", "Bearer key"))
            .respond_with(ResponseTemplate::new(200).set_body_json(task))
            .mount(&server)
            .await;
        let task = client_of(&server).task("tsk-1").await.expect("answered").expect("known");
        assert_eq!(task.assigned_worker.as_deref(), Some("wrk-9"));
        assert_eq!(task.usages.first().and_then(|usage| usage.total_cost.as_deref()), Some("0.030208333333333334"));
    }

    #[tokio::test]
    async fn who_answers_and_is_no_flowmesh_is_no_healthy_one() {
        let server = MockServer::start().await;
        let task = json!({"task_id": "tsk-1", "status": "DONE"});
        for (at, answer) in [
            ("/api/v1/tasks/tsk-1", ResponseTemplate::new(200).set_body_json(task)),
            ("/api/v1/tasks/tsk-2", ResponseTemplate::new(404).set_body_json(json!({"detail": "no such task"}))),
            ("/api/v1/workers", ResponseTemplate::new(200).set_body_string("<html>welcome</html>")),
            ("/api/v1/workflows", ResponseTemplate::new(404).set_body_json(json!({"detail": "Not Found"}))),
        ] {
            Mock::given(path(at)).respond_with(answer).mount(&server).await;
        }
        let flowmesh = client_of(&server);
        let is_failing = || flowmesh.health().account(Instant::now()).is_failing;
        let answers = async || {
            assert!(flowmesh.task("tsk-1").await.is_ok_and(|task| task.is_some()));
            assert!(flowmesh.task("tsk-2").await.is_ok_and(|task| task.is_none()));
            assert!(!is_failing(), "one that knows no such task is well");
        };
        answers().await;
        assert!(flowmesh.workers().await.is_err() && is_failing());
        answers().await;
        assert!(flowmesh.workflows().await.is_err() && is_failing());
        answers().await;
        // Nothing is mounted there: it is not FlowMesh that says so.
        assert!(flowmesh.task("tsk-3").await.is_err() && is_failing());
    }

    #[tokio::test]
    async fn a_task_without_usages_or_with_null_is_a_task_with_none_and_404_is_unknown() {
        let server = MockServer::start().await;
        Mock::given(path("/api/v1/tasks/a"))
            .respond_with(ResponseTemplate::new(200).set_body_json(json!({"task_id": "a", "workflow_id": null,
                "status": "PENDING", "usages": null})))
            .mount(&server)
            .await;
        let flowmesh = client_of(&server);
        assert!(flowmesh.task("a").await.expect("answered").expect("known").usages.is_empty());
        // wiremock's own 404 has no body: it says nothing of the task.
        assert_eq!(flowmesh.task("b").await.expect_err("not FlowMesh's word").kind(), "status");
        let unknown = ResponseTemplate::new(404).set_body_json(json!({"detail": "Task not found"}));
        Mock::given(path("/api/v1/tasks/c")).respond_with(unknown).mount(&server).await;
        assert_eq!(flowmesh.task("c").await.expect("answered"), None);
    }

    #[tokio::test]
    async fn an_odd_item_of_a_list_hides_no_other_one() {
        let server = MockServer::start().await;
        Mock::given(path("/api/v1/workflows"))
            .respond_with(ResponseTemplate::new(200).set_body_json(json!([
                {"workflow_id": "w1", "submitted_at": null}, "odd", {"submitted_at": "2026-11-22T08:00:00Z"},
                {"workflow_id": "w2", "submitted_at": "2026-11-22T08:00:00"},
                {"workflow_id": "w3", "submitted_at": "soon"}])))
            .mount(&server)
            .await;
        let list = client_of(&server).workflows().await.expect("answered");
        let times: Vec<_> = list.iter().map(|w| (w.workflow_id.as_str(), w.submitted_at)).collect();
        let eight = "2026-11-22T08:00:00Z".parse().ok();
        assert_eq!(times, [("w1", None), ("w2", eight), ("w3", None)]);
    }

    #[tokio::test]
    async fn the_workflow_list_asks_for_counts_and_takes_lists_too() {
        let server = MockServer::start().await;
        Mock::given(path("/api/v1/workflows"))
            .and(query_param("view", "status"))
            .respond_with(ResponseTemplate::new(200).set_body_json(json!([
                {"workflow_id": "w1", "submitted_at": "2026-11-22T08:00:00.25Z", "task_ids": ["t"]},
                {"workflow_id": "w2", "submitted_at": "2026-11-22T08:00:00+00:00", "completed_tasks": 3}])))
            .mount(&server)
            .await;
        let list = client_of(&server).workflows().await.expect("answered");
        assert_eq!(list.iter().map(|w| w.workflow_id.as_str()).collect::<Vec<_>>(), ["w1", "w2"]);
    }
}
