//! What FlowMesh is made of, as its owner sees it.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// The status of a task; workflows use all but [`Status::Cancelling`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Waiting for a worker.
    Pending,
    /// On a worker.
    Dispatched,
    /// On a worker that has been told to stop.
    Cancelling,
    /// Ended well.
    Done,
    /// Ended badly.
    Failed,
    /// Ended early, by request.
    Cancelled,
}

impl Status {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Dispatched => "DISPATCHED",
            Self::Cancelling => "CANCELLING",
            Self::Done => "DONE",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worker {
    /// `wrk-…`, or whatever it was added as.
    pub id: String,
    /// Its name on its node.
    pub alias: String,
    /// Whose hardware it is.
    pub namespace: String,
    /// The node it runs on.
    pub node_id: String,
    /// What an hour on it costs.
    pub cost_per_hour: f64,
    /// Whether it is kept from getting new tasks.
    pub cordoned: bool,
    /// When it appeared.
    pub added_at: Timestamp,
}

/// What one execution used and cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// When the worker began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// How long that was.
    pub runtime_sec: f64,
    /// The price of an hour.
    pub cost_per_hour: f64,
    /// What it cost.
    pub total_cost: Number,
    /// How it ended.
    pub status: Status,
}

/// A task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// `tsk-…`
    pub task_id: String,
    /// The workflow it is part of.
    pub workflow_id: String,
    /// Its name in the submission.
    pub name: String,
    /// Where it stands.
    pub status: Status,
    /// The worker it is or was on.
    pub assigned_worker: Option<String>,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When it was dispatched.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Filled at the terminal transition; stays empty when nothing ran.
    pub usages: Vec<Usage>,
    /// The `result` that its worker posted.
    pub result: Option<Value>,
    /// Whether FlowMesh has forgotten it: 404 from then on.
    pub unregistered: bool,
}

/// A workflow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workflow {
    /// `wfl-…`
    pub workflow_id: String,
    /// Its tasks, in the order of the submission.
    pub task_ids: Vec<String>,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When one of its tasks last moved.
    pub updated_at: Timestamp,
    /// Where it stands. FAILED as soon as one task failed, whatever the others do.
    pub status: Status,
}

/// How a task ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// DONE, FAILED or CANCELLED.
    pub status: Status,
    /// How long it ran.
    pub runtime_sec: f64,
    /// The price of an hour.
    pub cost_per_hour: f64,
    /// What it cost; taken as it is, whether or not it fits the other two.
    pub total_cost: Number,
    /// Whether anything ran at all. Without it, `usages` stays empty.
    pub usage: bool,
}

impl Outcome {
    /// An end after `runtime_sec` at `cost_per_hour`, with the cost that FlowMesh would compute.
    #[must_use]
    pub fn after(status: Status, runtime_sec: f64, cost_per_hour: f64) -> Self {
        Self { status, runtime_sec, cost_per_hour, total_cost: cost(runtime_sec, cost_per_hour), usage: true }
    }

    /// DONE after `runtime_sec` at `cost_per_hour`.
    #[must_use]
    pub fn done(runtime_sec: f64, cost_per_hour: f64) -> Self {
        Self::after(Status::Done, runtime_sec, cost_per_hour)
    }

    /// FAILED after `runtime_sec` at `cost_per_hour`.
    #[must_use]
    pub fn failed(runtime_sec: f64, cost_per_hour: f64) -> Self {
        Self::after(Status::Failed, runtime_sec, cost_per_hour)
    }

    /// An end before anything ran.
    #[must_use]
    pub fn without_usage(status: Status) -> Self {
        Self { usage: false, ..Self::after(status, 0.0, 0.0) }
    }
}

/// What a run costs, computed like FlowMesh does: in floating point.
pub(super) fn cost(runtime_sec: f64, cost_per_hour: f64) -> Number {
    Number::from_f64(runtime_sec * cost_per_hour / 3600.0).unwrap_or_else(|| Number::from(0))
}

