//! What settling, sweeping, posting and Check bring, committed in groups, whatever the database.
//!
//! One by one each was a transaction with an fsync of its own, and 430 charges were posted a second. As many as wait for the
//! writer are one transaction now, in a number of statements that does not grow with them but for one a submission.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::group::{Commit, Group};
use super::recording::{LogTables, Repeats, SeenPrincipals, see_principals};
use super::settling::{self, Settling};
use super::{
    Attribution, DueCharge, DueTask, DueWorkflow, Error, Existence, NewSubmission, NextSweep, Posted, Settled,
    Settlement, ms,
};
use crate::principal::Principal;

/// One of them.
#[derive(Debug)]
pub enum Move {
    Open { submission_id: String, principal: Principal, request_id: String, began: Timestamp, at: Timestamp },
    Settle { task_id: String, workflow_id: Option<String>, settlement: Settlement, at: Timestamp },
    Unsettled { task_id: String, heard: i64, again: Option<Timestamp>, existence: Existence, at: Timestamp },
    Swept { workflow_id: String, heard: i64, next: NextSweep, existence: Existence, at: Timestamp },
    Posted { task_id: String, principal_id: String, at: Timestamp },
    PostFailed { task_id: String, leased_until: Timestamp, error: String, again: Timestamp, at: Timestamp },
    PostRejected { task_id: String, leased_until: Timestamp, answer: String },
}

/// What came of one.
#[derive(Debug)]
pub enum Moved {
    Done,
    /// Under which id the submission stands.
    Opened(String),
    Settled(Settled),
    Posted(Posted),
}

/// The moves of a ledger, as [`super::Ledger`] has them.
impl<S: Commit<Move = Move, Moved = Moved>> Group<S> {
    pub(super) async fn open(&self, submission: NewSubmission<'_>, began: Timestamp) -> Result<String, Error> {
        let NewSubmission { submission_id, principal, request_id, at } = submission;
        let this = Move::Open {
            submission_id: submission_id.to_owned(),
            principal: principal.clone(),
            request_id: request_id.to_owned(),
            began,
            at,
        };
        match self.commit(this).await? {
            Moved::Opened(id) => Ok(id),
            Moved::Done | Moved::Settled(_) | Moved::Posted(_) => Ok(submission_id.to_owned()),
        }
    }

    pub(super) async fn settle(
        &self,
        task_id: &str,
        workflow_id: Option<&str>,
        settlement: &Settlement,
        at: Timestamp,
    ) -> Result<Settled, Error> {
        let this = Move::Settle {
            task_id: task_id.to_owned(),
            workflow_id: workflow_id.map(str::to_owned),
            settlement: settlement.clone(),
            at,
        };
        match self.commit(this).await? {
            Moved::Settled(settled) => Ok(settled),
            Moved::Done | Moved::Opened(_) | Moved::Posted(_) => Ok(Settled::Already),
        }
    }

    pub(super) async fn unsettled(
        &self,
        due: &DueTask,
        again: Option<Timestamp>,
        existence: Existence,
        at: Timestamp,
    ) -> Result<(), Error> {
        let (task_id, heard) = (due.task_id.clone(), due.heard);
        self.commit(Move::Unsettled { task_id, heard, again, existence, at }).await.map(drop)
    }

    pub(super) async fn swept(
        &self,
        due: &DueWorkflow,
        next: NextSweep,
        existence: Existence,
        at: Timestamp,
    ) -> Result<(), Error> {
        let (workflow_id, heard) = (due.workflow_id.clone(), due.heard);
        self.commit(Move::Swept { workflow_id, heard, next, existence, at }).await.map(drop)
    }

    pub(super) async fn posted(&self, charge: &DueCharge, at: Timestamp) -> Result<Posted, Error> {
        let (task_id, principal_id) = (charge.task_id.clone(), charge.principal_id.clone());
        match self.commit(Move::Posted { task_id, principal_id, at }).await? {
            Moved::Posted(posted) => Ok(posted),
            Moved::Done | Moved::Opened(_) | Moved::Settled(_) => Ok(Posted::Theirs),
        }
    }

    pub(super) async fn post_failed(
        &self,
        charge: &DueCharge,
        error: &str,
        again: Timestamp,
        at: Timestamp,
    ) -> Result<(), Error> {
        let (task_id, leased_until) = (charge.task_id.clone(), charge.leased_until);
        let this = Move::PostFailed { task_id, leased_until, error: error.to_owned(), again, at };
        self.commit(this).await.map(drop)
    }

    pub(super) async fn post_rejected(&self, charge: &DueCharge, answer: &str) -> Result<(), Error> {
        let (task_id, leased_until) = (charge.task_id.clone(), charge.leased_until);
        self.commit(Move::PostRejected { task_id, leased_until, answer: answer.to_owned() }).await.map(drop)
    }
}

/// A question after a task that is not over: the task, when to ask again, now, what was heard of it by then, and whether
/// FlowMesh knows it.
pub type UnsettledRow<'a> = (&'a str, Option<i64>, i64, i64, &'static str);

