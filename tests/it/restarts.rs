//! A lone Tollgate that restarts while many clients are at work: nobody notices, and everything is billed once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollgate_local::stack::{ALICE, Person, wait_for};
use tollgate_local::standin::Outcome;

use crate::harness::{Edge, SOON, answer};

const CLIENTS: usize = 16;
/// After a submission a client asks so many times how it is going, with pauses as somebody would make who polls. Without
/// them the clients alone would keep a small machine busy, and a restart would take as long as they let it.
const READS: usize = 8;
const PAUSE: Duration = Duration::from_millis(40);

/// Clients that submit and read in a loop until they are stopped.
struct Load {
    clients: JoinSet<Vec<String>>,
    answered: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Load {
    /// All of one person: where a log entry is lost, a workflow that could be either of two people's is rightly held.
    fn start(edge: &Edge, person: Person) -> Self {
        let (mut clients, answered, stop) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        for _ in 0..CLIENTS {
            let (http, url) = (edge.http.clone(), edge.stack.envoy.edge_url().to_owned());
            clients.spawn(work(http, url, person, answered.clone(), stop.clone()));
        }
        Self { clients, answered, stop }
    }

    /// Until all of them have got some more answers.
    async fn goes_on(&self) {
        let goal = self.answered.load(Ordering::Relaxed) + 4 * CLIENTS;
        let more = async || (self.answered.load(Ordering::Relaxed) >= goal).then_some(());
        wait_for("more answers", SOON, more).await.expect("the clients go on");
    }

    /// The tasks that they have submitted. Panics when one of them got anything but what it asked for.
    async fn stop(mut self) -> Vec<String> {
        self.stop.cancel();
        let mut tasks = Vec::new();
        while let Some(done) = self.clients.join_next().await {
            tasks.extend(done.expect("no request failed"));
        }
        tasks
    }
}

async fn work(
    http: reqwest::Client,
    url: String,
    person: Person,
    answered: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> Vec<String> {
    let mut tasks: Vec<String> = Vec::new();
    while !stop.is_cancelled() {
        for turn in 0..=READS {
            let (request, expected) = match (turn, tasks.last()) {
                (1.., Some(task)) => (http.get(format!("{url}/api/v1/tasks/{task}?view=status")), 200),
                _ => (http.post(format!("{url}/api/v1/workflows")).json(&json!({"tasks": [{"name": "a"}]})), 201),
            };
            let response = request.bearer_auth(person.token).send().await.expect("an answer");
            let status = response.status().as_u16();
            let body: serde_json::Value = response.json().await.expect("a whole answer");
            assert_eq!(status, expected, "{body}");
            if status == 201 {
                tasks.push(body["tasks"][0]["task_id"].as_str().expect("a task").to_owned());
            }
            answered.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    }
    tasks
}

/// Ends every task and waits until all of it is billed.
async fn bill(edge: Edge, tasks: &[String]) {
    assert!(tasks.len() >= CLIENTS, "{}", tasks.len());
    for task in tasks {
        assert!(edge.stack.flowmesh.complete(task, Outcome::done(1.0, 1.5)), "{task}");
    }
    // Whoever polls sees the end, and so does the log. What nobody asks after is the sweep's, which takes its time.
    let all_billed = async || {
        let entries = edge.stack.runmesh.entries();
        let missing = tasks.iter().filter(|task| !entries.iter().any(|entry| entry.task_id == **task));
        let missing: Vec<&String> = missing.collect();
        for task in &missing {
            answer(edge.get(&format!("/api/v1/tasks/{task}?view=status")).bearer_auth(ALICE.token)).await;
        }
        missing.is_empty().then_some(())
    };
    let billed = wait_for("every task to be billed", 3 * SOON, all_billed).await;
    billed.unwrap_or_else(|error| panic!("{error}; {:#?}", edge.stack.tollgate.lines()));
    edge.finish().await;
}

#[tokio::test]
async fn an_orderly_restart_under_load_fails_no_request_and_bills_everything_once() {
    let mut edge = Edge::with(&[("TOLLGATE_LOG", "info")]).await;
    let load = Load::start(&edge, ALICE);
    load.goes_on().await;
    assert!(edge.stack.tollgate.terminate().await.expect("stopped").success());
    edge.stack.tollgate.restart().await.expect("restarted");
    load.goes_on().await;
    let tasks = load.stop().await;
    bill(edge, &tasks).await;
}

#[tokio::test]
async fn a_kill_and_a_restart_under_load_fail_no_request_and_bill_everything_once() {
    let mut edge = Edge::with(&[("TOLLGATE_LOG", "info")]).await;
    let load = Load::start(&edge, ALICE);
    load.goes_on().await;
    edge.stack.tollgate.kill_hard().await.expect("killed");
    edge.stack.tollgate.restart().await.expect("restarted");
    load.goes_on().await;
    let tasks = load.stop().await;
    bill(edge, &tasks).await;
}
