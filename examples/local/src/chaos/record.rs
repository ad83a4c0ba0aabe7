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

/// A time in which Tollgate could not write its ledger: the disk was full, or the database away.
#[derive(Clone, Copy, Debug)]
struct Unwritable {
    /// Which one could not; `None`: none could.
    replica: Option<usize>,
    from: Instant,
    to: Option<Instant>,
}

impl Unwritable {
    fn concerns(&self, replica: usize) -> bool {
        self.replica.is_none_or(|one| one == replica)
    }
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
    unwritable: Vec<Unwritable>,
    /// Which Tollgate, and when.
    killed: Vec<(usize, Instant)>,
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

    pub fn killed(&self, replica: usize) {
        lock(&self.state).killed.push((replica, Instant::now()));
    }

    /// This replica, or none at all, can write the ledger from now on until [`Self::writable`] is told of what this returns.
    pub fn unwritable(&self, replica: Option<usize>) -> usize {
        let mut state = lock(&self.state);
        state.unwritable.push(Unwritable { replica, from: Instant::now(), to: None });
        state.unwritable.len() - 1
    }

    pub fn writable(&self, again: usize) {
        lock(&self.state).unwritable[again].to = Some(Instant::now());
    }

    /// Whether what this one received may still not have been committed.
    pub fn was_unwritable_lately(&self, replica: usize) -> bool {
        let now = Instant::now();
        self.uncommitted_since(replica, now) != now
    }

    /// Since when what a Tollgate received may not have been committed: the moment given, or since it cannot write.
    pub fn uncommitted_since(&self, replica: usize, at: Instant) -> Instant {
        let state = lock(&self.state);
        let just_now = state.unwritable.iter().filter(|span| {
            span.concerns(replica) && span.from < at && span.to.is_none_or(|to| to + Duration::from_secs(8) > at)
        });
        just_now.map(|span| span.from).min().unwrap_or(at)
    }

    /// Whether a row could be lost: it could not be written when it was to be, and a Tollgate that could not was killed before
    /// it was possible again.
    pub fn may_lack_its_row(&self, submission: &Submission) -> bool {
        let state = lock(&self.state);
        let slack = Duration::from_secs(10);
        state.unwritable.iter().any(|span| {
            let to = span.to.unwrap_or_else(Instant::now) + slack;
            submission.sent <= to
                && submission.answered.is_none_or(|(at, _)| at + slack >= span.from)
                && state.killed.iter().any(|(which, at)| span.concerns(*which) && *at >= span.from && *at <= to)
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
    fn a_row_may_be_lost_only_when_who_cannot_write_is_killed() {
        let record = Record::new();
        let number = record.sending(0);
        let may = || record.may_lack_its_row(&record.submissions()[number]);
        record.killed(1);
        assert!(!may());
        let full = record.unwritable(Some(1));
        assert!(!may(), "the kill came before");
        assert!(record.was_unwritable_lately(1) && !record.was_unwritable_lately(0));
        record.killed(0);
        assert!(!may(), "another one can");
        record.killed(1);
        record.writable(full);
        assert!(may());
    }
}
