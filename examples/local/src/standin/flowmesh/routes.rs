//! From request to answer.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::Response,
};
use futures_util::StreamExt;
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        fault::{self, Fault},
        json, media_type,
        server::Answer,
        text,
    },
    Happened, Inner, info,
    model::{Seen, Worker},
    path::{Found, Op, find},
    state::{self, State},
    streams,
};

/// More than any test sends; FlowMesh itself has no limit.
const MAX_BODY: usize = 1 << 30;
/// How much of a body is kept for those who ask what was received.
const PREFIX: usize = 512;

pub(super) async fn handle(inner: Arc<Inner>, request: Request, stop: CancellationToken) -> Answer {
    let (parts, body) = request.into_parts();
    let (at, body) = record(&inner, &parts, body);
    let method_and_path = format!("{} {}", parts.method, parts.uri.path());
    let fault = inner.fault(&method_and_path);
    let works = fault.as_ref().is_none_or(Fault::has_effect);
    let answer = if works {
        let work = async {
            let mut response = respond(&inner, parts, body, stop).await;
            add_headers(&inner, &method_and_path, &mut response);
            response
        };
        fault::answer(fault, work).await
    } else {
        // Taken in, or the client would get a broken pipe in place of the answer.
        let _ = drain(body).await;
        fault::answer(fault, async { Response::default() }).await
    };
    let seen = Box::new(super::lock(&inner.state).requests[at].clone());
    let status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
    inner.subscribers.publish(&Happened::Answered { seen, status });
    answer
}

/// Notes the request now and its body as it comes in.
fn record(inner: &Arc<Inner>, parts: &Parts, body: Body) -> (usize, Body) {
    let path_and_query = match parts.uri.path_and_query() {
        Some(path_and_query) => path_and_query.to_string(),
        None => parts.uri.to_string(),
    };
    let seen = Seen {
        method: parts.method.to_string(),
        path_and_query,
        headers: texts(&parts.headers),
        trailers: Vec::new(),
        body_len: 0,
        body_prefix: Vec::new(),
        received_at: state::now(),
    };
    let at = {
        let mut state = super::lock(&inner.state);
        state.requests.push(seen);
        state.requests.len() - 1
    };
    let inner = inner.clone();
    let counted = body.map_frame(move |frame| {
        let seen = &mut super::lock(&inner.state).requests[at];
        if let Some(chunk) = frame.data_ref() {
            seen.body_len += chunk.len() as u64;
            let wanted = PREFIX.saturating_sub(seen.body_prefix.len());
            seen.body_prefix.extend(chunk.iter().take(wanted));
        }
        if let Some(trailers) = frame.trailers_ref() {
            seen.trailers = texts(trailers);
        }
        frame
    });
    (at, Body::new(counted))
}

fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

fn add_headers(inner: &Inner, method_and_path: &str, response: &mut Response) {
    let state = super::lock(&inner.state);
    for (prefix, headers) in &state.answer_headers {
        if method_and_path.starts_with(prefix) {
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()))
                {
                    response.headers_mut().append(name, value);
                }
            }
        }
    }
}

/// An error as FastAPI writes it.
pub(super) fn detail(status: StatusCode, detail: &str) -> Response {
    json(status, &json!({"detail": detail}))
}

pub(super) fn not_found(what: &str) -> Response {
    detail(StatusCode::NOT_FOUND, &format!("{what} not found"))
}

fn ok(body: &Value) -> Response {
    json(StatusCode::OK, body)
}

/// Reads a body to its end without keeping it. Returns its length.
async fn drain(body: Body) -> Result<u64, axum::Error> {
    let mut chunks = body.into_data_stream();
    let mut length = 0;
    while let Some(chunk) = chunks.next().await {
        length += chunk?.len() as u64;
    }
    Ok(length)
}

/// The pairs of a query, decoded.
fn query(parts: &Parts) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let query = parts.uri.query().unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

