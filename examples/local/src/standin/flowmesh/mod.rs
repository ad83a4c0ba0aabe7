//! FlowMesh with workers, workflows and tasks, as far as it concerns Tollgate and those behind it.
//!
//! It does no authentication and ignores identity headers, like the real one without plugins. Tasks
//! are dispatched by themselves and end when their worker posts a result, when they are cancelled, or
//! when the script says so. Lists come in no useful order, as they do from the real one.

mod info;
mod model;
mod path;
mod routes;
mod state;
mod streams;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;

pub use model::{Happened, Options, Outcome, Seen, Status, Task, TruthEntry, Usage, Worker, Workflow};

use super::{
    Subscribers,
    fault::{Fault, Faults},
    lock,
    server::Server,
};
use state::State;

/// A stand-in for FlowMesh.
#[derive(Clone)]
pub struct FlowMesh {
    server: Arc<Server>,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    faults: Faults,
    /// Faults for requests whose `METHOD path` starts like this.
    faults_on: Mutex<Vec<(String, Arc<Faults>)>>,
    subscribers: Subscribers<Happened>,
}

impl Inner {
    /// The state as of now. Tells the subscribers which tasks have ended.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.advance();
        self.announce(&mut state);
        state
    }

    fn announce(&self, state: &mut State) {
        for task in state.ended.drain(..) {
            self.subscribers.publish(&Happened::Ended(Box::new(task)));
        }
    }

    /// Changes the state.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        self.announce(&mut state);
        result
    }

    /// The fault for a request.
    fn fault(&self, method_and_path: &str) -> Option<Fault> {
        let special = lock(&self.faults_on)
            .iter()
            .find(|(prefix, _)| method_and_path.starts_with(prefix))
            .map(|(_, faults)| faults.clone());
        special.and_then(|faults| faults.next()).or_else(|| self.faults.next())
    }
}

impl FlowMesh {
    /// Serves at `listen`, for example `127.0.0.1:0`, with no worker yet: tasks stay PENDING until one
    /// is added.
    pub async fn start(listen: &str) -> io::Result<Self> {
        let inner = Arc::new(Inner::default());
        let server = Server::start(listen, {
            let inner = inner.clone();
            move |request, stop| routes::handle(inner.clone(), request, stop)
        })
        .await?;
        Ok(Self { server, inner })
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        self.server.url()
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
        self.inner.faults.set(fault);
    }

    /// How to answer requests whose method and path start with this, for example `GET /api/v1/tasks/`,
    /// from now on. Comes before [`Self::fail_with`].
    pub fn fail_on(&self, method_and_path: &str, fault: Fault) {
        let faults = Faults::default();
        faults.set(fault);
        let mut rules = lock(&self.inner.faults_on);
        rules.retain(|(known, _)| known != method_and_path);
        rules.push((method_and_path.to_owned(), Arc::new(faults)));
    }

    /// Answers everything properly from now on.
    pub fn heal(&self) {
        self.inner.faults.heal();
        lock(&self.inner.faults_on).clear();
    }

    /// Changes how it behaves.
    pub fn options(&self, change: impl FnOnce(&mut Options)) {
        self.inner.change(|state| change(&mut state.options));
    }

    /// Adds these headers to its answers to requests whose method and path start with this.
    pub fn answer_with_headers(&self, method_and_path: &str, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.inner.change(|state| {
            state.answer_headers.push((method_and_path.to_owned(), headers));
        });
    }

    /// Adds a worker, or replaces the one with this id.
    pub fn add_worker(&self, id: &str, alias: &str, namespace: &str, cost_per_hour: f64) {
        let worker = Worker {
            id: id.to_owned(),
            alias: alias.to_owned(),
            namespace: namespace.to_owned(),
            node_id: format!("node-{namespace}"),
            cost_per_hour,
            cordoned: false,
            added_at: state::now(),
        };
        self.inner.change(|state| {
            state.add_worker(worker);
            state.advance();
        });
    }

    /// Removes a worker. Tasks that it had keep its id.
    pub fn remove_worker(&self, id: &str) {
        self.inner.change(|state| state.workers.retain(|worker| worker.id != id));
    }

