//! Stand-ins that are fast enough to measure Tollgate by, and nothing else: they answer any request of the right form, from
//! numbers that are in the ids. The tests have the stand-ins of `tollgate_local`, which look closely at what they are sent,
//! keep all of it, and search it; that costs more than what is measured here.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};

use crate::template::DIGITS;

/// The one worker, and whose it is.
const WORKERS: &str = r#"[{"id":"wrk-1","alias":"wrk-1","namespace":"acme","status":"IDLE","cost_per_hour":1.5}]"#;

/// A server on a free port of this machine. Gone when dropped.
#[derive(Debug)]
pub struct Peer {
    url: String,
    _accepting: JoinSet<()>,
}

impl Peer {
    /// Answers with what `handle` makes of path and body.
    async fn start<F>(handle: impl Fn(String, Bytes) -> F + Clone + Send + 'static) -> Result<Self>
    where
        F: Future<Output = (StatusCode, String)> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port is free")?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = connections.join_next() => {}
                    Ok((stream, _)) = listener.accept() => {
                        // Else a small answer may wait for an acknowledgement.
                        let _ = stream.set_nodelay(true);
                        let handle = handle.clone();
                        let service = service_fn(move |request| answer(handle.clone(), request));
                        // An error is a client that has gone.
                        connections.spawn(async move {
                            let http = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
                            drop(http);
                        });
                    }
                }
            }
        });
        Ok(Self { url, _accepting: accepting })
    }

    /// `http://HOST:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

async fn answer<F>(
    handle: impl Fn(String, Bytes) -> F,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible>
where
    F: Future<Output = (StatusCode, String)>,
{
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (status, text) = handle(path, body).await;
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The number at the end of an id, of a path or of a form.
fn number(text: &str) -> u64 {
    let digits = text.len().saturating_sub(DIGITS);
    text.get(digits..).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// lum.id: every token is somebody's, whose number it ends with.
#[derive(Debug)]
pub struct LumId {
    peer: Peer,
    asked: Arc<AtomicU64>,
}

impl LumId {
    /// Answers after `delay`.
    pub async fn start(delay: Duration) -> Result<Self> {
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let peer = Peer::start(move |_, body| {
            count.fetch_add(1, Ordering::Relaxed);
            let number = number(&String::from_utf8_lossy(&body));
            async move {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                let answer = format!(
                    r#"{{"active":true,"sub":"user-{number:012}","email":"user-{number:012}@example.com","username":"user-{number:012}","role":"user","scopes":["flowmesh:*","lumilake:read"],"scope":"flowmesh:* lumilake:read","token_type":"pat","iat":1790000000,"source":"native"}}"#
                );
                (StatusCode::OK, answer)
            }
        });
        Ok(Self { peer: peer.await?, asked })
    }

    /// `http://HOST:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        self.peer.url()
    }

    /// How many introspections there were.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Runmesh: takes every entry, and counts.
#[derive(Debug)]
pub struct Runmesh {
    peer: Peer,
    seen: Arc<Mutex<Entries>>,
}

/// What Runmesh was sent.
#[derive(Debug, Default)]
struct Entries {
    tasks: HashSet<String>,
    repeated: u64,
    malformed: u64,
}

impl Runmesh {
    /// Answers after `delay`.
    pub async fn start(delay: Duration) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Entries::default()));
        let entries = seen.clone();
        let peer = Peer::start(move |path, body| {
            if path.ends_with("/billing/flowmesh-entry") {
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
                match body["taskId"].as_str() {
                    Some(task) if !entries.tasks.insert(task.to_owned()) => entries.repeated += 1,
                    Some(_) => {}
                    None => entries.malformed += 1,
                }
            }
            async move {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                let answer = r#"{"code":200,"msg":"ok","data":{"sufficient":true,"balance":"5.00"}}"#;
                (StatusCode::OK, answer.to_owned())
            }
        });
        Ok(Self { peer: peer.await?, seen })
    }

    /// `http://HOST:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        self.peer.url()
    }

    /// Tasks it has an entry of; entries that came again; requests that were none.
    #[must_use]
    pub fn entries(&self) -> (u64, u64, u64) {
        let entries = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (entries.tasks.len() as u64, entries.repeated, entries.malformed)
    }
}

