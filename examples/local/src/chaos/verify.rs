//! The books: what Runmesh accepted against what FlowMesh ran, and what is held against what could not be decided.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use super::{
    ledger::{Charge, Rows, Workflow},
    record::Submission,
    world::World,
};
use crate::standin::{Entry, Task, TruthEntry, same_amount};

/// What FlowMesh and Runmesh have, indexed.
pub(super) struct Books {
    pub truth: Vec<TruthEntry>,
    pub entries: Vec<Entry>,
    tasks: HashMap<String, Task>,
    by_task: HashMap<String, usize>,
}

impl Books {
    pub fn of(world: &World) -> Self {
        let entries = world.runmesh.entries();
        let by_task = entries.iter().enumerate().map(|(at, entry)| (entry.task_id.clone(), at)).collect();
        let tasks = world.flowmesh.tasks().into_iter().map(|task| (task.task_id.clone(), task)).collect();
        Self { truth: world.flowmesh.truth(), entries, tasks, by_task }
    }

    /// The entries of an execution.
    fn entries_of(&self, truth: &TruthEntry) -> Vec<&Entry> {
        truth.task_ids.iter().filter_map(|task| Some(&self.entries[*self.by_task.get(task)?])).collect()
    }

    /// Executions that Runmesh has nothing of.
    pub fn missing(&self) -> Vec<&TruthEntry> {
        self.truth.iter().filter(|truth| self.entries_of(truth).is_empty()).collect()
    }

    /// Whatever is billed otherwise than it ought to be; what is missing is another matter.
    pub fn wrong(&self, world: &World) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut known = 0;
        for truth in &self.truth {
            let entries = self.entries_of(truth);
            known += entries.len();
            if entries.len() > 1 {
                wrong.push(format!("billed {} times: {truth:?}: {entries:?}", entries.len()));
            }
            for entry in entries {
                wrong.extend(self.departures(world, truth, entry));
            }
        }
        if known != self.entries.len() {
            let ours: BTreeSet<&String> = self.truth.iter().flat_map(|truth| &truth.task_ids).collect();
            for entry in self.entries.iter().filter(|entry| !ours.contains(&entry.task_id)) {
                wrong.push(format!("billed, and never ran: {entry:?}"));
            }
        }
        wrong
    }

    fn departures(&self, world: &World, truth: &TruthEntry, entry: &Entry) -> Option<String> {
        let task = self.tasks.get(&entry.task_id)?;
        let Some(person) = world.person_of(task).map(|person| &world.people[person]) else {
            return Some(format!("billed, and nobody's: {entry:?}"));
        };
        let seconds = Duration::try_from_secs_f64(truth.runtime_sec).map_or(0, |time| time.as_secs());
        let holds = entry.user_sub == person.sub
            && entry.user_email == person.email
            && entry.workflow_id.as_ref() == Some(&task.workflow_id)
            && entry.cost == truth.total_cost
            && same_amount(&entry.cost_per_hour.to_string(), &truth.cost_per_hour.to_string())
            && entry.task_status == truth.status
            && u64::try_from(entry.duration_sec) == Ok(seconds);
        (!holds).then(|| format!("billed wrongly: it is {}'s {truth:?}, billed as {entry:?}", person.sub))
    }

    /// Looks at what is missing: rightly held, or lost. Returns the workflows that are rightly held, with their owners, and
    /// what is wrong.
    pub fn held(&self, world: &World, rows: &Rows) -> (Vec<(String, String)>, Vec<String>) {
        let submissions = world.record.submissions();
        let (mut held, mut wrong) = (BTreeSet::new(), Vec::new());
        for truth in self.missing() {
            let charge = truth.task_ids.iter().find_map(|task| Some((task, rows.charges.get(task)?)));
            let Some((task, charge)) = charge else {
                let workflow = rows.workflows.get(&truth.workflow_id);
                wrong.push(format!("not billed: {truth:?}; its workflow: {workflow:?}"));
                continue;
            };
            let workflow = charge.workflow.as_ref().and_then(|id| rows.workflows.get(id));
            let task = &self.tasks[task];
            match justify(world, &submissions, task, charge, workflow) {
                Ok(owner) => {
                    held.insert((task.workflow_id.clone(), owner));
                }
                Err(reason) => wrong.push(format!("{reason}: {truth:?}; {charge:?}; its workflow: {workflow:?}")),
            }
        }
        (held.into_iter().collect(), wrong)
    }
}

/// Whether it could not be decided whose a charge is; the right owner.
fn justify(
    world: &World,
    submissions: &[Submission],
    task: &Task,
    charge: &Charge,
    workflow: Option<&Workflow>,
) -> Result<String, &'static str> {
    let own = World::submission_of(task).and_then(|number| submissions.get(number)).ok_or("nobody's")?;
    let owner = &world.people[own.person].sub;
    if charge.state != "held" {
        return Err("not posted");
    }
    let reason = workflow.and_then(|workflow| workflow.hold_reason.as_deref()).ok_or("held without a reason")?;
    if world.record.uncertain(own).is_none() {
        return Err("held though its own submission's log entry arrived");
    }
    if let Some(names) = reason.split_once("submissions of several were open at its time: ") {
        let candidates: Vec<&str> = names.1.split(", ").collect();
        if !candidates.contains(&owner.as_str()) && !world.record.may_lack_its_row(own) {
            return Err("held, and its owner is no candidate");
        }
        for candidate in candidates {
            // FlowMesh's clock may differ by five seconds; and that of this account by a little.
            let until = task.submitted_at + jiff::SignedDuration::from_secs(6);
            let open = |submission: &&Submission| {
                world.people[submission.person].sub == candidate
                    && submission.sent_at <= until
                    && world.record.uncertain(submission).is_some()
            };
            if !submissions.iter().any(|submission| open(&submission)) {
                return Err("held for a candidate that had no uncertain submission");
            }
        }
        return Ok(owner.clone());
    }
    if reason.starts_with("the only submission open at its time") {
        let failed = own.answered.is_none_or(|(_, status)| status >= 500);
        return if failed { Ok(owner.clone()) } else { Err("held for an error that its client did not see") };
    }
    if world.record.may_lack_its_row(own) {
        return Ok(owner.clone());
    }
    Err("held for no good reason")
}