    /// The workers.
    pub fn workers(&self) -> Vec<Worker> {
        self.inner.state().workers.clone()
    }

    /// The workflows, oldest first.
    pub fn workflows(&self) -> Vec<Workflow> {
        let state = self.inner.state();
        let workflows = state.workflows.iter();
        workflows.map(|of| state.workflow_view(of)).collect()
    }

    /// The tasks, oldest first; also those it has unregistered.
    pub fn tasks(&self) -> Vec<Task> {
        let state = self.inner.state();
        state.tasks.iter().map(|of| of.task.clone()).collect()
    }

    /// One task.
    pub fn task(&self, task_id: &str) -> Option<Task> {
        self.inner.state().task(task_id).map(|of| of.task.clone())
    }

    /// Every request received so far, in order.
    pub fn requests(&self) -> Vec<Seen> {
        lock(&self.inner.state).requests.clone()
    }

    /// A running account of what is answered and which tasks end from now on. The end of a task is
    /// told when somebody next looks at FlowMesh.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Happened> {
        self.inner.subscribers.subscribe()
    }

    /// A workflow that did not come through Envoy. Returns its id and those of its tasks.
    pub fn submit(&self, tasks: usize) -> (String, Vec<String>) {
        let names = (1..=tasks).map(|n| format!("task-{n}")).collect();
        self.inner.change(|state| state.submit(names, "# submitted directly\n".to_owned()))
    }

    /// Ends a task now. Its finish is now and its start `runtime_sec` before, or a few microseconds
    /// after that where another execution already began on the same worker. A task that never was on a
    /// worker counts as having run on the first. False when there is no such task or it has ended.
    pub fn complete(&self, task_id: &str, outcome: Outcome) -> bool {
        self.complete_merged(&[task_id], outcome) == 1
    }

    /// Ends tasks now as one merged batch: the first one's execution is copied unchanged into all of
    /// them. Tasks that are unknown or have ended are left alone; returns how many were not.
    pub fn complete_merged(&self, task_ids: &[&str], outcome: Outcome) -> usize {
        self.inner.change(|state| state.complete(task_ids, &outcome))
    }

    /// Moves the submission of a workflow and its tasks in time. False when it does not exist.
    pub fn backdate(&self, workflow_id: &str, submitted_at: Timestamp) -> bool {
        self.inner.change(|state| {
            let Some(workflow) = state.workflow_mut(workflow_id) else {
                return false;
            };
            workflow.submitted_at = submitted_at;
            for at in workflow.tasks.clone() {
                state.tasks[at].task.submitted_at = submitted_at;
            }
            true
        })
    }

    /// Makes FlowMesh forget a task: 404 from now on, though its workflow still lists it. False when it
    /// does not exist.
    pub fn unregister(&self, task_id: &str) -> bool {
        self.inner.change(|state| {
            let task = state.task_mut(task_id);
            task.map(|of| of.task.unregistered = true).is_some()
        })
    }

    /// Merges the keys of an object over the `TaskInfo` of a task, later patches over earlier ones. False
    /// when there is no such task or `patch` is not an object.
    pub fn set_task_json(&self, task_id: &str, patch: Value) -> bool {
        let Value::Object(patch) = patch else {
            return false;
        };
        self.inner.change(|state| {
            let task = state.task_mut(task_id);
            task.map(|of| of.patch.extend(patch)).is_some()
        })
    }

    /// Sends this text in place of the `TaskInfo` of a task, whatever the view: for number formats that a
    /// [`Value`] cannot hold, and for answers that are not JSON. [`Self::truth`] leaves the task out.
    /// False when there is no such task.
    pub fn set_task_text(&self, task_id: &str, text: &str) -> bool {
        self.inner.change(|state| {
            let task = state.task_mut(task_id);
            task.map(|of| of.body = Some(text.to_owned())).is_some()
        })
    }

    /// What ought to be billed, one entry per execution: read from what FlowMesh answers about its
    /// tasks, patches included. Unregistered tasks count too: somebody used them.
    pub fn truth(&self) -> Vec<TruthEntry> {
        info::truth(&self.inner.state())
    }
}
