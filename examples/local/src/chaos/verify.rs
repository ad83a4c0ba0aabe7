//! The books: what Runmesh accepted against what FlowMesh ran, and what is held against what could not be decided.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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

    /// Looks at what is missing: rightly held, or lost.
    pub fn held(&self, world: &World, rows: &Rows) -> Held {
        let submissions = world.record.submissions();
        let mut held = Held::default();
        for truth in self.missing() {
            let charge = truth.task_ids.iter().find_map(|task| Some((task, rows.charges.get(task)?)));
            let Some((task, charge)) = charge else {
                let workflow = rows.workflows.get(&truth.workflow_id);
                held.wrong.push(format!("not billed: {truth:?}; its workflow: {workflow:?}"));
                continue;
            };
            let workflow = charge.workflow.as_ref().and_then(|id| rows.workflows.get(id));
            let task = &self.tasks[task];
            match justify(world, &submissions, task, charge, workflow) {
                Ok((Why::Undecidable, owner)) => {
                    held.undecidable.insert(task.workflow_id.clone(), owner);
                }
                Ok((Why::RowLost, owner)) => {
                    held.row_lost.insert(task.workflow_id.clone(), owner);
                }
                Err(reason) => {
                    held.wrong.push(format!("{reason}: {truth:?}; {charge:?}; its workflow: {workflow:?}"));
                }
            }
        }
        held
    }
}

/// What is not billed: workflows and their owners, and what is wrong.
#[derive(Default)]
pub(super) struct Held {
    /// Nobody could tell whose it is.
    pub undecidable: BTreeMap<String, String>,
    /// A submission's row could not be written while the disk was full or the database away, and Tollgate was killed before it
    /// could.
    pub row_lost: BTreeMap<String, String>,
    pub wrong: Vec<String>,
}

/// Why something is rightly held.
enum Why {
    Undecidable,
    RowLost,
}

/// Whether it could not be decided whose a charge is, and why; the right owner.
fn justify(
    world: &World,
    submissions: &[Submission],
    task: &Task,
    charge: &Charge,
    workflow: Option<&Workflow>,
) -> Result<(Why, String), &'static str> {
    let own = World::submission_of(task).and_then(|number| submissions.get(number)).ok_or("nobody's")?;
    let owner = &world.people[own.person].sub;
    if charge.state != "held" {
        return Err("not posted");
    }
    let reason = workflow.and_then(|workflow| workflow.hold_reason.as_deref()).ok_or("held without a reason")?;
    if world.record.uncertain(own).is_none() {
        return Err("held though its own submission's log entry arrived");
    }
    // Any row of this person's: of two workflows the one that is looked at first takes what there is.
    let mut theirs = submissions.iter().filter(|other| other.person == own.person);
    let row_lost = theirs.any(|other| world.record.may_lack_its_row(other));
    let wrong = |text| if row_lost { Ok((Why::RowLost, owner.clone())) } else { Err(text) };
    // FlowMesh's clock may differ by five seconds, and that of this account by a little.
    let until = task.submitted_at + jiff::SignedDuration::from_secs(6);
    if reason == "submissions of about its time could not be written down" {
        // Anybody's: whoever is missing may be the one.
        let missing = |other: &&Submission| other.sent_at <= until && world.record.may_lack_its_row(other);
        return match submissions.iter().find(missing) {
            Some(_) => Ok((Why::RowLost, owner.clone())),
            None => Err("held for a row that could be written"),
        };
    }
    if let Some((_, names)) = reason.split_once("submissions of several were open at its time: ") {
        let candidates: Vec<&str> = names.split(", ").collect();
        if !candidates.contains(&owner.as_str()) {
            return wrong("held, and its owner is no candidate");
        }
        let open = |candidate: &str| {
            submissions.iter().any(|other| {
                world.people[other.person].sub == candidate
                    && other.sent_at <= until
                    && world.record.uncertain(other).is_some()
            })
        };
        if !candidates.iter().all(|candidate| open(candidate)) {
            return Err("held for a candidate that had no uncertain submission");
        }
        return Ok((Why::Undecidable, owner.clone()));
    }
    if reason.starts_with("the only submission open at its time") {
        let failed = own.answered.is_none_or(|(_, status)| status >= 500);
        return if failed {
            Ok((Why::Undecidable, owner.clone()))
        } else {
            wrong("held for an error that its client did not see")
        };
    }
    wrong("held for no good reason")
}
