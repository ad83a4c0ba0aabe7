//! `traceparent` and `tracestate` as W3C's Trace Context has them. Pure.
//!
//! What is not as agreed is as good as not there, and is no error of the request: an invalid `traceparent` takes its
//! `tracestate` with it, an invalid `tracestate` goes alone.

use std::str::FromStr;
use std::sync::Arc;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

/// What at least must be passed on, by the recommendation; of a longer one nothing is.
const LONGEST_STATE: usize = 512;
/// `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;

/// Whose part a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    span: SpanContext,
    tracestate: Option<Tracestate>,
}

/// As it was received: what is passed on should not be written anew.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tracestate(Arc<str>);

impl Parent {
    /// Reads the values of both headers.
    #[must_use]
    pub fn parse(traceparent: &[&[u8]], tracestate: &[&[u8]]) -> Option<Self> {
        let [traceparent] = traceparent else { return None };
        let (trace_id, span_id, flags) = ids(traceparent)?;
        // Several lines are one list.
        let text = tracestate.join(&b","[..]);
        let text = (!text.is_empty() && text.len() <= LONGEST_STATE && is_printable(&text))
            .then(|| String::from_utf8(text).ok())
            .flatten();
        let state = text.as_deref().and_then(|text| TraceState::from_str(text).ok());
        let tracestate = state.as_ref().and(text.as_deref()).map(|text| Tracestate(Arc::from(text.trim())));
        let span = SpanContext::new(trace_id, span_id, flags, true, state.unwrap_or_default());
        span.is_valid().then_some(Self { span, tracestate })
    }

    /// What is around the work on the request.
    pub(super) fn context(&self) -> Context {
        let context = Context::new().with_remote_span_context(self.span.clone());
        match &self.tracestate {
            Some(tracestate) => context.with_value(tracestate.clone()),
            None => context,
        }
    }
}

/// What of `tracestate` is to be passed on.
pub(super) fn tracestate(context: &Context) -> Option<&str> {
    context.get::<Tracestate>().map(|tracestate| &*tracestate.0)
}

fn ids(value: &[u8]) -> Option<(TraceId, SpanId, TraceFlags)> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let mut parts = known.split('-');
    let mut next = |length: usize| parts.next().filter(|part| part.len() == length && is_lower_hex(part));
    let (version, trace_id, span_id, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    // A later version may have more to say after another dash; this one has not, and ff is none.
    let is_complete = if version == "00" { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
    if version == "ff" || !is_complete {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    Some((TraceId::from_hex(trace_id).ok()?, SpanId::from_hex(span_id).ok()?, flags))
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_printable(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, b' '..=b'~'))
}
