//! What is wrong, and what to do about it. Pure: from what the page knows to findings, worst first.

use std::time::Duration;

use super::text;
use super::view::{Shelf, View};
use crate::admin::gauges::age;
use crate::admin::history::MINUTES;
use crate::ledger::Backlog;
use crate::upstream::health::Account;
use Gravity::{Attention, Failing, Note};

/// Charges that wait for longer than this wait for something.
const LONG_WAIT: i64 = 600;
/// So much overdue is no ordinary queue of tasks.
const LONG_OVERDUE: i64 = 3600;
/// Days before the end of a certificate at which somebody should have renewed it.
const RENEWAL: i64 = 14;
/// Minutes that count as now.
const LATELY: usize = 5;
/// Of a peer whose circuit is open, and whose last call went well all the same.
const FAILED_SOMETIMES: &str = "it failed several times in a row";

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// Something does not work now.
    Failing,
    /// A person is wanted, and nothing gets worse meanwhile.
    Attention,
    /// Good to know.
    Note,
}

/// One thing to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub gravity: Gravity,
    /// A sentence without its full stop.
    pub what: String,
    /// What to do about it, or what happens by itself.
    pub then: String,
    /// A command that shows more.
    pub command: Option<&'static str>,
    /// The section of docs/OPERATING.md that says more.
    pub read: Option<&'static str>,
}

/// All there is to know, worst first.
pub fn findings(view: &View) -> Vec<Finding> {
    let mut found = Found::default();
    found.of_process(view);
    found.of_peers(view);
    found.of_files(view);
    if let Shelf::Read { backlog, .. } = &view.shelf {
        found.of_ledger(backlog);
        found.of_waiting_tasks(view, backlog);
    }
    for warning in &view.warnings {
        found.add(Note, format!("Configuration: {}", text::plain(warning)), "", None, None);
    }
    found.0.sort_by_key(|finding| finding.gravity);
    found.0
}

#[derive(Default)]
struct Found(Vec<Finding>);

impl Found {
    fn add(
        &mut self,
        gravity: Gravity,
        what: String,
        then: &str,
        command: Option<&'static str>,
        read: Option<&'static str>,
    ) {
        self.0.push(Finding { gravity, what, then: then.to_owned(), command, read });
    }

    fn of_process(&mut self, view: &View) {
        if view.draining {
            let then = "Checks are answered to the end.";
            self.add(Attention, "Tollgate is stopping".to_owned(), then, None, Some("Stopping"));
        }
        if let Shelf::Unreadable(why) = &view.shelf {
            let then = "Submissions go through, and their rows follow when it takes them again. Look at the disk, its \
                        space, and the permissions of the file.";
            self.add(Failing, format!("The ledger cannot be read: {why}"), then, None, Some("LedgerFails"));
        }
        let lately = view.hour.sum(LATELY);
        if lately.ledger_errors > 0 {
            let what = format!("The ledger failed {} in the last {LATELY} minutes", times(lately.ledger_errors));
            self.add(Attention, what, "The log has the cause: disk, permissions.", None, Some("LedgerErrors"));
        }
        if lately.unjudged > 0 {
            let what = format!(
                "{} went through in the last {LATELY} minutes without a balance check",
                text::count(lately.unjudged, "submission")
            );
            let then = "Runmesh did not answer in time or as agreed when it was asked; the log has the cause.";
            self.add(Attention, what, then, None, Some("GuardBlind"));
        }
        // Not of this minute: Envoy opens a stream when it has something to send.
        let submitted = lately.submissions - view.hour.sum(1).submissions;
        if submitted > 0 && view.log_streams == 0 && !view.shelf.is_off() {
            let what = "Workflows are submitted, and no Envoy sends its access log".to_owned();
            let then = "Charges are found by asking FlowMesh, minutes later. Does the edge run with the access log of \
                        `tollgate envoy-config`?";
            self.add(Attention, what, then, None, Some("LogStreamsAbsent"));
        }
        let unknown = lately.reason("too_many_unknown");
        if unknown > 0 {
            let what = format!("{} refused in the last {LATELY} minutes for too many unknown tokens", were(unknown));
            let then = "Somebody tries tokens, or a fleet has an old one: the log lines have the address.";
            self.add(Attention, what, then, None, Some("TokensTried"));
        }
    }

