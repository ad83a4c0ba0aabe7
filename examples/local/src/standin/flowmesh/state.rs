//! Workers, workflows and tasks, and how they move.
//!
//! Nothing ticks: delays are due times, and [`State::advance`] catches up with the clock whenever
//! somebody looks. So a stopped stand-in costs nothing, and nobody can see a state that is out of date.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::model::{Options, Outcome, Seen, Status, Task, Usage, Worker, Workflow, cost};

/// A worker's id for executions whose task was never on one.
const NO_WORKER: &str = "wrk-unknown";

#[derive(Default)]
pub(super) struct State {
    pub options: Options,
    pub workers: Vec<Worker>,
    pub nodes: Vec<(String, String)>,
    pub workflows: Vec<WorkflowState>,
    pub tasks: Vec<TaskState>,
    pub requests: Vec<Seen>,
    /// Extra headers for answers whose `METHOD path` starts like this.
    pub answer_headers: Vec<(String, Vec<(String, String)>)>,
    /// Tasks that have ended since somebody last asked.
    pub ended: Vec<Task>,
    workflow_index: HashMap<String, usize>,
    task_index: HashMap<String, usize>,
    /// Tasks that are not terminal yet.
    live: Vec<usize>,
    /// Worker and start, in microseconds: a worker runs one dispatch at a time, so no two agree.
    executions: HashSet<(String, i64)>,
}

pub(super) struct WorkflowState {
    pub workflow_id: String,
    pub tasks: Vec<usize>,
    pub submitted_at: Timestamp,
    pub updated_at: Timestamp,
    pub source: String,
}

pub(super) struct TaskState {
    pub task: Task,
    /// Merged over the `TaskInfo` answer.
    pub patch: Map<String, Value>,
    /// Sent in place of the `TaskInfo` answer.
    pub body: Option<String>,
    created: (Instant, Timestamp),
    ending: Option<Ending>,
}

/// An end that has been decided and is not visible yet.
struct Ending {
    due: Instant,
    status: Status,
    finished_at: Timestamp,
}

/// The time, to the microsecond, which is what FlowMesh writes.
pub(super) fn now() -> Timestamp {
    to_micros(Timestamp::now())
}

fn to_micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| time.checked_add(by).ok()).map_or(time, to_micros)
}

fn earlier(time: Timestamp, by: f64) -> Timestamp {
    SignedDuration::try_from_secs_f64(by).ok().and_then(|by| time.checked_sub(by).ok()).map_or(time, to_micros)
}

/// Twelve random hexadecimal digits behind a prefix.
pub(super) fn random_id(prefix: &str) -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{prefix}-{:012x}", random & 0xffff_ffff_ffff)
}

impl State {
    pub fn add_worker(&mut self, worker: Worker) {
        if self.nodes.iter().all(|(id, _)| *id != worker.node_id) {
            self.nodes.push((worker.node_id.clone(), worker.node_id.clone()));
        }
        match self.workers.iter_mut().find(|known| known.id == worker.id) {
            Some(known) => *known = worker,
            None => self.workers.push(worker),
        }
    }

    pub fn worker_mut(&mut self, id: &str) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    pub fn task(&self, id: &str) -> Option<&TaskState> {
        self.task_index.get(id).map(|&at| &self.tasks[at])
    }

    pub fn task_mut(&mut self, id: &str) -> Option<&mut TaskState> {
        self.task_index.get(id).map(|&at| &mut self.tasks[at])
    }

    pub fn workflow(&self, id: &str) -> Option<&WorkflowState> {
        self.workflow_index.get(id).map(|&at| &self.workflows[at])
    }

    pub fn workflow_mut(&mut self, id: &str) -> Option<&mut WorkflowState> {
        self.workflow_index.get(id).map(|&at| &mut self.workflows[at])
    }

