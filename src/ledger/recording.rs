//! What the log tells, a batch in a number of statements that does not grow with it, whatever the database.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::batch::{self, Counted, Known, Submitted, Wave};
use super::settling::{self, ChargeTables, Settling};
use super::{Reported, Settled, Settlement, ms};
use crate::access_log::event::Event;

/// A result precedes the terminal status by up to a few seconds; asking sooner than this would mostly be in vain.
const SETTLE_AFTER: SignedDuration = SignedDuration::from_millis(250);
/// However often clients see that a task has ended, FlowMesh is asked no more often than this.
const EVIDENCE_INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// A task or workflow that is merely looked at is asked after no more often than this.
const TOUCH_INTERVAL: SignedDuration = SignedDuration::from_secs(5);
/// The first sweep of a fresh workflow.
const SWEEP_AFTER: SignedDuration = SignedDuration::from_secs(5);
/// How long a Check can be repeated: Envoy's time limit, generously. After that an equal request id is a client's doing.
pub const REPEATED_WITHIN: SignedDuration = SignedDuration::from_mins(1);

/// Of which submissions with the same principal and request id one is a repeat: of those let through from `since` on whose
/// request was not over when this one's `began`. The ledger has no end of those that are not heard of, nor of some that are
/// closed otherwise; of these the open ones are repeated. Times in ms.
#[derive(Debug, Clone, Copy)]
pub struct Repeats {
    pub since: i64,
    pub began: i64,
}

impl Repeats {
    /// Of one that is let through `at` a time by our clock. What is older than it by Envoy's may have been frozen on its way.
    #[must_use]
    pub fn of(began: Timestamp, at: Timestamp) -> Self {
        Self { since: ms(began.min(at) - REPEATED_WITHIN), began: ms(began) }
    }
}

/// Principals, each with their e-mail and when they were seen.
pub type SeenPrincipals<'a> = BTreeMap<&'a str, (Option<&'a str>, i64)>;

/// A submission, its principal, Envoy's request id, when it was let through, and both of [`Repeats`].
pub type LateRow<'a> = (&'a str, &'a str, &'a str, i64, i64, i64);

/// A submission that is over, its principal, when its request began and when it ended.
pub type OverRow<'a> = (&'a str, &'a str, i64, i64);

/// When what is asked after next.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Now, or a little later, in ms.
    pub at: i64,
    /// Between two questions, in ms.
    pub interval: i64,
}

/// The statements by which a database takes what the log tells: one or two each, for any number of rows. Times are ms since
/// the epoch.
pub trait LogTables: ChargeTables {
    /// The workflows of those tasks of which they are known.
    fn workflows_of(
        &mut self,
        tasks: &[&str],
    ) -> impl Future<Output = Result<Vec<(String, String)>, sqlx::Error>> + Send;

    /// Of submissions and what each made, those that another workflow was matched with, or that made one with tasks that were
    /// ignored.
    fn entangled(&mut self, made: &[(&str, &str)]) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;

    /// Of submissions, principals and request ids, the submissions whose request id has another row.
    fn repeated(
        &mut self,
        opened: &[(&str, &str, &str)],
    ) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;

