//! What a round did and saw: the timeline, the submissions, the moments in which log entries may have been lost.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::lock;

/// A submission as its client saw it.
#[derive(Clone, Debug)]
pub(super) struct Submission {
    /// Whose, as an index.
    pub person: usize,
    pub sent: Instant,
    pub sent_at: Timestamp,
    /// When it was answered, and with what status.
    pub answered: Option<(Instant, u16)>,
    pub workflow: Option<String>,
}

/// A time in which log entries may have got lost, for a reason.
#[derive(Clone, Copy, Debug)]
struct Loss {
    from: Instant,
    to: Instant,
}

#[derive(Default)]
struct State {
    timeline: Vec<String>,
    submissions: Vec<Submission>,
    losses: Vec<Loss>,
    /// Workflows whose submission's log entry was dropped on its way.
    lost_workflows: HashSet<String>,
    counts: BTreeMap<&'static str, u64>,
    failures: Vec<String>,
    /// Since when the disk is or was full.
    full: Vec<(Instant, Option<Instant>)>,
    killed: Vec<Instant>,
}

/// The account of a round.
pub(super) struct Record {
    started: Instant,
    state: Mutex<State>,
}

impl Record {
    pub fn new() -> Self {
        Self { started: Instant::now(), state: Mutex::default() }
    }

    /// A line of the timeline.
    pub fn note(&self, what: impl std::fmt::Display) {
        let at = self.started.elapsed().as_secs_f64();
        lock(&self.state).timeline.push(format!("{at:8.3} {what}"));
    }

    /// Counts a fault, or whatever else is worth a figure, and notes it.
    pub fn count(&self, kind: &'static str, details: impl std::fmt::Display) {
        *lock(&self.state).counts.entry(kind).or_default() += 1;
        self.note(format_args!("{kind}: {details}"));
    }

    /// Counts without a line of its own.
    pub fn tick(&self, kind: &'static str, by: u64) {
        *lock(&self.state).counts.entry(kind).or_default() += by;
    }

    /// Something that must not be.
    pub fn fail(&self, what: impl std::fmt::Display) {
        self.note(format_args!("FAILURE: {what}"));
        lock(&self.state).failures.push(what.to_string());
    }

    /// A submission that is about to be sent; its number.
    pub fn sending(&self, person: usize) -> usize {
        let mut state = lock(&self.state);
        state.submissions.push(Submission {
            person,
            sent: Instant::now(),
            sent_at: Timestamp::now(),
            answered: None,
            workflow: None,
        });
        state.submissions.len() - 1
    }

    pub fn answered(&self, number: usize, status: u16, workflow: Option<String>) {
        let mut state = lock(&self.state);
        let submission = &mut state.submissions[number];
        submission.answered = Some((Instant::now(), status));
        submission.workflow = workflow;
    }

    /// Log entries of requests that ended between these may be lost.
    pub fn lost_between(&self, from: Instant, to: Instant) {
        lock(&self.state).losses.push(Loss { from, to });
    }

    /// A message with log entries was dropped; these workflows' submissions were among them.
    pub fn dropped(&self, workflows: Vec<String>) {
        lock(&self.state).lost_workflows.extend(workflows);
    }

    pub fn killed(&self) {
        lock(&self.state).killed.push(Instant::now());
    }

    pub fn disk_full(&self, full: bool) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if full {
            state.full.push((now, None));
        } else if let Some(last) = state.full.last_mut() {
            last.1.get_or_insert(now);
        }
    }

    /// Whether what was received may still not have been committed.
    pub fn was_full_lately(&self) -> bool {
        let now = Instant::now();
        self.uncommitted_since(now) != now
    }

    /// Since when what Tollgate received may not have been committed: the moment given, or since the disk is full.
    pub fn uncommitted_since(&self, at: Instant) -> Instant {
        let state = lock(&self.state);
        let just_full = |(from, to): &&(Instant, Option<Instant>)| {
            *from < at && to.is_none_or(|to| to + Duration::from_secs(8) > at)
        };
        state.full.iter().find(just_full).map_or(at, |(from, _)| *from)
    }

    /// Whether a row could be lost: the disk was full when it was to be written, and Tollgate killed before it was
    /// possible again.
    pub fn may_lack_its_row(&self, submission: &Submission) -> bool {
        let state = lock(&self.state);
        let slack = Duration::from_secs(10);
        state.full.iter().any(|(from, to)| {
            let to = to.unwrap_or_else(Instant::now) + slack;
            submission.sent <= to
                && submission.answered.is_none_or(|(at, _)| at + slack >= *from)
                && state.killed.iter().any(|killed| *killed >= *from && *killed <= to)
        })
    }

    /// Why nobody may have told Tollgate what came of a submission; `None` when somebody must have.
    pub fn uncertain(&self, submission: &Submission) -> Option<String> {
        let state = lock(&self.state);
        let Some((at, status)) = submission.answered else { return Some("no answer".to_owned()) };
        if status >= 500 {
            return Some(format!("answered {status}"));
        }
        if submission.workflow.as_ref().is_some_and(|id| state.lost_workflows.contains(id)) {
            return Some("its log entry was dropped".to_owned());
        }
        let flush = Duration::from_millis(500);
        let lost = state.losses.iter().any(|loss| loss.from <= at + flush && at <= loss.to);
        lost.then(|| "log entries were lost at its end".to_owned())
    }

    pub fn submissions(&self) -> Vec<Submission> {
        lock(&self.state).submissions.clone()
    }

    /// Which person sent a submission.
    pub fn person_of(&self, number: usize) -> Option<usize> {
        lock(&self.state).submissions.get(number).map(|submission| submission.person)
    }

    pub fn timeline(&self) -> String {
        let mut text = lock(&self.state).timeline.join("\n");
        text.push('\n');
        text
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.state).counts.clone()
    }

    pub fn failures(&self) -> Vec<String> {
        lock(&self.state).failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_is_uncertain_only_when_nobody_may_have_told_of_its_end() {
        let record = Record::new();
        let numbers: Vec<usize> = (0..4).map(|person| record.sending(person)).collect();
        record.answered(numbers[1], 201, Some("wfl-1".to_owned()));
        record.answered(numbers[2], 201, Some("wfl-2".to_owned()));
        record.answered(numbers[3], 503, None);
        record.dropped(vec!["wfl-2".to_owned()]);
        let uncertain = |number: usize| record.uncertain(&record.submissions()[number]).is_some();
        assert_eq!([0, 1, 2, 3].map(uncertain), [true, false, true, true]);
        record.lost_between(Instant::now(), Instant::now());
        assert!(uncertain(1), "log entries were lost just after its answer");
    }

    #[test]
    fn a_row_may_be_lost_only_with_a_full_disk_and_a_kill() {
        let record = Record::new();
        let number = record.sending(0);
        let may = || record.may_lack_its_row(&record.submissions()[number]);
        record.killed();
        assert!(!may());
        record.disk_full(true);
        assert!(!may(), "the kill came before");
        assert!(record.was_full_lately());
        record.killed();
        record.disk_full(false);
        assert!(may());
    }
}