/// In place of the state of a workflow that stays open, when the sweep does not count.
const WAITING: &str = "waiting";

/// A sweep: the workflow, its state from now on or `waiting`, when to sweep again, now, what was heard of it by then, and whether FlowMesh
/// knows it.
pub type SweptRow<'a> = (&'a str, &'static str, Option<i64>, i64, i64, &'static str);

/// A charge that Runmesh has: the task, since when, and for whom.
pub type PostedRow<'a> = (&'a str, i64, &'a str);

/// The statements by which a database takes these: one each but for [`MoveTables::insert_submission`], for any number of rows.
/// Times are ms since the epoch.
pub trait MoveTables: LogTables {
    /// Inserts a submission under a request id. The id under which it stands, which is another one's of which it is a repeat;
    /// `None` when that request id is used up, or the submission is there under its own.
    fn insert_submission(
        &mut self,
        submission: &NewSubmission<'_>,
        request_id: &str,
        repeats: Repeats,
    ) -> impl Future<Output = Result<Option<String>, sqlx::Error>> + Send;

    /// News that came since the question are acted on at once.
    fn unsettled(&mut self, rows: &[UnsettledRow<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Likewise.
    fn swept(&mut self, rows: &[SweptRow<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Runmesh has them: each with when it was told so, and for whom it was posted. Returns those that are theirs still and were
    /// pending.
    fn posted(&mut self, rows: &[PostedRow<'_>]) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;

    /// Whose these are now, in which state.
    fn standing(
        &mut self,
        task_ids: &[&str],
    ) -> impl Future<Output = Result<Vec<(String, String, Option<String>)>, sqlx::Error>> + Send;

    /// Likewise posted, though they are somebody else's or held by now: makes them theirs for whom they were posted, and says so.
    fn posted_astray(&mut self, rows: &[PostedRow<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// It did not work: each with until when it was claimed, why, and when it is to be tried again. Returns the workflows of those
    /// that nobody else has claimed meanwhile.
    fn post_failed(
        &mut self,
        rows: &[(&str, i64, &str, i64)],
    ) -> impl Future<Output = Result<Vec<Option<String>>, sqlx::Error>> + Send;

    /// Runmesh refused them for good: each with until when it was claimed, and its answer.
    fn post_rejected(&mut self, rows: &[(&str, i64, &str)]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Says when FlowMesh took a workflow, unless that is known.
    fn date_workflow(
        &mut self,
        workflow_id: &str,
        submitted_at: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// A workflow of which nothing is known is not ours. It is not swept any more, so nobody else lifts its lease.
    fn ignore_workflow(&mut self, workflow_id: &str) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// A workflow whose owner is not known is held.
    fn hold_workflow(
        &mut self,
        workflow_id: &str,
        reason: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Gives such a workflow to a principal whose submission is still open. Whether it did.
    fn match_workflow(
        &mut self,
        workflow_id: &str,
        principal_id: &str,
        submission_id: &str,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
}

/// Inserts a submission and returns the id under which it stands.
async fn open<T: MoveTables>(
    to: &mut T,
    submission: NewSubmission<'_>,
    began: Timestamp,
) -> Result<String, sqlx::Error> {
    let NewSubmission { submission_id, request_id, at, .. } = submission;
    // An id that is used up cannot stand for another submission: that one goes by its own.
    for key in [request_id, submission_id] {
        if let Some(id) = to.insert_submission(&submission, key, Repeats::of(began, at)).await? {
            return Ok(id);
        }
    }
    Err(sqlx::Error::RowNotFound)
}

/// Records whose submissions these are: a foreign key wants that first.
async fn see_submitters<T: MoveTables>(to: &mut T, moves: &[Move]) -> Result<(), sqlx::Error> {
    let (mut seen, mut last) = (SeenPrincipals::new(), Timestamp::MIN);
    for this in moves {
        if let Move::Open { principal, at, .. } = this {
            let (email, seen_at) = seen.entry(&principal.id).or_insert((None, ms(*at)));
            *email = principal.email.as_deref().or(*email);
            *seen_at = (*seen_at).max(ms(*at));
            last = last.max(*at);
        }
    }
    see_principals(to, &seen, last).await
}

/// Applies moves, kind by kind: those that wait at the same time are of different things, each of which somebody holds by a
/// lease.
pub async fn apply<T: MoveTables>(to: &mut T, moves: &[Move]) -> Result<Vec<Moved>, sqlx::Error> {
    let mut outcomes = Vec::with_capacity(moves.len());
    let (mut settling, mut unsettled, mut swept) = (Vec::new(), Vec::new(), Vec::new());
    let (mut posted, mut post_failed, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = Timestamp::MIN;
    see_submitters(to, moves).await?;
    for (n, this) in moves.iter().enumerate() {
        outcomes.push(Moved::Done);
        match this {
            Move::Open { submission_id, principal, request_id, began, at } => {
                let row = NewSubmission { submission_id, principal, request_id, at: *at };
                outcomes[n] = Moved::Opened(open(to, row, *began).await?);
            }
            Move::Settle { task_id, workflow_id, settlement, at } => {
                settling.push((n, Settling { task_id, workflow_id: workflow_id.as_deref(), settlement, at: *at }));
            }
            Move::Unsettled { task_id, heard, again, existence, at } => {
                unsettled.push((task_id.as_str(), again.map(ms), ms(*at), *heard, existence.as_str()));
            }
            Move::Swept { workflow_id, heard, next, existence, at } => {
                let (state, sweep_at) = match next {
                    NextSweep::At(at) => ("open", Some(ms(*at))),
                    NextSweep::Wait(at) => (WAITING, Some(ms(*at))),
                    NextSweep::Settled => ("settled", None),
                    NextSweep::Gone => ("gone", None),
                };
                swept.push((workflow_id.as_str(), state, sweep_at, ms(*at), *heard, existence.as_str()));
            }
            Move::Posted { task_id, principal_id, at } => {
                posted.push((n, (task_id.as_str(), ms(*at), principal_id.as_str())));
            }
            Move::PostFailed { task_id, leased_until, error, again, at } => {
                post_failed.push((task_id.as_str(), ms(*leased_until), error.as_str(), ms(*again)));
                last = last.max(*at);
            }
            Move::PostRejected { task_id, leased_until, answer } => {
                rejected.push((task_id.as_str(), ms(*leased_until), answer.as_str()));
            }
        }
    }
    if !settling.is_empty() {
        let items: Vec<Settling<'_>> = settling.iter().map(|(_, item)| *item).collect();
        for ((n, _), settled) in settling.iter().zip(settling::settle(to, &items).await?) {
            outcomes[*n] = Moved::Settled(settled);
        }
    }
    if !unsettled.is_empty() {
        to.unsettled(&unsettled).await?;
    }
    if !swept.is_empty() {
        to.swept(&swept).await?;
    }
    if !posted.is_empty() {
        let rows: Vec<PostedRow<'_>> = posted.iter().map(|(_, row)| *row).collect();
        let astray = post(to, &rows).await?;
        for (n, (task_id, ..)) in posted {
            let owner = astray.get(task_id).cloned();
            outcomes[n] = Moved::Posted(owner.map_or(Posted::Theirs, |owner| Posted::Astray { owner }));
        }
    }
    if !post_failed.is_empty() {
        // Their owners may have been corrected while they were being posted.
        let workflows = to.post_failed(&post_failed).await?;
        let workflows: BTreeSet<&str> = workflows.iter().flatten().map(String::as_str).collect();
        to.release(&Vec::from_iter(workflows), ms(last)).await?;
    }
    if !rejected.is_empty() {
        to.post_rejected(&rejected).await?;
    }
    Ok(outcomes)
}

/// Records that Runmesh has these. Returns those that are not theirs any more for whom they were posted, with whose they were.
async fn post<T: MoveTables>(
    to: &mut T,
    rows: &[PostedRow<'_>],
) -> Result<HashMap<String, Option<String>>, sqlx::Error> {
    let done: HashSet<String> = to.posted(rows).await?.into_iter().collect();
    let mut others: HashMap<&str, PostedRow<'_>> =
        rows.iter().filter(|(task_id, ..)| !done.contains(*task_id)).map(|row| (row.0, *row)).collect();
    if others.is_empty() {
        return Ok(HashMap::new());
    }
    let (mut astray, mut unposted) = (HashMap::new(), Vec::new());
    let tasks: Vec<&str> = others.keys().copied().collect();
    for (task_id, state, owner) in to.standing(&tasks).await? {
        let Some(row) = others.remove(task_id.as_str()) else { continue };
        if matches!(state.as_str(), "pending" | "held") {
            unposted.push(row);
        }
        if owner.as_deref() != Some(row.2) {
            astray.insert(task_id, owner);
        }
    }
    if !unposted.is_empty() {
        to.posted_astray(&unposted).await?;
    }
    Ok(astray)
}

/// Records whose a workflow is, unless that is known already.
pub async fn attribute<T: MoveTables>(
    to: &mut T,
    workflow_id: &str,
    attribution: &Attribution,
    submitted_at: Option<Timestamp>,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    if let Some(submitted_at) = submitted_at {
        to.date_workflow(workflow_id, ms(submitted_at)).await?;
    }
    match attribution {
        Attribution::Ignored => to.ignore_workflow(workflow_id).await,
        Attribution::Held { reason } => to.hold_workflow(workflow_id, reason).await,
        Attribution::Matched { submission_id, principal_id } => {
            // Else the log was faster, or another workflow took the submission: the next sweep looks again.
            if to.match_workflow(workflow_id, principal_id, submission_id).await? {
                to.resolve_submissions(&[(submission_id, workflow_id, ms(at))]).await?;
                to.release(&[workflow_id], ms(at)).await?;
            }
            Ok(())
        }
    }
}