async fn respond(inner: &Arc<Inner>, parts: Parts, body: Body, stop: CancellationToken) -> Response {
    let (op, ids) = match find(&parts.method, parts.uri.path()) {
        Found::Operation(op, ids) => (op, ids),
        Found::WrongMethod(allowed) => {
            let mut response = detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
            if let Ok(allowed) = HeaderValue::try_from(allowed.join(", ")) {
                response.headers_mut().insert(header::ALLOW, allowed);
            }
            return response;
        }
        Found::Redirect(path) => return redirect(&parts, &path),
        Found::Nothing => return detail(StatusCode::NOT_FOUND, "Not Found"),
    };
    let id = ids.first().map(String::as_str).unwrap_or_default();
    match op {
        Op::Serve => return streams::serve(&parts, id, body).await,
        Op::SshProxy => return streams::ssh(inner, parts, id, stop).await,
        Op::TaskLogStream => return streams::task_logs(inner, id),
        Op::WorkflowLogStream => return streams::workflow_logs(inner, id),
        Op::UploadFile | Op::UploadTrace => {
            return match drain(body).await {
                Ok(length) => ok(&json!({"ok": true, "bytes": length})),
                Err(_) => detail(StatusCode::BAD_REQUEST, "There was an error parsing the body"),
            };
        }
        _ => {}
    }
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return detail(StatusCode::BAD_REQUEST, "There was an error parsing the body");
    };
    match op {
        Op::Submit => submit(inner, &parts, &body).await,
        Op::Validate => match task_names(inner, &parts, &body) {
            Ok((names, _)) => {
                let tasks: Vec<_> = names.iter().map(|n| json!({"graph_node_name": n})).collect();
                ok(&json!({"ok": true, "count": names.len(), "tasks": tasks}))
            }
            Err(refusal) => *refusal,
        },
        Op::PostResult => post_result(inner, &body),
        Op::RegisterNode | Op::RegisterWorker | Op::CommandWorker => {
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            inner.change(|state| register(state, op, id, &body))
        }
        Op::CancelWorkflow => inner.change(|state| {
            let Some(workflow) = state.workflow(id) else {
                return not_found(&format!("Workflow '{id}'"));
            };
            for at in workflow.tasks.clone() {
                state.cancel(at);
            }
            read(state, Op::Workflow, &ids, &[])
        }),
        Op::StopTask => inner.change(|state| {
            let known = |of: &state::TaskState| of.task.task_id == *id && !of.task.unregistered;
            match state.tasks.iter().position(known) {
                Some(at) => {
                    state.cancel(at);
                    ok(&json!({"ok": true}))
                }
                None => not_found("Task"),
            }
        }),
        Op::Cordon | Op::Uncordon => inner.change(|state| match state.worker_mut(id) {
            Some(worker) => {
                let cordoned = op == Op::Cordon;
                let changed = std::mem::replace(&mut worker.cordoned, cordoned) != cordoned;
                let (node, alias) = (&worker.node_id, &worker.alias);
                ok(&json!({"node_alias": node, "alias": alias, "cordoned": cordoned, "changed": changed}))
            }
            None => not_found("worker"),
        }),
        _ => read(&inner.state(), op, &ids, &query(&parts)),
    }
}

