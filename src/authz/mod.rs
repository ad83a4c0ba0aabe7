//! The Check service: request → decision → response.
//!
//! Check is cancel-safe and idempotent: Envoy drops it on a time-out and repeats it on retries. It fails closed: there is
//! no way to an OK but through [`Decision::Public`], which only a public route gives, or a principal. Only submissions
//! touch the ledger; trouble there is counted loudly and lets the submission through.

pub mod bearer;
pub mod body;
pub mod decision;
pub mod last;
mod log;
pub mod metadata;
pub mod request;
pub mod response;
pub mod server;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::access_log::event::Event;
use crate::guard::{self, Guard};
use crate::identity::{self, Identity, Resolved, TokenHash};
use crate::ledger::unrecorded::Unrecorded;
use crate::ledger::{Ledger, NewSubmission};
use crate::principal::Principal;
use crate::route::{self, Route};
use crate::settlement::emails::Awaited;
use crate::supplier::{Subject, Suppliers};
use crate::telemetry::{Cache, DecisionLabels, KindLabels, Metrics, OutcomeLabels, traces};
use crate::upstream::CallError;
use crate::wire::CheckRequest;
use decision::{Allow, Decision, Denial};
use last::LastCheck;
use request::Inquiry;
use response::{Answer, Stamp};

/// After which another try may find lum.id answering, when it says nothing else.
const LUM_ID_PAUSE: Duration = Duration::from_secs(2);

/// The gRPC service.
pub struct Authz {
    pub identity: Identity,
    /// Absent when the guard is off.
    pub guard: Option<Guard>,
    pub suppliers: Suppliers,
    /// Absent without billing.
    pub ledger: Option<Arc<dyn Ledger>>,
    /// To the intake, which commits what the ledger did not take in time. Absent without billing.
    pub events: Option<mpsc::WeakSender<Event>>,
    /// Whose e-mail is waited for.
    pub awaited: Awaited,
    /// Submissions that the ledger does not have yet.
    pub unrecorded: Unrecorded,
    /// How long a submission waits for its row before it goes without.
    pub submission_timeout: Duration,
    pub stamp: Stamp,
    /// Counts Checks under way, for who waits for their end.
    pub requests: TaskTracker,
    pub last_check: LastCheck,
    pub metrics: Metrics,
}

impl Authz {
    /// Answers a Check, whatever it is.
    pub async fn check(&self, request: CheckRequest) -> Answer {
        let _request = self.requests.token();
        self.last_check.came(Timestamp::now());
        let inquiry = request::parse(request);
        let mut seen = Seen::default();
        let unless_cancelled = Cancelled(&self.metrics);
        let started = Instant::now();
        let work = traces::of_request("Check", inquiry.trace.as_ref());
        let decision = traces::within(work.as_ref(), async {
            let decision = self.decide(&inquiry, &mut seen).await;
            log::decided(&decision, &inquiry, &seen);
            log::note(&decision, &inquiry, &seen);
            decision
        })
        .await;
        drop(work);
        std::mem::forget(unless_cancelled);
        self.metrics.decisions.get_or_create(&DecisionLabels { reason: decision.reason() }).inc();
        self.metrics.check_times.of(seen.cache).observe(started.elapsed().as_secs_f64());
        response::render(&decision, &self.stamp)
    }
}

/// Counts a Check that Envoy gave up, by its time limit or with its client.
struct Cancelled<'a>(&'a Metrics);

impl Drop for Cancelled<'_> {
    fn drop(&mut self) {
        self.0.decisions.get_or_create(&DecisionLabels { reason: "cancelled" }).inc();
    }
}

/// What turned up on the way to a decision, for its log line.
#[derive(Default)]
pub struct Seen {
    route: Option<&'static str>,
    token: Option<TokenHash>,
    /// What the memory of tokens had to do with it.
    cache: Cache,
    /// What went wrong with lum.id.
    cause: Option<Arc<CallError>>,
}

/// What the client is told to wait: at least a second, and no longer than half a minute, whatever others say.
fn retry_after(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).clamp(1, 30)
}

