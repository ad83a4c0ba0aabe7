//! The access-log service: Envoy's finished requests → ledger.
//!
//! Entries become events at once ([`event`]); events queue for the intake, which commits them in groups. A full queue
//! stops the reading of the streams, so that Envoy's own buffer fills instead of anything being dropped here; what Checks leave
//! has places of its own (`queue.rs`). Envoy never
//! waits for an answer and gets none until the stop, when the streams are ended so that the server can stop; what it had sent
//! before it noticed is still taken.

pub mod event;
mod intake;
mod queue;
pub mod server;

use std::time::Duration;

use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsResponse;
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::lifecycle::Stopping;
use crate::telemetry::{KindLabels, Metrics};
use crate::wire::{LogEntries, StreamAccessLogsMessage};
use event::Event;
pub use intake::Intake;
pub use queue::{Queue, Ways, queue};

/// How long Envoy may take to notice that a stream was ended: it takes milliseconds.
const REST: Duration = Duration::from_secs(1);

/// The gRPC service.
pub struct AccessLog {
    /// Absent without billing: entries are then counted and forgotten. Weak, because connections keep the service, and one
    /// that idles must not keep the intake from ending.
    events: Option<mpsc::WeakSender<Event>>,
    stop: CancellationToken,
    requests: TaskTracker,
    metrics: Metrics,
}

impl AccessLog {
    /// `events` leads to the intake; `requests` counts open streams, for who waits for their end.
    #[must_use]
    pub fn new(
        events: Option<mpsc::WeakSender<Event>>,
        stopping: &Stopping,
        requests: &TaskTracker,
        metrics: Metrics,
    ) -> Self {
        Self { events, stop: stopping.stop.clone(), requests: requests.clone(), metrics }
    }
}

/// One open stream, on its way to the intake.
struct Reader {
    events: Option<mpsc::Sender<Event>>,
    metrics: Metrics,
    _open: OpenStream,
}

impl Reader {
    async fn take(&self, message: StreamAccessLogsMessage) -> Result<(), Status> {
        let entries = match message.log_entries {
            Some(LogEntries::Http(entries)) => entries,
            Some(LogEntries::Tcp(entries)) => {
                self.count("ignored_not_http", entries.log_entry.len());
                return Ok(());
            }
            None => return Ok(()),
        };
        let now = Timestamp::now();
        for (place, entry) in entries.log_entry.iter().enumerate() {
            let kind = match (event::extract(entry, now), &self.events) {
                (Ok(event), Some(events)) => {
                    let kind = event.kind();
                    // Waits while the queue is full. It only closes when the intake has died, and the process with it.
                    if events.send(event).await.is_err() {
                        self.count("lost_intake_closed", entries.log_entry.len() - place);
                        return Err(Status::unavailable("stopping"));
                    }
                    self.metrics.intake_queued.inc();
                    kind
                }
                (Ok(_), None) => "ignored_no_billing",
                (Err(ignored), _) => ignored.kind(),
            };
            self.count(kind, 1);
        }
        Ok(())
    }

    fn count(&self, kind: &'static str, entries: usize) {
        let entries = u64::try_from(entries).unwrap_or(u64::MAX);
        self.metrics.log_entries.get_or_create(&KindLabels { kind }).inc_by(entries);
    }

    /// Takes what Envoy had sent before it noticed that the stream was ended.
    async fn take_the_rest(self, mut stream: Streaming<StreamAccessLogsMessage>) {
        let until = Instant::now() + REST;
        loop {
            match timeout_at(until, stream.message()).await {
                // However long the queue takes: only Envoy is not waited for.
                Ok(Ok(Some(message))) => {
                    if self.take(message).await.is_err() {
                        return;
                    }
                }
                Ok(_) => return,
                Err(_) => break,
            }
        }
        tracing::warn!("Envoy did not end an access-log stream in time: what it goes on to send is found by the sweep");
    }
}

/// Counts a stream for as long as it lives, however it ends.
struct OpenStream(Gauge);

impl OpenStream {
    fn new(metrics: &Metrics) -> Self {
        metrics.log_streams.inc();
        Self(metrics.log_streams.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl AccessLog {
    /// Takes what comes on a stream until it ends, or is ended by the stop.
    ///
    /// # Errors
    /// When there is nobody any more who could take it.
    async fn take(&self, mut stream: Streaming<StreamAccessLogsMessage>) -> Result<StreamAccessLogsResponse, Status> {
        let _request = self.requests.token();
        let events = match &self.events {
            Some(events) => Some(events.upgrade().ok_or_else(|| Status::unavailable("stopping"))?),
            None => None,
        };
        let reader = Reader { events, metrics: self.metrics.clone(), _open: OpenStream::new(&self.metrics) };
        loop {
            let message = tokio::select! {
                // What has arrived is taken before the stream is ended.
                biased;
                message = stream.message() => message,
                () = self.stop.cancelled() => {
                    // The answer tells Envoy to keep what comes from now on. What is on its way meanwhile would be lost
                    // with the stream.
                    self.requests.spawn(reader.take_the_rest(stream));
                    break;
                }
            };
            match message {
                Ok(Some(message)) => {
                    reader.take(message).await?;
                    // There may always be a next one, while the queue is full.
                    if self.stop.is_cancelled() {
                        self.requests.spawn(reader.take_the_rest(stream));
                        break;
                    }
                }
                Ok(None) => break,
                Err(status) => {
                    // Envoy went away; what it had not sent is found by the sweep.
                    tracing::debug!(error = %status, "an access-log stream broke off: {}", status.message());
                    break;
                }
            }
        }
        Ok(StreamAccessLogsResponse {})
    }
}
