//! Log events, sorted for a database that takes many rows with one statement. Pure.
//!
//! What comes of a batch must be what would come of its events one by one, in their order. Events of different things may
//! change places, and so may most of one thing; repeats are folded into a count. So a batch becomes a few [`Wave`]s, nearly
//! always one, each of which is applied kind by kind in the order of its fields. An event that must not be moved before what
//! is in the wave already begins the next one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::Usage;
use crate::access_log::event::{self, Event};

/// What a batch depends on and only the ledger can tell. No event of a batch changes it.
#[derive(Debug, Default)]
pub struct Known {
    /// The workflow of a task whose usage is reported.
    pub workflow_of: HashMap<String, String>,
    /// Submissions whose events touch rows that they do not name: another workflow that was matched with it, tasks of a
    /// workflow that was ignored, another submission under the same request id.
    pub alone: HashSet<String>,
}

/// A principal and the e-mail that was seen last.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub email: Option<&'a str>,
    pub at: Timestamp,
}

/// A submission that made a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted<'a> {
    pub submission_id: &'a str,
    pub principal_id: &'a str,
    pub workflow_id: &'a str,
    pub at: Timestamp,
}

/// A submission whose row comes late.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    pub submission_id: &'a str,
    pub principal_id: &'a str,
    pub request_id: &'a str,
    pub began: Timestamp,
    pub at: Timestamp,
}

/// A submission that is over, and may have no row yet.
#[derive(Debug, Clone, Copy)]
pub struct Over<'a> {
    pub principal_id: &'a str,
    pub began: Timestamp,
    pub at: Timestamp,
}

/// A task that an answer says the cost of.
#[derive(Debug, Clone, Copy)]
pub struct Used<'a> {
    pub task_id: &'a str,
    pub workflow_id: &'a str,
    pub usage: &'a Usage,
}

/// Things, each with how often it was heard of.
pub type Counted<'a> = BTreeMap<&'a str, u64>;

/// Events that may be applied kind by kind, in this order. Sorted by id: a B-tree likes that.
#[derive(Debug, Default)]
pub struct Wave<'a> {
    /// Workflows seen before their submission was.
    pub seen: Counted<'a>,
    pub principals: BTreeMap<&'a str, Seen<'a>>,
    pub opened: Vec<Opened<'a>>,
    /// Those of the next two, as the first word of their end has them.
    pub over: BTreeMap<&'a str, Over<'a>>,
    pub ended_submissions: BTreeMap<&'a str, (Timestamp, bool)>,
    pub refused: BTreeMap<&'a str, Timestamp>,
    pub submitted: BTreeMap<&'a str, Submitted<'a>>,
    /// Workflows seen after their submission was.
    pub seen_after: Counted<'a>,
    pub touched: BTreeSet<&'a str>,
    pub ended: Counted<'a>,
    /// In their order: who comes first is charged for an execution.
    pub used: Vec<Used<'a>>,
    /// Tasks that ended once more after their usage was reported.
    pub ended_after: Counted<'a>,
    /// It has one event, which touches what that does not name.
    pub is_alone: bool,
    /// What is looked up while the wave is put together.
    ids: Ids<'a>,
}

#[derive(Debug, Default)]
struct Ids<'a> {
    opened: HashSet<&'a str>,
    submitted: HashSet<&'a str>,
    used: HashSet<&'a str>,
    workflows_of_used: HashSet<&'a str>,
}

/// Whether an event can join a wave.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here,
    /// The wave says as much already.
    Repeat,
    Next,
}

/// Sorts a batch.
#[must_use]
pub fn waves<'a>(events: &'a [Event], known: &'a Known) -> Vec<Wave<'a>> {
    // A workflow in which usage may settle tasks as ignored, which its submission then takes back.
    let used: HashSet<&str> = known.workflow_of.values().map(String::as_str).collect();
    // Under one request id the second submission depends on what has come of the first by then.
    let mut requests: HashSet<(&str, &str)> = HashSet::new();
    let mut waves = vec![Wave::default()];
    for event in events {
        let is_alone = match event {
            Event::Submitted { submission_id, workflow_id, .. } => {
                known.alone.contains(submission_id) || used.contains(workflow_id.as_str())
            }
            Event::SubmissionOpened { submission_id, principal, request_id, .. } => {
                !requests.insert((&principal.id, request_id)) || known.alone.contains(submission_id)
            }
            _ => false,
        };
        let place = match waves.last() {
            Some(wave) if !is_alone && !wave.is_alone => wave.place(event),
            _ => Place::Next,
        };
        if place == Place::Next {
            waves.push(Wave { is_alone, ..Wave::default() });
        }
        if let (Some(wave), Place::Here | Place::Next) = (waves.last_mut(), place) {
            wave.add(event, known);
        }
    }
    waves
}

