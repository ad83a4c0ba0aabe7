//! `tollgate ledger show`.

use std::io::Write;

use anyhow::bail;
use serde_json::{Map, Value, json};

use super::{PAGE, list, record, text};
use crate::ledger::books::{Books, Charge, ChargeState, Submission, Task, Workflow};

/// Tasks of a workflow that a person is shown.
const TASKS: usize = 100;

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// A task or a workflow
    #[arg(value_name = "ID")]
    id: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// With the principal's e-mail address
    #[arg(long)]
    emails: bool,
}

/// All that there is.
#[derive(Default)]
struct Found {
    task: Option<Task>,
    charge: Option<Charge>,
    workflow: Option<Workflow>,
    submission: Option<Submission>,
}

pub async fn run(flags: &Flags, books: &dyn Books, out: &mut impl Write) -> anyhow::Result<()> {
    let id = flags.id.as_str();
    let (task, charge) = (books.task(id).await?, books.charge(id).await?);
    let mut found = Found { task, charge, ..Found::default() };
    let is_task = found.task.is_some() || found.charge.is_some();
    let of = found.charge.as_ref().and_then(|charge| charge.workflow_id.as_deref());
    let of = of.or(found.task.as_ref().and_then(|task| task.workflow_id.as_deref()));
    let workflow_id = if is_task { of } else { Some(id) };
    if let Some(workflow_id) = workflow_id {
        found.workflow = books.workflow(workflow_id).await?;
    }
    if let Some(submission_id) = found.workflow.as_ref().and_then(|workflow| workflow.submission_id.as_deref()) {
        found.submission = books.submission(submission_id).await?;
    }
    if !is_task && found.workflow.is_none() {
        bail!("the ledger knows no task and no workflow {}", text::plain(id));
    }
    if flags.json { json(flags, &found, books, out).await } else { people(flags, &found, books, out).await }
}

/// Every task of a workflow, with its charge.
async fn tasks(workflow_id: &str, books: &dyn Books) -> anyhow::Result<Vec<(Task, Option<Charge>)>> {
    let (mut tasks, mut after) = (Vec::new(), String::new());
    loop {
        let page = books.tasks(workflow_id, &after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(tasks) };
        after.clone_from(&last.task_id);
        for task in page {
            let charge = books.charge(&task.task_id).await?;
            tasks.push((task, charge));
        }
    }
}

async fn json(flags: &Flags, found: &Found, books: &dyn Books, out: &mut impl Write) -> anyhow::Result<()> {
    let mut all = Map::new();
    if let Some(task) = &found.task {
        all.insert("task".into(), task_value(task));
    }
    if let Some(charge) = &found.charge {
        all.insert("charge".into(), charge_value(charge, flags.emails)?);
    }
    if let Some(workflow) = &found.workflow {
        let mut value = json!({
            "workflow_id": workflow.workflow_id,
            "state": workflow.state,
            "principal_id": workflow.principal_id,
            "attribution": workflow.attribution,
            "hold_reason": workflow.hold_reason,
            "submission_id": workflow.submission_id,
            "submitted_at": record::at(workflow.submitted_at),
            "noted_at": record::at(Some(workflow.noted_at)),
        });
        if flags.emails {
            value["email"] = json!(workflow.email);
        }
        if is_held(workflow) {
            value["candidates"] = list::candidate_values(&list::candidates(workflow, books).await?);
        }
        if workflow.workflow_id == flags.id {
            let mut values = Vec::new();
            for (task, charge) in tasks(&workflow.workflow_id, books).await? {
                let mut value = task_value(&task);
                value["charge"] = charge.map_or(Ok(Value::Null), |charge| charge_value(&charge, false))?;
                values.push(value);
            }
            value["tasks"] = Value::Array(values);
        }
        all.insert("workflow".into(), value);
    }
    if let Some(submission) = &found.submission {
        let value = json!({
            "submission_id": submission.submission_id,
            "principal_id": submission.principal_id,
            "request_id": submission.request_id,
            "state": submission.state,
            "opened_at": record::at(Some(submission.opened_at)),
            "ended_at": record::at(submission.ended_at),
        });
        all.insert("submission".into(), value);
    }
    Ok(writeln!(out, "{}", Value::Object(all))?)
}

fn task_value(task: &Task) -> Value {
    json!({
        "task_id": task.task_id,
        "workflow_id": task.workflow_id,
        "state": task.state,
        "outcome": task.outcome,
        "attempts": task.attempts,
        "asked_at": record::at(task.asked_at),
        "settle_at": record::at(task.settle_at),
        "unknown_since": record::at(task.unknown_since),
        "hold_reason": task.hold_reason,
    })
}