/// How FlowMesh behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// From submission to dispatch. Zero: dispatched before the submission is answered.
    pub dispatch_delay: Duration,
    /// From a result POST, or from the cancellation of a running task, to the terminal status.
    pub terminal_delay: Duration,
    /// Whether `?view=status` means anything; older servers ignore it.
    pub understands_view_status: bool,
    /// How many tasks a submission has whose body does not say.
    pub tasks_per_workflow: usize,
    /// How long a submission takes to be answered *after* its workflow exists.
    pub submit_delay: Duration,
    /// The size of bundles and artifacts.
    pub download_bytes: usize,
    /// From one event of a log stream to the next.
    pub event_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dispatch_delay: Duration::ZERO,
            terminal_delay: Duration::from_millis(300),
            understands_view_status: true,
            tasks_per_workflow: 1,
            submit_delay: Duration::ZERO,
            download_bytes: 1024,
            event_interval: Duration::from_millis(200),
        }
    }
}

/// One execution that ought to be billed once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TruthEntry {
    /// The workflow of the first of its tasks.
    pub workflow_id: String,
    /// The tasks that show it: one, or all of a merged batch.
    pub task_ids: Vec<String>,
    /// Where it ran.
    pub assigned_worker: String,
    /// How it ended.
    pub status: String,
    /// What it cost: the reported number digit for digit, in plain notation.
    pub total_cost: String,
    /// How long it ran.
    pub runtime_sec: f64,
    /// The price of an hour.
    pub cost_per_hour: Number,
}

/// One request that was received.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query, as they were sent.
    pub path_and_query: String,
    /// Names in lower case and values, duplicates kept.
    pub headers: Vec<(String, String)>,
    /// The same of what followed a chunked body, once that has arrived.
    pub trailers: Vec<(String, String)>,
    /// How much of the body has arrived.
    pub body_len: u64,
    /// Its first bytes.
    pub body_prefix: Vec<u8>,
    /// When the head arrived.
    pub received_at: Timestamp,
}

impl Seen {
    /// The values of a header, in the order they were sent.
    #[must_use]
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_values(name).first().copied()
    }

    /// Path and query with the value of `token` hidden.
    fn shown(&self) -> String {
        let Some((path, query)) = self.path_and_query.split_once('?') else {
            return self.path_and_query.clone();
        };
        let query: Vec<_> = query
            .split('&')
            .map(|pair| match pair.split_once('=') {
                // An encoded key may spell `token` too.
                Some((key, _)) if key.contains('%') || key.to_ascii_lowercase().contains("tok") => {
                    format!("{key}=…")
                }
                _ => pair.to_owned(),
            })
            .collect();
        format!("{path}?{}", query.join("&"))
    }
}

/// What a subscriber is told. Displayed as one line that gives no token away.
#[derive(Clone, Debug)]
pub enum Happened {
    /// A request was answered.
    Answered {
        /// The request.
        seen: Box<Seen>,
        /// The status of the answer; none when the connection was closed instead.
        status: Option<u16>,
    },
    /// A task has ended.
    Ended(Box<Task>),
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { seen, status } => {
                write!(f, "{} {} → ", seen.method, seen.shown())?;
                match status {
                    Some(status) => write!(f, "{status}")?,
                    None => f.write_str("closed")?,
                }
                for (label, header) in
                    [("principal", "x-flowmesh-principal-id"), ("supplier", "x-flowmesh-supplier-id")]
                {
                    if let Some(value) = seen.header(header) {
                        write!(f, ", {label} {value}")?;
                    }
                }
                Ok(())
            }
            Self::Ended(task) => {
                write!(f, "{} {}", task.task_id, task.status)?;
                match task.usages.first() {
                    Some(usage) => {
                        let worker = task.assigned_worker.as_deref().unwrap_or("?");
                        let (seconds, cost) = (usage.runtime_sec, &usage.total_cost);
                        write!(f, " after {seconds} s on {worker}: ${cost}")
                    }
                    None => f.write_str(", nothing ran"),
                }
            }
        }
    }
}