    fn of_files(&mut self, view: &View) {
        if let Some(left) = view.certificate_end.map(|end| end.duration_since(view.now).as_secs()) {
            let then = "Put the next one into `TOLLGATE_TLS_CERT` and `TOLLGATE_TLS_KEY`; it is taken up as it is.";
            if left <= 0 {
                let what = "The certificate that Envoy is shown has ended: no Envoy can connect any more".to_owned();
                self.add(Failing, what, then, None, Some("CertificateEndsNow"));
            } else if left < RENEWAL * 86_400 {
                let what = format!("The certificate that Envoy is shown ends in {}", text::seconds(left));
                self.add(Attention, what, then, None, Some("CertificateEndsSoon"));
            }
        }
        let unusable = view.hour.sum(MINUTES).unusable_secrets;
        if unusable > 0 {
            let what = format!("A changed secret file could not be used, {} in the last hour", times(unusable));
            let then =
                "The secret from before is in use, unless a later change was a good one: the log names the variable.";
            self.add(Attention, what, then, None, Some("SecretReloadFailed"));
        }
    }

    fn of_peers(&mut self, view: &View) {
        if let Some(error) = failing(&view.lum_id) {
            let then = "Requests whose token is not remembered are refused with 503; known tokens serve out their \
                        minute. Can `LUM_ID_BASE_URL` be reached from here?";
            self.add(Failing, format!("lum.id does not answer: {error}"), then, None, Some("IdentityUnavailable"));
        } else {
            // It may answer every other question.
            let unavailable = view.hour.sum(LATELY).reason("identity_unavailable");
            if unavailable > 0 {
                let what = format!("{} refused in the last {LATELY} minutes over lum.id", were(unavailable));
                let then = "It answers now, and did not answer all of them in time; its last failure is below.";
                self.add(Attention, what, then, None, Some("IdentityUnavailable"));
            }
        }
        if let Some(runmesh) = &view.runmesh {
            self.of_runmesh(view, failing(runmesh));
        }
        let paused = || view.asking_paused.then(|| FAILED_SOMETIMES.to_owned());
        if let Some(error) = failing(&view.flowmesh).or_else(paused) {
            let what = format!("FlowMesh does not answer Tollgate's own questions: {error}");
            let then = if view.shelf.is_off() {
                "Requests go without the supplier that it would name. Can `FLOWMESH_BASE_URL` be reached from here?"
            } else {
                "What tasks cost is asked again when it answers; none is forgotten. Can `FLOWMESH_BASE_URL` be reached \
                 from here?"
            };
            self.add(Failing, what, then, None, Some("AskingPaused"));
        }
    }

    fn of_runmesh(&mut self, view: &View, error: Option<String>) {
        let age = text::seconds(view.backlog_age());
        let waits = match &view.shelf {
            Shelf::Read { backlog, .. } => match backlog.pending_charges {
                0 => "No charge waits. ".to_owned(),
                1 => format!("1 charge waits, for {age}. "),
                pending => format!("{} wait, the oldest for {age}. ", text::count(pending, "charge")),
            },
            Shelf::Off | Shelf::Unreadable(_) => String::new(),
        };
        let then = format!("{waits}None is lost: posting goes on by itself when Runmesh takes a probe.");
        match (view.posting_paused, error) {
            (_, Some(error)) if error.contains("status 401") || error.contains("status 403") => {
                let what = format!("Runmesh does not accept the secret: {error}");
                let then = format!("Put the right one where `FLOWMESH_BRIDGE_SECRET` comes from. {then}");
                self.add(Failing, what, &then, None, Some("BridgeSecretRefused"));
            }
            (true, error) => {
                let error = error.unwrap_or_else(|| FAILED_SOMETIMES.to_owned());
                self.add(Failing, format!("Nothing is posted to Runmesh: {error}"), &then, None, Some("PostingPaused"));
            }
            (false, Some(error)) => {
                self.add(Attention, format!("Runmesh fails: {error}"), &then, None, Some("PostingPaused"));
            }
            (false, None) if view.backlog_age() > LONG_WAIT => {
                let what = format!("Charges wait for long to be posted, the oldest for {age}");
                let then = "The list says what became of the last try of each.";
                let command = Some("tollgate ledger list --state pending");
                self.add(Attention, what, then, command, Some("ChargesWait"));
            }
            (false, None) => {}
        }
    }