impl<'a> Wave<'a> {
    fn place(&self, event: &'a Event) -> Place {
        let ids = &self.ids;
        match event {
            Event::Submitted { submission_id, principal_id, workflow_id, at } => {
                let this = Submitted { submission_id, principal_id, workflow_id, at: *at };
                match self.submitted.get(workflow_id.as_str()) {
                    Some(same) if *same == this => Place::Repeat,
                    Some(_) => Place::Next,
                    None if ids.submitted.contains(submission_id.as_str()) => Place::Next,
                    None => Place::Here,
                }
            }
            Event::SubmissionRefused { over } | Event::SubmissionEnded { over, .. } => {
                let id = over.submission_id.as_str();
                if ids.submitted.contains(id) {
                    Place::Next
                } else if self.refused.contains_key(id) {
                    Place::Repeat
                } else {
                    Place::Here
                }
            }
            Event::SubmissionOpened { submission_id, .. } => {
                let id = submission_id.as_str();
                let is_later = ids.opened.contains(id)
                    || ids.submitted.contains(id)
                    || self.refused.contains_key(id)
                    || self.ended_submissions.contains_key(id);
                if is_later { Place::Next } else { Place::Here }
            }
            // Whose owner usage is charged to depends on whether the workflow was given up.
            Event::WorkflowSeen { workflow_id } if ids.workflows_of_used.contains(workflow_id.as_str()) => Place::Next,
            Event::TaskTouched { task_id } => {
                let id = task_id.as_str();
                // Whatever else was heard of it has planned to ask after it, if that is to be.
                let planned = self.ended.contains_key(id) || ids.used.contains(id);
                if planned { Place::Repeat } else { Place::Here }
            }
            Event::WorkflowSeen { .. }
            | Event::PrincipalSeen { .. }
            | Event::TaskEnded { .. }
            | Event::UsageReported { .. } => Place::Here,
        }
    }

    fn add(&mut self, event: &'a Event, known: &'a Known) {
        match event {
            Event::Submitted { submission_id, principal_id, workflow_id, at } => {
                let submitted = Submitted { submission_id, principal_id, workflow_id, at: *at };
                self.submitted.insert(workflow_id, submitted);
                self.ids.submitted.insert(submission_id);
            }
            Event::SubmissionRefused { over } => {
                self.over(over);
                self.refused.insert(&over.submission_id, over.at);
            }
            Event::SubmissionEnded { over, failed } => {
                self.over(over);
                self.ended_submissions.insert(&over.submission_id, (over.at, *failed));
            }
            Event::SubmissionOpened { submission_id, principal, request_id, began, at } => {
                self.see(&principal.id, principal.email.as_deref(), Some(*at));
                let (principal_id, began, at) = (principal.id.as_str(), *began, *at);
                self.opened.push(Opened { submission_id, principal_id, request_id, began, at });
                self.ids.opened.insert(submission_id);
            }
            Event::PrincipalSeen { principal } => self.see(&principal.id, principal.email.as_deref(), None),
            Event::WorkflowSeen { workflow_id } => {
                let is_after = self.submitted.contains_key(workflow_id.as_str());
                count(if is_after { &mut self.seen_after } else { &mut self.seen }, workflow_id);
            }
            Event::TaskTouched { task_id } => {
                self.touched.insert(task_id);
            }
            Event::TaskEnded { task_id } => self.end(task_id),
            Event::UsageReported { task_id, usage } => match known.workflow_of.get(task_id) {
                Some(workflow_id) if !self.ids.used.contains(task_id.as_str()) => {
                    self.used.push(Used { task_id, workflow_id, usage });
                    self.ids.used.insert(task_id);
                    self.ids.workflows_of_used.insert(workflow_id);
                }
                // Without its workflow nobody knows whose it is, and FlowMesh is asked after all. Reported again it is settled
                // already, or FlowMesh is to be asked.
                _ => self.end(task_id),
            },
        }
    }