fn charge_value(charge: &Charge, emails: bool) -> anyhow::Result<Value> {
    let mut line = Vec::new();
    record::charge(charge, emails).write_json(&mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn is_held(workflow: &Workflow) -> bool {
    workflow.principal_id.is_none() && workflow.state != "ignored"
}

async fn people(flags: &Flags, found: &Found, books: &dyn Books, out: &mut impl Write) -> anyhow::Result<()> {
    let mut lines = Lines::default();
    if let Some(task) = &found.task {
        lines.task(task);
    }
    if let Some(charge) = &found.charge {
        lines.charge(charge, flags.emails);
    }
    if let Some(workflow) = &found.workflow {
        lines.workflow(workflow, flags.emails);
        if is_held(workflow) {
            for candidate in list::candidates(workflow, books).await? {
                lines.add("", list::candidate_line(&candidate));
            }
        }
    }
    if let Some(submission) = &found.submission {
        lines.submission(submission);
    }
    if let Some(workflow) = found.workflow.as_ref().filter(|workflow| workflow.workflow_id == flags.id) {
        let tasks = tasks(&workflow.workflow_id, books).await?;
        for (task, charge) in tasks.iter().take(TASKS) {
            let told = match charge {
                Some(charge) => format!("${} {}", charge.cost, charge.state.as_str()),
                None => task.outcome.as_deref().unwrap_or(&task.state).to_owned(),
            };
            lines.add("task", format!("{}: {told}", text::plain(&task.task_id)));
        }
        if tasks.len() > TASKS {
            lines.add("", format!("and {} more; --json has them all", tasks.len() - TASKS));
        }
    }
    Ok(text::columns(&lines.0, &[], out)?)
}

/// What a person is told: a word, and what there is to say about it.
#[derive(Default)]
struct Lines(Vec<Vec<String>>);

impl Lines {
    fn add(&mut self, word: &str, told: impl Into<String>) {
        self.0.push(vec![word.to_owned(), told.into()]);
    }

    fn add_some(&mut self, word: &str, told: Option<&str>) {
        if let Some(told) = told {
            self.add(word, text::plain(told));
        }
    }

    fn task(&mut self, task: &Task) {
        let outcome = task.outcome.as_ref().map(|outcome| format!(", {outcome}")).unwrap_or_default();
        self.add("task", format!("{}: {}{outcome}", text::plain(&task.task_id), task.state));
        if let Some(at) = task.asked_at {
            self.add("asked", format!("{}, {} since the last evidence", text::moment(at), task.attempts));
        }
        if let Some(at) = task.settle_at {
            self.add("asked next", text::moment(at));
        }
        self.add_some("held", task.hold_reason.as_deref());
        if let Some(at) = task.unknown_since {
            self.add("unknown", format!("to FlowMesh since {}", text::moment(at)));
        }
    }

    fn charge(&mut self, charge: &Charge, emails: bool) {
        let Charge { cost, duration_sec, cost_per_hour, task_status, .. } = charge;
        self.add("charge", format!("${cost} for {duration_sec} s at ${cost_per_hour} an hour, {task_status}"));
        let why = charge.hold_reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
        let tried = text::count(charge.attempts.into(), "post");
        self.add("state", format!("{}{why}, {tried} tried", charge.state.as_str()));
        self.add_some("last error", record::last_error(charge, emails).as_deref());
        self.add_some("charged to", charge.principal_id.as_deref());
        self.add_some("supplier", charge.supplier_id.as_deref());
        let or_unknown = |text: &Option<String>| text::plain(text.as_deref().unwrap_or("?"));
        let (started, finished) = (or_unknown(&charge.started_at), or_unknown(&charge.finished_at));
        self.add("execution", format!("on {}, {started} to {finished}", or_unknown(&charge.assigned_worker)));
        self.add("settled", text::moment(charge.created_at));
        if charge.state == ChargeState::Pending {
            self.add("posted next", text::moment(charge.post_at));
        }
        if let Some(at) = charge.posted_at {
            self.add("posted", text::moment(at));
        }
    }

    fn workflow(&mut self, workflow: &Workflow, emails: bool) {
        self.add("workflow", format!("{}: {}", text::plain(&workflow.workflow_id), workflow.state));
        match (&workflow.principal_id, workflow.attribution.as_deref()) {
            (Some(principal), how) => {
                let how = match how {
                    Some("log") => "by the log entry of the submission",
                    Some("matched") => "by the only open submission of its time",
                    Some("operator") => "by the operator",
                    _ => "in an unknown way",
                };
                self.add("owner", format!("{}, found {how}", text::plain(principal)));
                let email = match &workflow.email {
                    Some(email) if emails => text::plain(email),
                    Some(_) => "known (--emails shows it)".to_owned(),
                    None => "unknown".to_owned(),
                };
                self.add("e-mail", email);
            }
            (None, Some(_)) => {
                let reason = workflow.hold_reason.as_deref().unwrap_or_default();
                self.add("owner", format!("nobody: {}", text::plain(reason)));
            }
            (None, None) if workflow.state == "ignored" => {
                self.add("owner", "nobody: it is older than the ledger, or than what it keeps");
            }
            (None, None) => self.add("owner", "not looked for yet"),
        }
        if let Some(at) = workflow.submitted_at {
            self.add("submitted", text::moment(at));
        }
        self.add("noted", text::moment(workflow.noted_at));
    }

    fn submission(&mut self, submission: &Submission) {
        let Submission { submission_id, request_id, opened_at, state, .. } = submission;
        self.add("submission", format!("{submission_id}: {state}"));
        self.add("request", text::plain(request_id));
        let ended = submission.ended_at.map(|at| format!(" to {}", text::moment(at))).unwrap_or_default();
        self.add("", format!("{}{ended}", text::moment(*opened_at)));
    }
}