    /// With FlowMesh well: else that is why they wait.
    fn of_waiting_tasks(&mut self, view: &View, backlog: &Backlog) {
        let overdue = age(backlog.oldest_due_task, view.now);
        if overdue > LONG_OVERDUE && !view.asking_paused && failing(&view.flowmesh).is_none() {
            let what = format!("What tasks cost is not asked, the oldest has been due for {}", text::seconds(overdue));
            let then = "FlowMesh answers, so it is Tollgate that does not come to it; the log may have the cause.";
            self.add(Attention, what, then, None, Some("TasksWait"));
        }
    }

    fn of_ledger(&mut self, backlog: &Backlog) {
        let &Backlog { held_workflows, held_tasks, gone_tasks, held_charges, rejected_charges, .. } = backlog;
        if rejected_charges > 0 {
            let what = format!("Runmesh refused {} for good", text::count(rejected_charges, "charge"));
            let then = "The answers are below. When the cause is gone, `tollgate ledger retry --rejected` tries again.";
            self.add(Attention, what, then, None, Some("ChargesRejected"));
        }
        if held_workflows > 0 {
            let verb = if held_workflows == 1 { "has" } else { "have" };
            let what = format!("{} {verb} no owner", text::count(held_workflows, "workflow"));
            let then = "The charges are held until you name the owner, with `tollgate ledger attribute`. Who may have \
                        submitted:";
            let command = Some("tollgate ledger list --held");
            self.add(Attention, what, then, command, Some("WorkflowsHeld"));
        } else if held_charges > 0 {
            let verb = if held_charges == 1 { "is" } else { "are" };
            let what = format!("{} {verb} held", text::count(held_charges, "charge"));
            let then = "Each goes out by itself when its owner is found, and is seen with an e-mail address.";
            self.add(Attention, what, then, None, Some("ChargesHeld"));
        }
        if held_tasks > 0 {
            let what = format!("The cost of {} cannot be read", text::count(held_tasks, "task"));
            let then = "FlowMesh is asked again within the hour; the reasons are below.";
            self.add(Attention, what, then, None, Some("TasksHeld"));
        }
        if gone_tasks > 0 {
            let what = format!("FlowMesh forgot {} before it said what they cost", text::count(gone_tasks, "task"));
            self.add(Note, what, "They are not billed.", None, Some("TasksGone"));
        }
    }
}

/// The last failure of a peer that has not answered since.
fn failing(account: &Account) -> Option<String> {
    let (_, error) = account.last_failure.as_ref().filter(|_| account.is_failing)?;
    Some(text::plain(error))
}

fn times(number: u64) -> String {
    if number == 1 { "once".to_owned() } else { format!("{} times", text::number(number)) }
}

fn were(number: u64) -> String {
    if number == 1 { "1 request was".to_owned() } else { format!("{} requests were", text::number(number)) }
}

/// What is said when nothing is wrong.
pub fn calm(view: &View) -> String {
    let lately = view.hour.sum(LATELY);
    let asked = match (view.last_check, lately.let_through(), lately.refused()) {
        (None, ..) => "No request has come yet".to_owned(),
        (_, 0, 0) => format!("No request came in the last {LATELY} minutes"),
        (_, passed, 0) => format!("{} let through in the last {LATELY} minutes, none refused", were(passed)),
        (_, passed, refused) => {
            format!("{} let through in the last {LATELY} minutes, {} refused", were(passed), text::number(refused))
        }
    };
    match &view.shelf {
        Shelf::Off => format!("{asked}. Billing is off."),
        Shelf::Read { backlog, .. } if backlog.pending_charges > 0 => {
            format!("{asked}; {} on the way to Runmesh.", text::count(backlog.pending_charges, "charge"))
        }
        _ => format!("{asked}; no charge waits."),
    }
}

/// As a length of time since now.
pub fn ago(duration: Duration) -> String {
    text::seconds(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX))
}
