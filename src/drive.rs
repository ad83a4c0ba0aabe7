//! The lease loop that settling, sweeping and posting share.
//!
//! Claim what is due, work on it with bounded concurrency, sleep until the next piece is due or somebody says that
//! there is news. A step ends before its lease does (its HTTP calls have shorter limits), so no piece is worked on
//! twice at once; a claim that is never answered for is taken up again when its lease ends. On the stop nothing more is
//! claimed and what is in flight is finished.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ledger::{self, Ledger, Work};
use crate::lifecycle::TaskError;
use crate::telemetry::{KindLabels, Metrics};

/// How long claimed work belongs to its claimer: above the sum of the calls a step makes.
pub const LEASE: Duration = Duration::from_mins(1);
/// The longest sleep: a wall clock that jumps costs no more than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// While more than half of the slots are taken, between two claims: each is a transaction. Claimed for one slot at a time,
/// 2000 posts a second had as many claims beside them.
const CLAIM_PAUSE: Duration = Duration::from_millis(5);
/// Between two tries of a ledger that fails.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);

/// News for the loops: somebody wrote what another may want to act on.
#[derive(Debug, Clone, Default)]
pub struct News {
    pub tasks: Arc<Notify>,
    pub workflows: Arc<Notify>,
    pub charges: Arc<Notify>,
    /// A submission ended without telling what it made.
    pub lost_submission: Arc<Notify>,
}

impl News {
    fn of(&self, work: Work) -> Arc<Notify> {
        match work {
            Work::Tasks => &self.tasks,
            Work::Workflows => &self.workflows,
            Work::Charges => &self.charges,
        }
        .clone()
    }
}

/// One kind of claimed work.
pub trait Worker: Send + Sync + 'static {
    type Item: Send + 'static;
    const WORK: Work;

    /// How many of `free` pieces to claim now, or how long to claim none.
    ///
    /// # Errors
    /// The pause.
    fn allowance(&self, free: u32) -> Result<u32, Duration> {
        Ok(free)
    }

    /// Claims up to `limit` due pieces.
    fn claim(&self, at: Timestamp, limit: u32) -> impl Future<Output = Result<Vec<Self::Item>, ledger::Error>> + Send;

    /// Works on one piece and records what came of it.
    ///
    /// # Errors
    /// When that could not be recorded; the piece is then claimed again after its lease.
    fn step(&self, item: Self::Item) -> impl Future<Output = Result<(), ledger::Error>> + Send;
}

/// What every loop needs.
#[derive(Clone)]
pub struct Driver {
    pub ledger: Arc<dyn Ledger>,
    pub news: News,
    pub metrics: Metrics,
    pub stop: CancellationToken,
}

impl Driver {
    /// Runs a worker until the stop, with at most `concurrency` steps at once.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn drive<W: Worker>(self, worker: W, concurrency: usize) -> Result<(), TaskError> {
        let Self { ledger, news, metrics, stop } = self;
        let worker = Arc::new(worker);
        let news = news.of(W::WORK);
        let mut steps: JoinSet<Result<(), ledger::Error>> = JoinSet::new();
        let failed = |error: ledger::Error, doing: &'static str| {
            metrics.ledger_errors.get_or_create(&KindLabels { kind: doing }).inc();
            tracing::error!(%error, work = ?W::WORK, doing, "the ledger fails ({doing}, {:?}): {error}", W::WORK);
        };
        let mut claimed_at: Option<Instant> = None;
        loop {
            let free = u32::try_from(concurrency.saturating_sub(steps.len())).unwrap_or(u32::MAX);
            let mut pause = LONGEST_SLEEP;
            let since_claim = claimed_at.map_or(CLAIM_PAUSE, |at| at.elapsed());
            let allowance = if stop.is_cancelled() {
                Err(LONGEST_SLEEP)
            } else {
                may_claim(steps.len(), concurrency, since_claim).and_then(|()| worker.allowance(free))
            };
            match allowance {
                Err(wait) => pause = wait.min(LONGEST_SLEEP),
                Ok(limit) => match worker.claim(Timestamp::now(), limit).await {
                    Ok(items) if !items.is_empty() => {
                        claimed_at = Some(Instant::now());
                        for item in items {
                            let worker = worker.clone();
                            steps.spawn(async move { worker.step(item).await });
                        }
                        continue;
                    }
                    Ok(_) => match ledger.next_due(W::WORK).await {
                        Ok(Some(due)) => {
                            let wait = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
                            // The floor keeps what is due and yet not claimed, such as under a clock that jumps, from
                            // making this spin.
                            pause = wait.clamp(Duration::from_millis(50), LONGEST_SLEEP);
                        }
                        Ok(None) => {}
                        Err(error) => {
                            failed(error, "next_due");
                            pause = LEDGER_PAUSE;
                        }
                    },
                    Err(error) => {
                        failed(error, "claim");
                        pause = LEDGER_PAUSE;
                    }
                },
            }
            tokio::select! {
                () = stop.cancelled(), if steps.is_empty() => return Ok(()),
                ended = steps.join_next(), if !steps.is_empty() => match ended {
                    Some(Ok(Err(error))) => failed(error, "record"),
                    // A mistake of ours over one odd answer: that piece waits for its lease, the others and Check go on.
                    Some(Err(panicked)) => {
                        metrics.ledger_errors.get_or_create(&KindLabels { kind: "panic" }).inc();
                        tracing::error!(error = %panicked, work = ?W::WORK, "a step panicked: {panicked}");
                    }
                    Some(Ok(Ok(()))) | None => {}
                },
                () = news.notified(), if !stop.is_cancelled() => {}
                () = tokio::time::sleep(pause), if !stop.is_cancelled() => {}
            }
        }
    }
}