    /// A new workflow with these tasks. Returns its id and theirs.
    pub fn submit(&mut self, names: Vec<String>, source: String) -> (String, Vec<String>) {
        let mut workflow_id = random_id("wfl");
        while self.workflow_index.contains_key(&workflow_id) {
            workflow_id = random_id("wfl");
        }
        let submitted_at = now();
        let first = self.tasks.len();
        let mut task_ids = Vec::with_capacity(names.len());
        for name in names {
            let mut task_id = random_id("tsk");
            while self.task_index.contains_key(&task_id) {
                task_id = random_id("tsk");
            }
            let at = self.tasks.len();
            self.task_index.insert(task_id.clone(), at);
            self.live.push(at);
            self.tasks.push(TaskState {
                task: Task {
                    task_id: task_id.clone(),
                    workflow_id: workflow_id.clone(),
                    name,
                    status: Status::Pending,
                    assigned_worker: None,
                    submitted_at,
                    started_at: None,
                    finished_at: None,
                    usages: Vec::new(),
                    result: None,
                    unregistered: false,
                },
                patch: Map::new(),
                body: None,
                created: (Instant::now(), submitted_at),
                ending: None,
            });
            task_ids.push(task_id);
        }
        self.workflow_index.insert(workflow_id.clone(), self.workflows.len());
        self.workflows.push(WorkflowState {
            workflow_id: workflow_id.clone(),
            tasks: (first..self.tasks.len()).collect(),
            submitted_at,
            updated_at: submitted_at,
            source,
        });
        self.advance();
        (workflow_id, task_ids)
    }

    /// Catches up with the clock.
    pub fn advance(&mut self) {
        let instant = Instant::now();
        for at in self.live.clone() {
            let state = &self.tasks[at];
            match (&state.ending, state.task.status) {
                (Some(ending), _) if ending.due <= instant => {
                    let (status, finished_at) = (ending.status, ending.finished_at);
                    self.end_of_run(at, status, finished_at);
                }
                (None, Status::Pending) if state.created.0 + self.options.dispatch_delay <= instant => {
                    self.dispatch(at, None);
                }
                _ => {}
            }
        }
        let tasks = &self.tasks;
        self.live.retain(|&at| !tasks[at].task.status.is_terminal());
    }

    /// Gives a pending task to `worker`, or to the one that has the least to do. Without workers it
    /// stays pending.
    fn dispatch(&mut self, at: usize, worker: Option<&str>) {
        let load = |id: &str| {
            let on_it = |at: &&usize| self.tasks[**at].task.assigned_worker.as_deref() == Some(id);
            self.live.iter().filter(on_it).count()
        };
        let worker = match worker {
            Some(id) => self.workers.iter().find(|worker| worker.id == id),
            None => self.workers.iter().filter(|worker| !worker.cordoned).min_by_key(|worker| load(&worker.id)),
        };
        let Some(worker) = worker else { return };
        let (id, added_at) = (worker.id.clone(), worker.added_at);
        let due = later(self.tasks[at].created.1, self.options.dispatch_delay);
        let started_at = self.reserve(&id, due.max(added_at));
        let task = &mut self.tasks[at].task;
        task.status = Status::Dispatched;
        task.assigned_worker = Some(id);
        task.started_at = Some(started_at);
        self.touch(at);
    }

    /// The first free start on `worker` at or after `started_at`.
    fn reserve(&mut self, worker: &str, mut started_at: Timestamp) -> Timestamp {
        while !self.executions.insert((worker.to_owned(), started_at.as_microsecond())) {
            started_at = later(started_at, Duration::from_micros(1));
        }
        started_at
    }

    /// A worker reports: the end is decided now and shows after the terminal delay. `None` for a task
    /// that FlowMesh does not know.
    pub fn result(&mut self, id: &str, worker: Option<&str>, result: Value) -> Option<()> {
        self.advance();
        let at = *self.task_index.get(id)?;
        if self.tasks[at].task.unregistered {
            return None;
        }
        if self.tasks[at].task.status == Status::Pending {
            self.dispatch(at, worker);
        }
        let failed = !result["error"].is_null();
        let due = Instant::now() + self.options.terminal_delay;
        let state = &mut self.tasks[at];
        if !state.task.status.is_terminal() && state.ending.is_none() {
            state.task.result = Some(result);
            state.ending =
                Some(Ending { due, status: if failed { Status::Failed } else { Status::Done }, finished_at: now() });
        }
        self.advance();
        Some(())
    }

    /// A task is to be cancelled: at once when nothing runs, after the terminal delay otherwise.
    pub fn cancel(&mut self, at: usize) {
        let due = Instant::now() + self.options.terminal_delay;
        let state = &mut self.tasks[at];
        match state.task.status {
            Status::Pending => self.end(at, Status::Cancelled, now(), None),
            Status::Dispatched if state.ending.is_none() => {
                state.task.status = Status::Cancelling;
                state.ending = Some(Ending { due, status: Status::Cancelled, finished_at: now() });
                self.touch(at);
            }
            _ => {}
        }
        self.advance();
    }

