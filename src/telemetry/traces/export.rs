//! Spans → collector, by OTLP over HTTP.
//!
//! Finished spans wait in a bounded queue for a thread of their own; a full queue drops them, so that no Check ever waits
//! for a collector. What is sent goes by the HTTP client that everything else goes by. A collector that does not answer
//! is counted and, now and then, told.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;

use super::TRACER;
use crate::config::BaseUrl;
use crate::telemetry::{OutcomeLabels, Sparing, names, zeros};
use crate::upstream::{CallError, Http, read_bounded};

/// For one try to hand over a batch.
const LIMIT: Duration = Duration::from_secs(5);
/// For the last batch, when the process stops.
const LAST_LIMIT: Duration = Duration::from_secs(2);
/// Between two lines about a collector that does not take spans.
const TELL_EVERY: Duration = Duration::from_mins(1);
/// A collector's answer is empty or a short message.
const ANSWER_LIMIT: usize = 64 * 1024;

/// The exporter of spans, for as long as there are any.
pub struct Traces {
    provider: SdkTracerProvider,
    exports: Family<OutcomeLabels, Counter>,
}

/// Starts exporting spans to this collector; within a runtime, by which they are sent. The SDK reads the rest of its
/// standard variables itself: sampler, resource, queue, headers.
///
/// # Errors
/// One line, when the collector's URL needs TLS and there is none, or the SDK refuses its settings.
pub fn init_traces(collector: &BaseUrl) -> anyhow::Result<Traces> {
    let http = Http::new(collector, LIMIT).map_err(CallError::from)?;
    let exports = zeros(names::SPAN_EXPORTS, |outcome| OutcomeLabels { outcome });
    let sender = Sender(Arc::new(Inner {
        http,
        runtime: Handle::current(),
        exports: exports.clone(),
        told: Sparing::new(1, TELL_EVERY),
    }));
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(sender)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(collector.join("/v1/traces"))
        .with_timeout(LIMIT)
        .build()?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
    // A second one would be a mistake of ours; the first one stays.
    let _ = TRACER.set(provider.tracer("tollgate"));
    Ok(Traces { provider, exports })
}

/// As `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say; what names no service is Tollgate.
fn resource() -> Resource {
    let said = Resource::builder().build();
    let name = said.get(&"service.name".into()).map(|name| name.to_string());
    let of_nobody = name.is_none_or(|name| name.starts_with("unknown_service"));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let ours = Resource::builder().with_attribute(version);
    if of_nobody { ours.with_service_name("tollgate").build() } else { ours.build() }
}

impl Traces {
    /// Registers what is counted of exports: only where there are any.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Tries to hand spans to the collector, by outcome";
        registry.register("tollgate_span_exports", help, self.exports.clone());
    }

    /// Hands over what there still is, and no longer than a short while.
    pub async fn finish(self) {
        let provider = self.provider;
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_LIMIT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans were not exported: {error}");
        }
    }
}

/// By which batches travel. Cheap to clone.
#[derive(Clone)]
struct Sender(Arc<Inner>);

struct Inner {
    http: Http,
    runtime: Handle,
    exports: Family<OutcomeLabels, Counter>,
    told: Sparing,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

impl Inner {
    async fn send(&self, request: &Request<Bytes>) -> Result<Response<Bytes>, CallError> {
        let url = request.uri().to_string();
        let build = |client: &reqwest::Client| {
            client.post(&url).headers(request.headers().clone()).body(request.body().clone())
        };
        let answer = self.http.send(build).await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut response = Response::new(Bytes::from(read_bounded(answer, ANSWER_LIMIT).await?));
        // The exporter judges them, and tries again where the protocol says so.
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let inner = &self.0;
        let mut sending = pin!(inner.send(&request));
        // The thread that exports is none of the runtime's.
        let sent = poll_fn(|task| {
            let _runtime = inner.runtime.enter();
            sending.as_mut().poll(task)
        })
        .await;
        let (outcome, error) = match &sent {
            Ok(response) if response.status().is_success() => ("ok", None),
            Ok(response) => ("status", Some(format!("status {}", response.status().as_u16()))),
            Err(error) => (error.kind(), Some(error.to_string())),
        };
        inner.exports.get_or_create(&OutcomeLabels { outcome }).inc();
        if let Some(error) = error
            && let Some(unsaid) = inner.told.say()
        {
            tracing::warn!(error, unsaid = unsaid.count(), "the collector does not take spans: {error}{unsaid}");
        }
        Ok(sent?)
    }
}