/// Whether to claim now, or how long to wait for that: not at all while most slots are free, and else for some more to be.
fn may_claim(taken: usize, slots: usize, since_claim: Duration) -> Result<(), Duration> {
    if taken >= slots {
        Err(LONGEST_SLEEP)
    } else if taken * 2 > slots && since_claim < CLAIM_PAUSE {
        Err(CLAIM_PAUSE.saturating_sub(since_claim))
    } else {
        Ok(())
    }
}

/// A delay that doubles from `first` to `most`, for the `attempt`th time (from 0), with up to a quarter taken off at
/// random (`jitter` in 0..1) so that a crowd spreads out.
#[must_use]
pub fn growing(first: Duration, most: Duration, attempt: u32, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.min(30)));
    doubled.min(most).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0)
}

/// A delay anywhere between nothing and what [`growing`] would give without jitter: a crowd that failed together does not
/// come back together.
#[must_use]
pub fn spread(first: Duration, most: Duration, attempt: u32, jitter: f64) -> Duration {
    growing(first, most, attempt, 0.0).mul_f64(jitter.clamp(0.0, 1.0))
}

/// A random fraction in 0..1, for [`growing`] and [`spread`].
#[must_use]
pub fn jitter() -> f64 {
    fastrand::f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_delay_doubles_to_its_cap_and_jitter_takes_at_most_a_quarter() {
        let second = Duration::from_secs(1);
        let delays: Vec<u64> = (0..8).map(|n| growing(second, second * 60, n, 0.0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(growing(second * 4, second * 60, 0, 1.0), second * 3);
        assert_eq!(growing(second, second * 300, u32::MAX, 0.0), second * 300);
        assert_eq!(spread(second, second * 60, 3, 0.25), second * 2);
        assert_eq!(spread(second, second * 60, 3, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_lease_outlives_the_calls_of_a_step_by_far() {
        let limits = crate::config::Limits::default();
        let longest = (limits.flowmesh_timeout + limits.supplier_timeout).max(limits.post_timeout);
        assert!(LEASE > longest * 3, "{longest:?}");
    }

    #[test]
    fn a_claim_waits_for_more_slots_to_free_only_while_most_are_taken_and_not_for_long() {
        let now = Duration::ZERO;
        for taken in [0, 1, 48] {
            assert_eq!(may_claim(taken, 96, now), Ok(()), "{taken}");
        }
        let ms = Duration::from_millis;
        assert_eq!(may_claim(49, 96, ms(2)), Err(ms(3)));
        assert_eq!(may_claim(95, 96, CLAIM_PAUSE), Ok(()), "slow ones keep no slot from being used");
        assert_eq!(may_claim(96, 96, LONGEST_SLEEP), Err(LONGEST_SLEEP));
        assert_eq!(may_claim(0, 1, now), Ok(()));
    }

    /// Ten pieces of work, all due at once, of which the first one panics and the last one takes a while.
    struct Ten {
        left: std::sync::Mutex<Vec<u32>>,
        done: tokio::sync::mpsc::UnboundedSender<u32>,
    }

    /// What the last piece says when it is through.
    const ITS_END: u32 = 99;

    impl Worker for Ten {
        type Item = u32;
        const WORK: Work = Work::Tasks;

        async fn claim(&self, _: Timestamp, limit: u32) -> Result<Vec<u32>, ledger::Error> {
            let mut left = self.left.lock().expect("not poisoned");
            let claimed = left.len().min(limit as usize);
            Ok(left.drain(..claimed).collect())
        }

        async fn step(&self, item: u32) -> Result<(), ledger::Error> {
            assert_ne!(item, 0, "as the test wants");
            let tell = |what| self.done.send(what).map_err(|error| ledger::Error::Database(error.to_string()));
            tell(item)?;
            if item == 9 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                tell(ITS_END)?;
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_step_that_panics_stops_no_other_and_a_stop_waits_for_what_is_in_flight() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("ledger.db");
        let ledger = ledger::sqlite::SqliteLedger::open(&path, Timestamp::now()).await.expect("opens");
        let (done, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let metrics = Metrics::unread();
        let stop = CancellationToken::new();
        let driver =
            Driver { ledger: Arc::new(ledger), news: News::default(), metrics: metrics.clone(), stop: stop.clone() };
        let ten = Ten { left: std::sync::Mutex::new((0..10).collect()), done };
        let running = tokio::spawn(driver.drive(ten, 3));
        for expected in 1..10 {
            assert_eq!(seen.recv().await, Some(expected));
        }
        stop.cancel();
        running.await.expect("no panic").expect("an orderly end");
        assert_eq!(seen.recv().await, Some(ITS_END));
        let panics = metrics.ledger_errors.get_or_create(&KindLabels { kind: "panic" }).get();
        assert_eq!(panics, 1);
    }
}