    fn end(&mut self, task_id: &'a str) {
        let is_after = self.ids.used.contains(task_id);
        count(if is_after { &mut self.ended_after } else { &mut self.ended }, task_id);
    }

    /// Its row wants its principal to be there.
    fn over(&mut self, over: &'a event::Over) {
        let Some(principal_id) = &over.principal_id else { return };
        self.see(principal_id, None, Some(over.began));
        let this = Over { principal_id, began: over.began, at: over.at };
        self.over.entry(&over.submission_id).or_insert(this);
    }

    /// `at` is `None` for now, which is later than any other time.
    fn see(&mut self, principal_id: &'a str, email: Option<&'a str>, at: Option<Timestamp>) {
        let at = at.unwrap_or(Timestamp::MAX);
        let seen = self.principals.entry(principal_id).or_insert(Seen { email: None, at });
        seen.email = email.or(seen.email);
        seen.at = seen.at.max(at);
    }
}

fn count<'a>(things: &mut Counted<'a>, id: &'a str) {
    *things.entry(id).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::contract::{at, over};

    fn submitted(submission: &str, workflow: &str) -> Event {
        Event::Submitted {
            submission_id: submission.into(),
            principal_id: "alice".into(),
            workflow_id: workflow.into(),
            at: at(1),
        }
    }

    fn refused(submission: &str) -> Event {
        Event::SubmissionRefused { over: over(submission, "alice", 1, 2) }
    }

    fn ended(task: &str) -> Event {
        Event::TaskEnded { task_id: task.into() }
    }

    fn touched(task: &str) -> Event {
        Event::TaskTouched { task_id: task.into() }
    }

    fn seen(workflow: &str) -> Event {
        Event::WorkflowSeen { workflow_id: workflow.into() }
    }

    #[test]
    fn what_a_busy_edge_tells_is_one_wave_and_repeats_are_counted() {
        let mut events = Vec::new();
        for n in 0..100 {
            let (workflow, task) = (format!("wfl-{n}"), format!("tsk-{n}"));
            events.extend([seen(&workflow), submitted(&format!("sub-{n}"), &workflow), seen(&workflow)]);
            events.extend([touched(&task), ended(&task), touched(&task), ended(&task), seen(&workflow)]);
            events.push(submitted(&format!("sub-{n}"), &workflow));
        }
        let known = Known::default();
        let waves = waves(&events, &known);
        let [wave] = waves.as_slice() else { panic!("{} waves", waves.len()) };
        assert_eq!((wave.seen["wfl-7"], wave.seen_after["wfl-7"], wave.ended["tsk-7"]), (1, 2, 2));
        assert_eq!((wave.submitted.len(), wave.touched.len(), wave.ended.len()), (100, 100, 100));
    }

    #[test]
    fn what_must_keep_its_place_begins_a_wave() {
        let known = Known { alone: ["sub-3".to_owned()].into(), ..Known::default() };
        for (events, expected) in [
            // One submission that names two workflows, one workflow that two submissions name.
            (vec![submitted("sub-1", "wfl-1"), submitted("sub-1", "wfl-2")], 2),
            (vec![submitted("sub-1", "wfl-1"), submitted("sub-2", "wfl-1")], 2),
            (vec![submitted("sub-1", "wfl-1"), refused("sub-1")], 2),
            (vec![refused("sub-1"), submitted("sub-1", "wfl-1")], 1),
            (vec![submitted("sub-1", "wfl-1"), submitted("sub-2", "wfl-2")], 1),
            // One that touches what it does not name.
            (vec![submitted("sub-1", "wfl-1"), submitted("sub-3", "wfl-3"), submitted("sub-2", "wfl-2")], 3),
        ] {
            assert_eq!(waves(&events, &known).len(), expected, "{events:?}");
        }
    }
}
