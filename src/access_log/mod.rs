//! The access-log service: Envoy's finished requests → ledger.
//!
//! Entries become events at once ([`event`]); events queue for the intake, which commits them in groups. A full queue
//! stops the reading of the streams, so that Envoy's own buffer fills instead of anything being dropped here. Envoy never
//! waits for an answer and gets none until the stop, when the streams are ended so that the server can stop.

pub mod event;
mod intake;

use std::sync::Arc;

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogService;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::config::Limits;
use crate::drive::News;
use crate::ledger::Ledger;
use crate::telemetry::{KindLabels, Metrics};
use event::Event;
pub use intake::Intake;

/// The gRPC service.
pub struct AccessLog {
    /// Absent without billing: entries are then counted and forgotten.
    events: Option<mpsc::Sender<Event>>,
    stop: CancellationToken,
    metrics: Metrics,
}

impl AccessLog {
    /// A service that feeds an intake, and the intake.
    #[must_use]
    pub fn recording(
        ledger: Arc<dyn Ledger>,
        news: News,
        limits: &Limits,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> (Self, Intake) {
        let (events, queue) = mpsc::channel(limits.intake_queue);
        let intake = Intake::new(ledger, queue, news, limits.intake_batch, metrics.clone());
        (Self { events: Some(events), stop, metrics }, intake)
    }

    /// A service that records nothing, for when billing is off.
    #[must_use]
    pub fn idle(metrics: Metrics, stop: CancellationToken) -> Self {
        Self { events: None, stop, metrics }
    }

    async fn take(&self, message: StreamAccessLogsMessage) -> Result<(), Status> {
        let Some(LogEntries::HttpLogs(entries)) = message.log_entries else { return Ok(()) };
        let now = Timestamp::now();
        for entry in &entries.log_entry {
            let extracted = event::extract(entry, now);
            let kind = match &extracted {
                Ok(event) => event.kind(),
                Err(ignored) => ignored.kind(),
            };
            self.metrics.log_entries.get_or_create(&KindLabels { kind }).inc();
            if let (Ok(event), Some(events)) = (extracted, &self.events) {
                // Waits while the queue is full. It only closes when the intake has died, and the process with it.
                events.send(event).await.map_err(|_| Status::unavailable("stopping"))?;
                self.metrics.intake_queued.inc();
            }
        }
        Ok(())
    }
}

/// Counts a stream for as long as it lives, however it ends.
struct OpenStream<'a>(&'a Metrics);

impl<'a> OpenStream<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.log_streams.inc();
        Self(metrics)
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.0.log_streams.dec();
    }
}

#[tonic::async_trait]
impl AccessLogService for AccessLog {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let _open = OpenStream::new(&self.metrics);
        let mut stream = request.into_inner();
        loop {
            let message = tokio::select! {
                // What has arrived is taken before the stream is ended.
                biased;
                message = stream.message() => message,
                () = self.stop.cancelled() => break,
            };
            match message {
                Ok(Some(message)) => self.take(message).await?,
                Ok(None) => break,
                Err(status) => {
                    // Envoy went away; what it had not sent is found by the sweep.
                    tracing::debug!(%status, "an access-log stream broke off: {}", status.message());
                    break;
                }
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}
