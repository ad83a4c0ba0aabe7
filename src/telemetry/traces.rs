//! Traces: W3C trace context on its way through Tollgate, and spans for a collector where one is configured.
//!
//! What a piece of work is part of is its *context*, which is around it while it runs: [`within`] puts it there, and
//! whatever it starts inherits it. A call to another system carries it on. Without a collector that is the context as it
//! was received, and a request that came without one costs a look into its headers and nothing else; with one, each
//! step is a span, and calls carry the span that they are.
//!
//! As the log, the tracer is one for the whole process: [`init_traces`] sets it once. Never in a span: what is never in
//! the log. Attributes are identifiers, bounded names and numbers.

mod export;
mod parent;

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::OnceLock;

use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt, TraceId, Tracer};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;
use reqwest::RequestBuilder;
use tracing::field::{DisplayValue, display};

pub use export::{Traces, init_traces};
pub use parent::Parent;

/// Present where spans are exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// A piece of work that is part of a trace. Its span, if it has one, ends with it.
pub struct Work(Context);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

/// The work on a request that came with this context, or with none. `None`: it is part of no trace.
pub fn of_request(name: &'static str, parent: Option<&Parent>) -> Option<Work> {
    match (TRACER.get(), parent) {
        (None, None) => None,
        (None, Some(parent)) => Some(Work(parent.context())),
        (Some(tracer), parent) => {
            let around = parent.map(Parent::context).unwrap_or_default();
            Some(start(tracer, &around, name, SpanKind::Server))
        }
    }
}

fn start(tracer: &SdkTracer, around: &Context, name: &'static str, kind: SpanKind) -> Work {
    let span = tracer.build_with_context(SpanBuilder::from_name(name).with_kind(kind), around);
    Work(around.with_span(span))
}

/// Runs what is part of that work.
pub async fn within<F: Future>(work: Option<&Work>, inner: F) -> F::Output {
    within_context(work.map(|work| &work.0), inner).await
}

async fn within_context<F: Future>(context: Option<&Context>, inner: F) -> F::Output {
    let mut inner = pin!(inner);
    poll_fn(|task| {
        let _around = context.map(|context| context.clone().attach());
        inner.as_mut().poll(task)
    })
    .await
}

/// Runs a step as a span of its own, which nobody asked for from outside.
pub async fn step<F: Future>(name: &'static str, inner: F) -> F::Output {
    let work = TRACER.get().map(|tracer| start(tracer, &Context::current(), name, SpanKind::Internal));
    within(work.as_ref(), inner).await
}

/// Runs a call to another system as a span; a failure is named by `kind`, and no more is said of it.
pub async fn call<T, E>(
    name: &'static str,
    kind: impl FnOnce(&E) -> &'static str,
    inner: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Some(tracer) = TRACER.get() else { return inner.await };
    let work = start(tracer, &Context::current(), name, SpanKind::Client);
    let result = within(Some(&work), inner).await;
    if let Err(error) = &result {
        let (span, kind) = (work.0.span(), kind(error));
        span.set_attribute(KeyValue::new("error.type", kind));
        span.set_status(Status::error(kind));
    }
    result
}

/// What is around the work that this is part of, for work that goes on without it.
#[derive(Clone)]
pub struct Around(Option<Context>);

impl Around {
    /// What is around us now.
    #[must_use]
    pub fn here() -> Self {
        Self(Context::map_current(|context| context.has_active_span().then(|| context.clone())))
    }

    /// Runs something else inside of it.
    pub async fn run<F: Future>(&self, inner: F) -> F::Output {
        within_context(self.0.as_ref(), inner).await
    }
}

/// Whether spans are exported.
#[must_use]
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Notes something about the step that this is part of.
pub fn note(key: &'static str, value: impl Into<Value>) {
    if TRACER.get().is_some() {
        Context::map_current(|context| context.span().set_attribute(KeyValue::new(key, value)));
    }
}

/// Says that the step that this is part of failed.
pub fn failed(why: impl Into<Cow<'static, str>>) {
    if TRACER.get().is_some() {
        Context::map_current(|context| context.span().set_status(Status::error(why)));
    }
}

/// The trace that this is part of, for a log line.
#[must_use]
pub fn id() -> Option<DisplayValue<TraceId>> {
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| display(span.trace_id()))
    })
}

/// Adds the headers that tell another system what its request is part of.
pub fn carry(request: RequestBuilder) -> RequestBuilder {
    Context::map_current(|context| match headers(context) {
        None => request,
        Some((traceparent, None)) => request.header("traceparent", traceparent),
        Some((traceparent, Some(tracestate))) => {
            request.header("traceparent", traceparent).header("tracestate", tracestate)
        }
    })
}

fn headers(context: &Context) -> Option<(String, Option<&str>)> {
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| {
        let (trace_id, span_id, flags) = (span.trace_id(), span.span_id(), span.trace_flags().to_u8());
        (format!("00-{trace_id}-{span_id}-{flags:02x}"), parent::tracestate(context))
    })
}

#[cfg(test)]
mod tests;
