//! Signals, cancellation, tracked tasks, deadline.
//!
//! A stop has three moments. *Drain*: readiness goes false and the log service reports NOT_SERVING, while everything
//! still works, so that Envoy keeps its log entries instead of sending them into a closing stream. *Stop*: streams end,
//! listeners close, loops claim nothing new and finish what is in flight. *Deadline*: whatever is left is aborted.
//!
//! Every background task is named. One that returns early, fails or panics starts the same stop, and the process ends
//! with a failure: a Tollgate that has lost a part must not look healthy.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Any error a task ends with.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// Why the process ends with a failure code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("task {name} ended unexpectedly: {reason}")]
    TaskEnded { name: &'static str, reason: String },
    #[error("tasks were still running at the deadline: {0}")]
    Deadline(String),
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// The moments of a stop, for those who have to act on them.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// Readiness is false; everything still works.
    pub drain: CancellationToken,
    /// Take nothing new, finish what is in flight, return.
    pub stop: CancellationToken,
}

/// The background tasks of the process.
#[derive(Debug)]
pub struct Lifecycle {
    stopping: Stopping,
    signals: Signals,
    tasks: Tasks,
}

#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

#[derive(Debug, Default)]
struct Tasks {
    running: JoinSet<Result<(), TaskError>>,
    names: Vec<(tokio::task::Id, &'static str)>,
}

impl Lifecycle {
    /// From here on a signal is a stop and no longer the end of the process: before anything is served.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub fn new(stopping: Stopping) -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::Signals);
        let signals =
            Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? };
        Ok(Self { stopping, signals, tasks: Tasks::default() })
    }

    /// Starts a task that runs until the stop.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = Result<(), TaskError>> + Send + 'static) {
        let handle = self.tasks.running.spawn(task);
        self.tasks.names.push((handle.id(), name));
    }

    /// Runs until SIGINT, SIGTERM or the end of a task, then stops everything. A second signal skips what is left.
    ///
    /// # Errors
    /// [`Failure`] when a task ended by itself or did not end in time.
    pub async fn run(mut self, drain_delay: Duration, deadline: Duration) -> Result<(), Failure> {
        let mut failure = tokio::select! {
            signal = self.signals.next() => {
                tracing::info!(signal, "stopping: {signal} received");
                None
            }
            ended = self.tasks.next_ended() => ended.map(|(name, result)| {
                let reason = result.err().unwrap_or_else(|| "it returned".to_owned());
                tracing::error!(part = name, reason, "stopping: task {name} ended unexpectedly: {reason}");
                Failure::TaskEnded { name, reason }
            }),
        };
        self.stopping.drain.cancel();
        tokio::select! {
            () = tokio::time::sleep(drain_delay) => {}
            signal = self.signals.next() => tracing::warn!(signal, "second signal: not waiting for Envoy to notice"),
        }
        self.stopping.stop.cancel();
        let at_deadline = tokio::time::sleep(deadline);
        tokio::pin!(at_deadline);
        loop {
            tokio::select! {
                ended = self.tasks.next_ended() => match ended {
                    None => break,
                    Some((name, Err(reason))) => {
                        tracing::error!(part = name, reason, "task {name} failed while stopping: {reason}");
                        failure = failure.or(Some(Failure::TaskEnded { name, reason }));
                    }
                    Some((name, Ok(()))) => tracing::debug!(part = name, "task {name} ended"),
                },
                () = &mut at_deadline => break,
                signal = self.signals.next() => {
                    tracing::warn!(signal, "second signal: ending what is left");
                    break;
                }
            }
        }
        if !self.tasks.names.is_empty() {
            let running = self.tasks.names.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
            tracing::error!(parts = running, "aborting what did not stop in time: {running}");
            failure = failure.or(Some(Failure::Deadline(running)));
        }
        self.tasks.running.shutdown().await;
        failure.map_or(Ok(()), Err)
    }
}

impl Tasks {
    /// The name and result of the next task to end; `None` when none is left.
    async fn next_ended(&mut self) -> Option<(&'static str, Result<(), String>)> {
        let (id, result) = match self.running.join_next_with_id().await? {
            Ok((id, result)) => (id, result.map_err(|error| error.to_string())),
            Err(error) => (error.id(), Err(error.to_string())),
        };
        let at = self.names.iter().position(|(known, _)| *known == id);
        let name = at.map_or("unnamed", |at| self.names.swap_remove(at).1);
        Some((name, result))
    }
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    /// A lifecycle with one task that behaves, and what it saw of the stop.
    fn with_a_good_task() -> (Lifecycle, CancellationToken) {
        let stopping = Stopping::default();
        let mut lifecycle = Lifecycle::new(stopping.clone()).expect("signals");
        let ended = CancellationToken::new();
        let seen = ended.clone();
        lifecycle.spawn("good", async move {
            stopping.stop.cancelled().await;
            seen.cancel();
            Ok(())
        });
        (lifecycle, ended)
    }

    #[tokio::test]
    async fn a_task_that_fails_panics_or_returns_stops_the_others_and_is_a_failure() {
        for kind in ["fails", "panics", "returns"] {
            let (mut lifecycle, good_ended) = with_a_good_task();
            lifecycle.spawn("bad", async move {
                match kind {
                    "fails" => Err("the disk is gone".into()),
                    "panics" => panic!("as the test wants"),
                    _ => Ok(()),
                }
            });
            let failure = lifecycle.run(SHORT, SHORT).await.expect_err(kind).to_string();
            assert!(failure.starts_with("task bad ended unexpectedly"), "{failure}");
            assert_eq!(failure.contains("the disk is gone"), kind == "fails", "{failure}");
            assert!(good_ended.is_cancelled(), "the good task was told to stop");
        }
    }

    #[tokio::test]
    async fn a_task_that_does_not_stop_is_aborted_at_the_deadline() {
        let (mut lifecycle, good_ended) = with_a_good_task();
        let aborted = CancellationToken::new();
        let guard = aborted.clone().drop_guard();
        lifecycle.spawn("stubborn", async move {
            let _guard = guard;
            std::future::pending().await
        });
        lifecycle.spawn("bad", async { Err("it".into()) });
        let failure = lifecycle.run(SHORT, SHORT).await.expect_err("a failure").to_string();
        assert!(failure.contains("task bad"), "the first failure is the one that is told: {failure}");
        assert!(good_ended.is_cancelled() && aborted.is_cancelled());
    }
}