    /// The end of a run that really took place, priced by its worker.
    fn end_of_run(&mut self, at: usize, status: Status, finished_at: Timestamp) {
        let task = &self.tasks[at].task;
        let usage = task.started_at.map(|started_at| {
            let finished_at = finished_at.max(started_at);
            let runtime_sec = finished_at.duration_since(started_at).as_secs_f64();
            let worker = task.assigned_worker.as_deref();
            let cost_per_hour = self
                .workers
                .iter()
                .find(|known| Some(known.id.as_str()) == worker)
                .map_or(0.0, |worker| worker.cost_per_hour);
            Usage {
                started_at,
                finished_at,
                runtime_sec,
                cost_per_hour,
                total_cost: cost(runtime_sec, cost_per_hour),
                status,
            }
        });
        let finished_at = usage.as_ref().map_or(finished_at, |usage| usage.finished_at);
        self.end(at, status, finished_at, usage);
    }

    /// Ends the tasks that have not ended yet as one execution, the first one's. Returns how many.
    pub fn complete(&mut self, ids: &[&str], outcome: &Outcome) -> usize {
        self.advance();
        let known = ids.iter().filter_map(|id| self.task_index.get(*id).copied());
        let open: Vec<_> = known.filter(|&at| !self.tasks[at].task.status.is_terminal()).collect();
        let Some(&parent) = open.first() else {
            return 0;
        };
        let mut worker = self.tasks[parent].task.assigned_worker.clone();
        let mut finished_at = now();
        let usage = outcome.usage.then(|| {
            let worker = worker.get_or_insert_with(|| {
                let first = self.workers.first();
                first.map_or(NO_WORKER.to_owned(), |worker| worker.id.clone())
            });
            let wanted = earlier(finished_at, outcome.runtime_sec);
            let started_at = self.reserve(worker, wanted);
            finished_at = to_micros(finished_at + started_at.duration_since(wanted));
            Usage {
                started_at,
                finished_at,
                runtime_sec: outcome.runtime_sec,
                cost_per_hour: outcome.cost_per_hour,
                total_cost: outcome.total_cost.clone(),
                status: outcome.status,
            }
        });
        for &at in &open {
            self.tasks[at].task.assigned_worker.clone_from(&worker);
            self.end(at, outcome.status, finished_at, usage.clone());
        }
        self.advance();
        open.len()
    }

    fn end(&mut self, at: usize, status: Status, finished_at: Timestamp, usage: Option<Usage>) {
        let state = &mut self.tasks[at];
        state.ending = None;
        state.task.status = status;
        state.task.finished_at = Some(finished_at);
        state.task.started_at = usage.as_ref().map(|usage| usage.started_at);
        state.task.usages = usage.into_iter().collect();
        self.ended.push(state.task.clone());
        self.touch(at);
    }

    fn touch(&mut self, at: usize) {
        let workflow_id = self.tasks[at].task.workflow_id.clone();
        if let Some(workflow) = self.workflow_mut(&workflow_id) {
            workflow.updated_at = now();
        }
    }

    /// The status of a workflow. One failed task makes it FAILED, whatever the others are doing.
    pub fn workflow_status(&self, workflow: &WorkflowState) -> Status {
        let any = |wanted: fn(Status) -> bool| {
            let mut tasks = workflow.tasks.iter();
            tasks.any(|&at| wanted(self.tasks[at].task.status))
        };
        if any(|status| status == Status::Failed) {
            Status::Failed
        } else if any(|status| matches!(status, Status::Dispatched | Status::Cancelling)) {
            Status::Dispatched
        } else if any(|status| status == Status::Pending) {
            Status::Pending
        } else if any(|status| status == Status::Cancelled) {
            Status::Cancelled
        } else {
            Status::Done
        }
    }

    pub fn workflow_view(&self, workflow: &WorkflowState) -> Workflow {
        let tasks = workflow.tasks.iter();
        Workflow {
            workflow_id: workflow.workflow_id.clone(),
            task_ids: tasks.map(|&at| self.tasks[at].task.task_id.clone()).collect(),
            submitted_at: workflow.submitted_at,
            updated_at: workflow.updated_at,
            status: self.workflow_status(workflow),
        }
    }
}