/// FlowMesh: every task is done and cost something; every workflow is still running.
#[derive(Debug)]
pub struct FlowMesh(Peer);

impl FlowMesh {
    /// With so many workflows, the first of which has this number. A task is of the workflow with its number modulo how many
    /// there are.
    pub async fn start(first: u64, workflows: u64) -> Result<Self> {
        let workflows = workflows.max(1);
        let peer = Peer::start(move |path, _| {
            let number = number(&path);
            let answer = if path.starts_with("/api/v1/tasks/") {
                let workflow = first + number % workflows;
                // Every execution is another one: no two begin at once.
                let started = format!("2026-11-22T08:00:00.{:09}Z", number % 1_000_000_000);
                format!(
                    r#"{{"task_id":"tsk-{number:012}","workflow_id":"wfl-{workflow:012}","owner_id":"admin","org_id":"local","supplier_id":"","status":"DONE","assigned_worker":"wrk-1","parent_task_id":null,"usages":[{{"started_at":"{started}","finished_at":"2026-11-22T09:00:00Z","runtime_sec":72.5,"hardware":{{}},"cost_per_hour":1.5,"total_cost":0.030208333333333334,"status":"DONE"}}]}}"#
                )
            } else if path.starts_with("/api/v1/workflows/") {
                format!(
                    r#"{{"workflow_id":"wfl-{number:012}","task_ids":["tsk-{number:012}"],"submitted_at":"{}","status":"DISPATCHED","dispatched_tasks":["tsk-{number:012}"],"completed_tasks":[],"failed_tasks":[],"cancelled_tasks":[]}}"#,
                    jiff::Timestamp::now()
                )
            } else if path == "/api/v1/workers" {
                WORKERS.to_owned()
            } else {
                "[]".to_owned()
            };
            std::future::ready((StatusCode::OK, answer))
        });
        Ok(Self(peer.await?))
    }

    /// `http://HOST:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        self.0.url()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_what_an_id_ends_with() {
        assert_eq!(number("/api/v1/tasks/tsk-000000000042"), 42);
        assert_eq!(number("token=lm_pat_live_bench_000000001000"), 1000);
        assert_eq!((number("/healthz"), number("")), (0, 0));
    }

    #[tokio::test]
    async fn runmesh_counts_what_comes_twice_and_what_is_no_entry() {
        let runmesh = Runmesh::start(Duration::ZERO).await.unwrap();
        let http = tollgate_local::stack::http_client().unwrap();
        for body in [r#"{"taskId":"a"}"#, r#"{"taskId":"b"}"#, r#"{"taskId":"a"}"#, "{}"] {
            let url = format!("{}/billing/flowmesh-entry", runmesh.url());
            assert_eq!(http.post(url).body(body).send().await.unwrap().status(), 200);
        }
        assert_eq!(runmesh.entries(), (2, 1, 1));
    }

    #[tokio::test]
    async fn flowmesh_and_lum_id_answer_by_the_number() {
        let (flowmesh, lum_id) = (FlowMesh::start(0, 10).await.unwrap(), LumId::start(Duration::ZERO).await.unwrap());
        let http = tollgate_local::stack::http_client().unwrap();
        let get = async |path: &str| {
            let answer = http.get(format!("{}{path}", flowmesh.url())).send().await.unwrap();
            answer.json::<serde_json::Value>().await.unwrap()
        };
        let task = get("/api/v1/tasks/tsk-000000000042").await;
        assert_eq!((task["workflow_id"].as_str(), task["status"].as_str()), (Some("wfl-000000000002"), Some("DONE")));
        assert_eq!(get("/api/v1/workflows/wfl-000000000007").await["task_ids"][0], "tsk-000000000007");
        assert_eq!(get("/api/v1/workers").await[0]["namespace"], "acme");
        let form = http.post(format!("{}/oauth/introspect", lum_id.url())).body("token=lm_pat_live_000000000007");
        let answer: serde_json::Value = form.send().await.unwrap().json().await.unwrap();
        assert_eq!((answer["sub"].as_str(), lum_id.asked()), (Some("user-000000000007"), 1));
    }
}
