//! What FlowMesh says about its things, in its own JSON, and what follows from that for billing.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    super::decimal::plain_decimal,
    model::{Status, Task, TruthEntry, Worker},
    state::{State, TaskState, WorkflowState},
};

fn seconds(time: Timestamp) -> f64 {
    time.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64()
}

/// `TaskInfo`, patched.
pub(super) fn task(state: &State, of: &TaskState, brief: bool) -> Value {
    let task = &of.task;
    let workflow = state.workflow(&task.workflow_id);
    let usages: Vec<_> = task
        .usages
        .iter()
        .map(|usage| {
            json!({
                "started_at": usage.started_at.to_string(),
                "finished_at": usage.finished_at.to_string(),
                "runtime_sec": usage.runtime_sec,
                "hardware": {},
                "cost_per_hour": usage.cost_per_hour,
                "total_cost": usage.total_cost,
                "status": usage.status.as_str(),
            })
        })
        .collect();
    let mut info = json!({
        "task_id": task.task_id,
        "workflow_id": task.workflow_id,
        "owner_id": "admin",
        "org_id": "local",
        "supplier_id": "",
        "graph_node_name": task.name,
        "status": task.status.as_str(),
        "assigned_worker": task.assigned_worker,
        "submitted_at": task.submitted_at.to_string(),
        "submitted_ts": seconds(task.submitted_at),
        "finished_ts": task.finished_at.map(seconds),
        "parent_task_id": null,
        "merged_parent_id": null,
        "merged_children": null,
        "usages": usages,
        "topic": "tasks.default",
        "depends_on": [],
        "pending_dependencies": [],
        "attempts": u8::from(task.started_at.is_some()),
        "max_attempts": 3,
        "load": 1,
        "error": if task.status == Status::Failed { json!("the task failed") } else { Value::Null },
        "latest_update": null,
        "spec": {"taskType": "inference", "resources": {"hardware": {"gpu": {"count": 1}}}},
        "source_yaml": workflow.map(|workflow| &workflow.source),
    });
    if let Some(info) = info.as_object_mut() {
        for (key, value) in &of.patch {
            info.insert(key.clone(), value.clone());
        }
        if brief {
            info.remove("usages");
        }
    }
    info
}

/// The text of the `TaskInfo` answer.
pub(super) fn task_text(state: &State, of: &TaskState, brief: bool) -> String {
    match &of.body {
        Some(body) => body.clone(),
        None => task(state, of, brief).to_string(),
    }
}

/// `WorkflowInfo`; with counts in place of the lists when it is to be brief.
pub(super) fn workflow(state: &State, of: &WorkflowState, brief: bool) -> Value {
    let tasks = || of.tasks.iter().map(|&at| &state.tasks[at].task);
    let pick = |wanted: fn(Status) -> bool| {
        let picked: Vec<&Task> = tasks().filter(|task| wanted(task.status)).collect();
        if brief {
            return json!(picked.len());
        }
        picked.iter().map(|task| json!(task.task_id)).collect()
    };
    json!({
        "workflow_id": of.workflow_id,
        "task_ids": pick(|_| true),
        "submitted_at": of.submitted_at.to_string(),
        "updated_at": of.updated_at.to_string(),
        "status": state.workflow_status(of).as_str(),
        "dispatched_tasks": pick(|s| matches!(s, Status::Dispatched | Status::Cancelling)),
        "completed_tasks": pick(|s| s == Status::Done),
        "failed_tasks": pick(|s| s == Status::Failed),
        "cancelled_tasks": pick(|s| s == Status::Cancelled),
    })
}

/// `WorkerInfo`.
pub(super) fn worker(state: &State, of: &Worker) -> Value {
    let busy = state
        .tasks
        .iter()
        .any(|known| !known.task.status.is_terminal() && known.task.assigned_worker.as_deref() == Some(of.id.as_str()));
    json!({
        "id": of.id,
        "alias": of.alias,
        "namespace": of.namespace,
        "cluster": "local",
        "node_id": of.node_id,
        "node_alias": of.node_id,
        "status": if busy { "BUSY" } else { "IDLE" },
        "cost_per_hour": of.cost_per_hour,
        "cordoned": of.cordoned,
        "stale": false,
        "tags": [],
        "hardware": {},
        "started_at": of.added_at.to_string(),
    })
}

/// The members of `list` whose fields agree with the query: exact matches, repeated keys meaning OR,
/// unknown keys ignored, and at most `limit` of them.
pub(super) fn filtered(list: Vec<Value>, query: &[(String, String)]) -> Vec<Value> {
    let limit =
        query.iter().find(|(key, _)| key == "limit").and_then(|(_, value)| value.parse().ok()).unwrap_or(usize::MAX);
    let agrees = |item: &Value| {
        query.iter().all(|(key, _)| {
            let Some(field) = item.get(key) else {
                return true;
            };
            let mut values = query.iter().filter(|(other, _)| other == key);
            values.any(|(_, value)| matches(field, value))
        })
    };
    list.into_iter().filter(agrees).take(limit).collect()
}

fn matches(field: &Value, value: &str) -> bool {
    match field {
        Value::Null => matches!(value, "" | "null" | "None"),
        Value::String(text) => text == value,
        Value::Array(items) => items.iter().any(|item| matches(item, value)),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => field.to_string().as_str() == value,
    }
}

/// What ought to be billed, read from the answers that FlowMesh gives: the billable usage of each task
/// that has one, each execution once.
pub(super) fn truth(state: &State) -> Vec<TruthEntry> {
    let mut entries: Vec<((String, String, String), TruthEntry)> = Vec::new();
    for of in &state.tasks {
        // Who writes an answer by hand knows what is to be billed; reading it back here could lose digits.
        if of.body.is_some() {
            continue;
        }
        let Some((execution, entry)) = billable(&task(state, of, false)) else {
            continue;
        };
        match entries.iter_mut().find(|(known, _)| *known == execution) {
            Some((_, known)) => known.task_ids.extend(entry.task_ids),
            None => entries.push((execution, entry)),
        }
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn billable(info: &Value) -> Option<((String, String, String), TruthEntry)> {
    let text = |of: &Value, key: &str| of[key].as_str().map(ToOwned::to_owned);
    let status = text(info, "status")?;
    if !matches!(status.as_str(), "DONE" | "FAILED" | "CANCELLED") {
        return None;
    }
    let usages = info["usages"].as_array()?;
    let usage: &Map<String, Value> = match usages.as_slice() {
        [only] => only,
        several => several.iter().find(|usage| usage["status"] == status.as_str())?,
    }
    .as_object()?;
    let usage = Value::Object(usage.clone());
    let worker = text(info, "assigned_worker")?;
    let execution = (worker.clone(), text(&usage, "started_at")?, text(&usage, "finished_at")?);
    let entry = TruthEntry {
        workflow_id: text(info, "workflow_id")?,
        task_ids: vec![text(info, "task_id")?],
        assigned_worker: worker,
        status,
        total_cost: plain_decimal(&usage["total_cost"].to_string())?,
        runtime_sec: usage["runtime_sec"].as_f64()?,
        cost_per_hour: usage["cost_per_hour"].as_number()?.clone(),
    };
    Some((execution, entry))
}