impl Authz {
    /// What is to be said to a request, and nothing said yet.
    pub async fn decide(&self, inquiry: &Inquiry, seen: &mut Seen) -> Decision {
        let route = match route::classify(&inquiry.method, &inquiry.target) {
            Ok(route) => route,
            Err(reason) => return Decision::Deny(Denial::Path(reason)),
        };
        seen.route = Some(route.name());
        if route.is_public() {
            return Decision::Public;
        }
        let (_, query) = route::split_query(&inquiry.target);
        let Some(bearer) = bearer::find(&inquiry.authorization, query, inquiry.is_websocket) else {
            return Decision::Deny(Denial::MissingBearer);
        };
        let hash = TokenHash::of(&bearer.token);
        seen.token = Some(hash);
        let Resolved { way, answer } = self.identity.resolve(&bearer.token, hash, &inquiry.source).await;
        seen.cache = way.cache();
        let caller = match answer {
            Ok(caller) => caller,
            Err(identity::Error::Inactive) => return Decision::Deny(Denial::InactiveToken),
            Err(identity::Error::TooMany { retry_after: wait }) => {
                return Decision::Deny(Denial::TooManyUnknown { retry_after: retry_after(wait) });
            }
            Err(identity::Error::Unavailable(cause)) => {
                let wait = cause.retry_after().unwrap_or(LUM_ID_PAUSE);
                seen.cause = Some(cause);
                return Decision::Deny(Denial::IdentityUnavailable { retry_after: retry_after(wait) });
            }
        };
        let principal = &caller.principal;
        if principal.email.is_some() && self.awaited.take(&principal.id) {
            // A full queue is no loss: the ledger goes on waiting for it.
            let _ = tell(self.events.as_ref(), &self.metrics, Event::PrincipalSeen { principal: principal.clone() });
        }
        let mut submission_id = None;
        if route == Route::Submit {
            if let Some(guard) = &self.guard {
                match guard.decide(principal).await {
                    guard::Decision::Pass => {}
                    guard::Decision::Refuse { balance } => return Decision::Deny(Denial::Balance(balance)),
                    guard::Decision::Unanswered(cause) => log::unguarded(principal, inquiry, &cause),
                }
            }
            submission_id = self.open_submission(principal, inquiry).await;
        }
        let ids = if route == Route::PostResult { body::parse(&inquiry.body) } else { body::ResultIds::default() };
        let subject = match route {
            Route::OfWorker { worker_id } => Some(Subject::Worker(worker_id)),
            Route::ReadTask { task_id } | Route::Artifact { task_id } | Route::OfTask { task_id } => {
                Some(Subject::Task(task_id))
            }
            Route::PostResult => {
                ids.worker_id.as_deref().map(Subject::Worker).or(ids.task_id.as_deref().map(Subject::Task))
            }
            _ => None,
        };
        let supplier = match (&inquiry.supplier, subject) {
            (Some(fixed), _) => Some(Arc::from(fixed.as_str())),
            (None, Some(subject)) => self.suppliers.resolve(subject).await,
            (None, None) => None,
        };
        Decision::Allow(Allow {
            caller,
            supplier,
            submission_id,
            record: self.ledger.is_some() && route.is_recorded(),
            task_id: ids.task_id,
            query_keys: bearer.query_keys,
        })
    }

    /// Leaves the row to the intake, which tries until it is committed. When even its places are taken, or the process ends
    /// before, only the log entry tells of this submission.
    async fn commit_later(
        &self,
        submission_id: &str,
        principal: &Arc<Principal>,
        request_id: &str,
        began: Option<Timestamp>,
    ) {
        let at = Timestamp::now();
        let event = Event::SubmissionOpened {
            submission_id: submission_id.to_owned(),
            principal: principal.clone(),
            request_id: request_id.to_owned(),
            began: began.unwrap_or(at),
            at,
        };
        let (unrecorded, events, metrics) = (self.unrecorded.clone(), self.events.clone(), self.metrics.clone());
        let submission = submission_id.to_owned();
        // A task of its own: Envoy may give the Check up, and what was begun must be ended.
        let noted = self.requests.spawn(async move {
            unrecorded.begin(at).await;
            if !tell(events.as_ref(), &metrics, event) {
                unrecorded.lost();
                metrics.submissions.get_or_create(&OutcomeLabels { outcome: "given_up" }).inc();
                tracing::error!(submission, "the row of submission {submission} is given up");
            }
        });
        if let Err(error) = noted.await {
            tracing::error!(%error, "cannot note that a submission has no row: {error}");
        }
    }

    /// Makes the submission durable before the OK. When that fails the submission still goes through, and its row is
    /// committed as soon as the ledger takes it.
    async fn open_submission(&self, principal: &Arc<Principal>, inquiry: &Inquiry) -> Option<String> {
        let ledger = self.ledger.as_ref()?;
        let minted = format!("sub-{}", Uuid::now_v7().simple());
        let request_id: Cow<'_, str> =
            if inquiry.request_id.is_empty() { Cow::from(&minted) } else { Cow::from(&inquiry.request_id) };
        let at = Timestamp::now();
        // Until it has its row, or is known to have none.
        let _opening = self.unrecorded.opening(at);
        let row = NewSubmission { submission_id: &minted, principal, request_id: &request_id, at };
        let committing = ledger.open_begun(row, inquiry.began.unwrap_or(at));
        let committed = tokio::time::timeout(self.submission_timeout, committing).await;
        let (outcome, submission_id) = match committed {
            Ok(Ok(id)) if id == minted => ("opened", id),
            Ok(Ok(older)) => ("repeated", older),
            failed => {
                let reason = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "time limit exceeded".to_owned(),
                };
                self.metrics.ledger_errors.get_or_create(&KindLabels { kind: "open_submission" }).inc();
                tracing::error!(
                    request_id = inquiry.request_id,
                    trace_id = traces::id(),
                    principal = principal.id,
                    submission = minted,
                    reason,
                    "submission {minted} of {} goes through without a row in the ledger: {reason}",
                    principal.id
                );
                self.commit_later(&minted, principal, &request_id, inquiry.began).await;
                ("failed", minted)
            }
        };
        self.metrics.submissions.get_or_create(&OutcomeLabels { outcome }).inc();
        Some(submission_id)
    }
}

/// Whether the intake took an event.
fn tell(events: Option<&mpsc::WeakSender<Event>>, metrics: &Metrics, event: Event) -> bool {
    let sent = events.and_then(mpsc::WeakSender::upgrade).is_some_and(|events| events.try_send(event).is_ok());
    if sent {
        metrics.intake_queued.inc();
    }
    sent
}

#[cfg(test)]
mod tests;