fn redirect(parts: &Parts, path: &str) -> Response {
    let host = parts.headers.get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let query = parts.uri.query().map(|query| format!("?{query}"));
    let location = format!("http://{host}{path}{}", query.unwrap_or_default());
    let mut response = Response::default();
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Answers what only looks.
fn read(state: &State, op: Op, ids: &[String], query: &[(String, String)]) -> Response {
    let id = ids.first().map(String::as_str).unwrap_or_default();
    let asks_status = query.iter().any(|(k, v)| k == "view" && v == "status");
    let brief = asks_status && state.options.understands_view_status;
    let list = |items: Vec<Value>| ok(&Value::Array(info::filtered(items, query)));
    let task = || state.task(id).filter(|of| !of.task.unregistered);
    let logs = || ok(&json!({"entries": [], "next_cursor": null, "prev_cursor": null}));
    match op {
        Op::Workflows => {
            let mut workflows: Vec<_> = state.workflows.iter().collect();
            // A set at the real one: the ids are random, and so is this order.
            workflows.sort_by(|a, b| a.workflow_id.cmp(&b.workflow_id));
            let workflows = workflows.into_iter();
            list(workflows.map(|of| info::workflow(state, of, brief)).collect())
        }
        Op::Workflow => match state.workflow(id) {
            Some(of) => ok(&info::workflow(state, of, brief)),
            None => not_found(&format!("Workflow '{id}'")),
        },
        Op::WorkflowLogs if state.workflow(id).is_some() => logs(),
        Op::Tasks => {
            let mut tasks: Vec<_> = state.tasks.iter().filter(|of| !of.task.unregistered).collect();
            tasks.sort_by(|a, b| a.task.task_id.cmp(&b.task.task_id));
            list(tasks.into_iter().map(|of| info::task(state, of, brief)).collect())
        }
        Op::Task => match task() {
            Some(of) => text(StatusCode::OK, "application/json", info::task_text(state, of, brief)),
            None => not_found("task"),
        },
        Op::TaskLogs if task().is_some() => logs(),
        Op::Result => match task().and_then(|of| of.task.result.as_ref()) {
            Some(result) => ok(&json!({"task_id": id, "result": result})),
            None => not_found("result"),
        },
        Op::Bundle | Op::File if task().is_some() => streams::download(state.options.download_bytes),
        Op::ResultLogs if task().is_some() => text(StatusCode::OK, "text/plain", "no output\n"),
        Op::Workers => list(state.workers.iter().map(|of| info::worker(state, of)).collect()),
        Op::Worker => match state.workers.iter().find(|worker| worker.id == id) {
            Some(of) => ok(&info::worker(state, of)),
            None => not_found("worker"),
        },
        Op::Nodes => {
            list(state.nodes.iter().map(|(id, alias)| json!({"id": id, "alias": alias, "status": "ONLINE"})).collect())
        }
        Op::Health => ok(&json!({"status": "ok"})),
        _ => not_found("log stream"),
    }
}

async fn submit(inner: &Inner, parts: &Parts, body: &Bytes) -> Response {
    let (names, source) = match task_names(inner, parts, body) {
        Ok(accepted) => accepted,
        Err(refusal) => return *refusal,
    };
    let (answer, delay) = inner.change(|state| {
        let (workflow_id, task_ids) = state.submit(names, source);
        // As they were registered, before the dispatcher saw them.
        let tasks: Vec<_> = task_ids
            .iter()
            .map(|id| {
                json!({"task_id": id, "status": "PENDING", "assigned_worker": null,
                    "topic": "tasks.default", "waiting_on": [], "depends_on": [],
                    "attempts": 0, "max_attempts": 3, "load": 1})
            })
            .collect();
        let answer = json!({"ok": true, "workflow_id": workflow_id, "count": tasks.len(), "tasks": tasks});
        (answer, state.options.submit_delay)
    });
    tokio::time::sleep(delay).await;
    json(StatusCode::CREATED, &answer)
}

/// The tasks of a submission and its source, or the answer that refuses it.
fn task_names(inner: &Inner, parts: &Parts, body: &Bytes) -> Result<(Vec<String>, String), Box<Response>> {
    let refuse = |status, text: &str| Err(Box::new(detail(status, text)));
    let format = parts.headers.get("workflow-format");
    let format = format.map_or("native", |format| format.to_str().unwrap_or("?"));
    if !["native", "n8n"].contains(&format.to_ascii_lowercase().as_str()) {
        let what = format!("Unsupported workflow format: {format}");
        return refuse(StatusCode::BAD_REQUEST, &what);
    }
    let Ok(body) = std::str::from_utf8(body) else {
        return refuse(StatusCode::BAD_REQUEST, "Body must be UTF-8 encoded text");
    };
    if body.trim().is_empty() {
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, "Request body is required");
    }
    let names_in_yaml = |yaml: &str| -> Vec<String> {
        let lines = yaml.lines().map(str::trim);
        let names = lines.filter_map(|line| line.strip_prefix("- name:"));
        names.map(|name| name.trim().to_owned()).collect()
    };
    let mut names = if media_type(&parts.headers) == "application/json" {
        let value: Value = match serde_json::from_str(body) {
            Ok(value) => value,
            Err(error) => {
                let what = format!("Invalid JSON payload: {error}");
                return refuse(StatusCode::BAD_REQUEST, &what);
            }
        };
        match (&value["tasks"], &value["nodes"], &value["yaml"]) {
            (Value::Array(items), _, _) | (_, Value::Array(items), _) => {
                items.iter().map(|item| item["name"].as_str().unwrap_or("task").to_owned()).collect()
            }
            (_, _, Value::String(yaml)) => names_in_yaml(yaml),
            _ => Vec::new(),
        }
    } else {
        names_in_yaml(body)
    };
    if names.is_empty() {
        let tasks = inner.state().options.tasks_per_workflow;
        names = (1..=tasks).map(|n| format!("task-{n}")).collect();
    }
    Ok((names, body.to_owned()))
}

fn post_result(inner: &Inner, body: &Bytes) -> Response {
    let Ok(mut body) = serde_json::from_slice::<Value>(body) else {
        return detail(StatusCode::UNPROCESSABLE_ENTITY, "JSON decode error");
    };
    let Some(task_id) = body["task_id"].as_str().map(ToOwned::to_owned) else {
        return detail(StatusCode::UNPROCESSABLE_ENTITY, "Field required: task_id");
    };
    let result = body["result"].take();
    let worker = body["worker_id"].as_str();
    match inner.change(|state| state.result(&task_id, worker, result)) {
        Some(()) => ok(&json!({"ok": true, "path": format!("/data/results/{task_id}.json")})),
        None => not_found("Task"),
    }
}

fn register(state: &mut State, op: Op, node: &str, body: &Value) -> Response {
    let text = |key: &str| body[key].as_str().map(ToOwned::to_owned);
    match op {
        Op::RegisterNode => {
            let id = text("id").unwrap_or_else(|| state::random_id("nde"));
            let alias = text("alias").unwrap_or_else(|| id.clone());
            state.nodes.retain(|(known, _)| *known != id);
            state.nodes.push((id.clone(), alias.clone()));
            ok(&json!({"id": id, "alias": alias}))
        }
        Op::RegisterWorker => {
            let id = text("id").unwrap_or_else(|| state::random_id("wrk"));
            let worker = Worker {
                alias: text("alias").unwrap_or_else(|| id.clone()),
                namespace: text("namespace").unwrap_or_default(),
                node_id: node.to_owned(),
                cost_per_hour: body["cost_per_hour"].as_f64().unwrap_or(1.0),
                cordoned: false,
                added_at: state::now(),
                id,
            };
            state.add_worker(worker.clone());
            state.advance();
            ok(&info::worker(state, &worker))
        }
        _ => ok(&json!({"ok": true})),
    }
}