    /// Workflows were seen, each so often.
    fn see_workflows(&mut self, seen: &Counted<'_>, plan: Plan)
    -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Of workflows and when they were submitted, those from before what is kept, but for those that have an owner or look for
    /// one.
    fn pruned(&mut self, made: &[(&str, i64)]) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;

    /// No e-mail leaves the known one.
    fn see_principals(&mut self, seen: &SeenPrincipals<'_>) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Charges of theirs that are held for want of an e-mail are to be posted.
    fn release_emailed(&mut self, principals: &[&str], at: i64)
    -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Inserts submissions whose rows could not be committed in time, unless they are there after all. An id that is used up
    /// cannot stand for another submission: that one goes by its own. The log entry of what it made may have been faster; one
    /// that was put down by its end gets what that did not tell.
    fn open_late(&mut self, rows: &[LateRow<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Inserts submissions that are over and have no row, because that comes late: under their own ids, until then. Not those
    /// from before what is kept, which were pruned. The log entry of what it made may have been faster.
    fn put_down(&mut self, rows: &[OverRow<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Submissions ended without telling what they made: when, and whether with an error of FlowMesh's.
    fn end_submissions(&mut self, rows: &[(&str, i64, bool)]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Submissions made nothing, and when that was known.
    fn refuse_submissions(&mut self, rows: &[(&str, i64)]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Submissions, what each made, and when.
    fn resolve_submissions(
        &mut self,
        rows: &[(&str, &str, i64)],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// One submission makes one workflow: another that was matched with it is somebody else's, and its owner is looked for
    /// again.
    fn unmatch_others(
        &mut self,
        submission_id: &str,
        workflow_id: &str,
        at: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Workflows have an owner by the log, which overrides whatever was guessed: workflow, submission and principal.
    fn own_workflows(
        &mut self,
        rows: &[(&str, &str, &str)],
        at: i64,
        sweep_at: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The tasks of workflows that were ignored are ours after all.
    fn bring_back_ignored(
        &mut self,
        workflows: &[&str],
        at: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Somebody looked: asked once, if nothing is planned and it is not settled.
    fn touch_tasks(
        &mut self,
        tasks: &BTreeSet<&str>,
        plan: Plan,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// There is evidence that they ended: they are asked after until they have. The evidence that makes a row is not counted.
    fn end_tasks(&mut self, ended: &Counted<'_>, plan: Plan) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Tasks that were given up have a cost after all.
    fn bring_back_gone(&mut self, tasks: &[&str]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

fn plan(at: Timestamp, interval: SignedDuration) -> Plan {
    Plan { at: ms(at), interval: i64::try_from(interval.as_millis()).unwrap_or(i64::MAX) }
}

/// Applies a batch. Returns the charges that this has written.
pub async fn record<T: LogTables>(to: &mut T, events: &[Event], at: Timestamp) -> Result<Vec<Reported>, sqlx::Error> {
    let known = look_up(to, events).await?;
    let mut charges = Vec::new();
    for wave in batch::waves(events, &known) {
        charges.extend(apply(to, wave, at).await?);
    }
    Ok(charges)
}

async fn look_up<T: LogTables>(to: &mut T, events: &[Event]) -> Result<Known, sqlx::Error> {
    let (mut used, mut made, mut opened) = (Vec::new(), Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::UsageReported { task_id, .. } => used.push(task_id.as_str()),
            Event::Submitted { submission_id, workflow_id, .. } => {
                made.push((submission_id.as_str(), workflow_id.as_str()));
            }
            Event::SubmissionOpened { submission_id, principal, request_id, .. } => {
                opened.push((submission_id.as_str(), principal.id.as_str(), request_id.as_str()));
            }
            _ => {}
        }
    }
    let mut known = Known::default();
    if !used.is_empty() {
        known.workflow_of.extend(to.workflows_of(&used).await?);
    }
    if !made.is_empty() {
        known.alone.extend(to.entangled(&made).await?);
    }
    if !opened.is_empty() {
        known.alone.extend(to.repeated(&opened).await?);
    }
    Ok(known)
}

/// Applies a wave, in the order of its fields.
async fn apply<T: LogTables>(to: &mut T, mut wave: Wave<'_>, at: Timestamp) -> Result<Vec<Reported>, sqlx::Error> {
    workflows_seen(to, &wave.seen, at).await?;
    if !wave.submitted.is_empty() {
        // A replay from before what is kept: its workflow may have been billed and pruned.
        let made: Vec<_> = wave.submitted.values().map(|made| (made.workflow_id, ms(made.at))).collect();
        for workflow in to.pruned(&made).await? {
            wave.submitted.remove(workflow.as_str());
        }
    }
    see_principals(to, &principals_of(&wave, at), at).await?;
    submissions_heard(to, &wave).await?;
    submissions_made(to, &wave, at).await?;
    workflows_seen(to, &wave.seen_after, at).await?;
    if !wave.touched.is_empty() {
        to.touch_tasks(&wave.touched, plan(at + SETTLE_AFTER, TOUCH_INTERVAL)).await?;
    }
    tasks_ended(to, &wave.ended, at).await?;
    let charges = if wave.used.is_empty() { Vec::new() } else { usage_reported(to, &wave, at).await? };
    tasks_ended(to, &wave.ended_after, at).await?;
    Ok(charges)
}

async fn workflows_seen<T: LogTables>(to: &mut T, seen: &Counted<'_>, at: Timestamp) -> Result<(), sqlx::Error> {
    if seen.is_empty() { Ok(()) } else { to.see_workflows(seen, plan(at, TOUCH_INTERVAL)).await }
}

async fn tasks_ended<T: LogTables>(to: &mut T, ended: &Counted<'_>, at: Timestamp) -> Result<(), sqlx::Error> {
    if ended.is_empty() { Ok(()) } else { to.end_tasks(ended, plan(at + SETTLE_AFTER, EVIDENCE_INTERVAL)).await }
}

fn principals_of<'a>(wave: &Wave<'a>, at: Timestamp) -> SeenPrincipals<'a> {
    let mut seen: SeenPrincipals<'a> =
        wave.principals.iter().map(|(id, seen)| (*id, (seen.email, ms(seen.at.min(at))))).collect();
    for made in wave.submitted.values() {
        let (_, last) = seen.entry(made.principal_id).or_insert((None, ms(at)));
        *last = (*last).max(ms(at));
    }
    seen
}

/// Records that principals were seen. An e-mail releases what was held for want of one.
pub async fn see_principals<T: LogTables>(
    to: &mut T,
    seen: &SeenPrincipals<'_>,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    if seen.is_empty() {
        return Ok(());
    }
    to.see_principals(seen).await?;
    let emailed: Vec<&str> = seen.iter().filter(|(_, (email, _))| email.is_some()).map(|(id, _)| *id).collect();
    if emailed.is_empty() { Ok(()) } else { to.release_emailed(&emailed, ms(at)).await }
}

/// Of submissions of which no workflow is told.
async fn submissions_heard<T: LogTables>(to: &mut T, wave: &Wave<'_>) -> Result<(), sqlx::Error> {
    if !wave.opened.is_empty() {
        let rows: Vec<LateRow<'_>> = wave
            .opened
            .iter()
            .map(|&batch::Opened { submission_id, principal_id, request_id, began, at }| {
                let repeats = Repeats::of(began, at);
                (submission_id, principal_id, request_id, ms(at), repeats.since, repeats.began)
            })
            .collect();
        to.open_late(&rows).await?;
    }
    if !wave.over.is_empty() {
        let rows: Vec<OverRow<'_>> =
            wave.over.iter().map(|(id, over)| (*id, over.principal_id, ms(over.began), ms(over.at))).collect();
        to.put_down(&rows).await?;
    }
    if !wave.ended_submissions.is_empty() {
        let rows: Vec<_> =
            wave.ended_submissions.iter().map(|(id, (ended, failed))| (*id, ms(*ended), *failed)).collect();
        to.end_submissions(&rows).await?;
    }
    if wave.refused.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = wave.refused.iter().map(|(id, at)| (*id, ms(*at))).collect();
    to.refuse_submissions(&rows).await
}

/// The log names the owner, and that frees what was held.
async fn submissions_made<T: LogTables>(to: &mut T, wave: &Wave<'_>, at: Timestamp) -> Result<(), sqlx::Error> {
    if wave.submitted.is_empty() {
        return Ok(());
    }
    let made = || wave.submitted.values();
    let rows: Vec<_> = made()
        .map(|Submitted { submission_id, workflow_id, at, .. }| (*submission_id, *workflow_id, ms(*at)))
        .collect();
    to.resolve_submissions(&rows).await?;
    if wave.is_alone {
        for Submitted { submission_id, workflow_id, .. } in made() {
            to.unmatch_others(submission_id, workflow_id, ms(at)).await?;
        }
    }
    let rows: Vec<_> = made().map(|made| (made.workflow_id, made.submission_id, made.principal_id)).collect();
    to.own_workflows(&rows, ms(at), ms(at + SWEEP_AFTER)).await?;
    let workflows: Vec<&str> = wave.submitted.keys().copied().collect();
    if wave.is_alone {
        // A clock that runs behind can make a workflow look older than the ledger; its tasks are ours after all.
        to.bring_back_ignored(&workflows, ms(at)).await?;
    }
    to.release(&workflows, ms(at)).await
}

/// Answers themselves say what their tasks cost.
async fn usage_reported<T: LogTables>(
    to: &mut T,
    wave: &Wave<'_>,
    at: Timestamp,
) -> Result<Vec<Reported>, sqlx::Error> {
    let tasks: Vec<&str> = wave.used.iter().map(|used| used.task_id).collect();
    to.bring_back_gone(&tasks).await?;
    let settlements: Vec<Settlement> = wave.used.iter().map(|used| Settlement::Usage(used.usage.clone())).collect();
    let settling: Vec<Settling<'_>> = wave
        .used
        .iter()
        .zip(&settlements)
        .map(|(used, settlement)| Settling {
            task_id: used.task_id,
            workflow_id: Some(used.workflow_id),
            settlement,
            at,
        })
        .collect();
    let (mut charges, mut deferred) = (Vec::new(), Counted::new());
    for (used, settled) in wave.used.iter().zip(settling::settle(to, &settling).await?) {
        match settled {
            Settled::Deferred => {
                deferred.insert(used.task_id, 1);
            }
            Settled::Charged { .. } | Settled::Held { .. } => charges.push(Reported {
                task_id: used.task_id.to_owned(),
                workflow_id: used.workflow_id.to_owned(),
                cost: used.usage.cost.clone(),
                settled,
            }),
            _ => {}
        }
    }
    tasks_ended(to, &deferred, at).await?;
    Ok(charges)
}
