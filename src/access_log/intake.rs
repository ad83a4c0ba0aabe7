//! Events → ledger, in groups.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::Queue;
use super::event::Event;
use crate::drive::{News, growing, jitter};
use crate::ledger::unrecorded::Unrecorded;
use crate::ledger::{self, Ledger, Reported, Settled};
use crate::lifecycle::TaskError;
use crate::settlement::told;
use crate::telemetry::{KindLabels, Metrics};

/// Between tries of a ledger that fails.
const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);
/// Tries after the queue has closed: the process is stopping and cannot wait for ever.
const LAST_TRIES: u32 = 5;
/// So many events are not too much for any ledger that takes something at all.
const SMALLEST: usize = 16;

/// The writer behind the streams.
pub struct Intake {
    ledger: Arc<dyn Ledger>,
    queue: Queue,
    news: News,
    unrecorded: Unrecorded,
    batch: usize,
    metrics: Metrics,
}

impl Intake {
    /// `batch` is how many events one transaction takes at most.
    #[must_use]
    pub fn new(
        ledger: Arc<dyn Ledger>,
        queue: Queue,
        news: News,
        unrecorded: Unrecorded,
        batch: usize,
        metrics: Metrics,
    ) -> Self {
        Self { ledger, queue, news, unrecorded, batch, metrics }
    }

    /// Commits events until every stream has ended and the queue is empty, whenever the stop comes.
    ///
    /// # Errors
    /// When events could not be committed before the end.
    pub async fn run(mut self) -> Result<(), TaskError> {
        let mut events = Vec::with_capacity(self.batch);
        while self.queue.take(&mut events, self.batch).await {
            for batch in events.chunks(self.batch) {
                self.commit_all(batch).await?;
                self.metrics.intake_queued.dec_by(i64::try_from(batch.len()).unwrap_or(i64::MAX));
            }
            events.clear();
        }
        Ok(())
    }

    /// Commits a batch and tells of it. One with an event that the ledger will never take is halved until that is found, and left
    /// out: the sweep finds what it was about. One that fails otherwise is tried again, and from the second failure on in
    /// halves: it may be too much for the time that the ledger has. Nothing is left out for that.
    async fn commit_all(&self, events: &[Event]) -> Result<(), TaskError> {
        let (mut parts, mut failures) = (vec![events], 0);
        while let Some(part) = parts.pop() {
            let error = match self.ledger.record(part, Timestamp::now()).await {
                Ok(charges) => {
                    failures = 0;
                    self.tell(part);
                    charges.iter().for_each(tell_charge);
                    continue;
                }
                Err(error @ ledger::Error::Refused(_)) => {
                    match part {
                        [event] => self.leave_out(event, &error),
                        several => halve(several, &mut parts),
                    }
                    continue;
                }
                Err(error) => error,
            };
            self.metrics.ledger_errors.get_or_create(&KindLabels { kind: "record_events" }).inc();
            tracing::error!(%error, events = part.len(), "cannot record {} log events: {error}", part.len());
            if self.queue.is_closed() && failures >= LAST_TRIES {
                let left = part.len() + parts.iter().map(|part| part.len()).sum::<usize>();
                return Err(format!("{left} log events are left to the sweep: {error}").into());
            }
            tokio::time::sleep(growing(FIRST, MOST, failures, jitter())).await;
            failures += 1;
            let is_too_much = failures > 1 || part.len() < events.len();
            if is_too_much && part.len() > SMALLEST {
                halve(part, &mut parts);
            } else {
                parts.push(part);
            }
        }
        Ok(())
    }

    /// The ledger will never take it.
    fn leave_out(&self, event: &Event, error: &ledger::Error) {
        self.metrics.ledger_errors.get_or_create(&KindLabels { kind: "refused_event" }).inc();
        let (kind, id) = event.about();
        tracing::error!(%error, kind, id, "the ledger will never take a log event ({kind}, {id:?}): {error}");
        if let Event::SubmissionOpened { .. } = event {
            self.unrecorded.lost();
        }
    }

    fn tell(&self, events: &[Event]) {
        for event in events {
            match event {
                Event::Submitted { submission_id, principal_id, workflow_id, .. } => {
                    tracing::info!(
                        submission = submission_id,
                        principal = principal_id,
                        workflow = workflow_id,
                        "workflow {workflow_id} is {principal_id}'s"
                    );
                    self.news.workflows.notify_one();
                    self.news.charges.notify_one();
                }
                Event::SubmissionRefused { .. } => {}
                Event::SubmissionEnded { over, .. } => {
                    let submission_id = &over.submission_id;
                    tracing::info!(
                        submission = submission_id,
                        "submission {submission_id} ended without telling its workflow"
                    );
                    self.news.lost_submission.notify_one();
                }
                Event::SubmissionOpened { submission_id, .. } => {
                    self.unrecorded.recorded();
                    tracing::info!(submission = submission_id, "submission {submission_id} has its row after all");
                    self.news.charges.notify_one();
                }
                Event::PrincipalSeen { principal } => {
                    let id = &principal.id;
                    tracing::info!(principal = id, "{id} has an e-mail now: charges held for want of one go out");
                    self.news.charges.notify_one();
                }
                Event::UsageReported { task_id, usage } => {
                    let cost = &usage.cost;
                    // A client that polls brings it again and again.
                    tracing::debug!(task = task_id, cost, "an answer says that task {task_id} cost ${cost}");
                    self.news.charges.notify_one();
                    self.news.tasks.notify_one();
                }
                Event::TaskEnded { .. } | Event::TaskTouched { .. } => self.news.tasks.notify_one(),
                Event::WorkflowSeen { .. } => self.news.workflows.notify_one(),
            }
        }
    }
}

/// In their order: the first half is the next part.
fn halve<'a>(part: &'a [Event], parts: &mut Vec<&'a [Event]>) {
    let (first, second) = part.split_at(part.len() / 2);
    parts.extend([second, first]);
}

/// A charge that an answer brought about gets the line that every charge gets.
fn tell_charge(Reported { task_id, workflow_id, cost, settled }: &Reported) {
    match settled {
        Settled::Charged { principal_id } => told::charged(task_id, workflow_id, principal_id, cost),
        Settled::Held { reason } => told::held(task_id, workflow_id, cost, reason),
        _ => {}
    }
}
