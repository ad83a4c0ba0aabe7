//! Log entry → [`Event`]: what a finished request tells about billing. Pure.
//!
//! An entry counts only when it is final, carries Check's own metadata and, but for submissions, was answered with
//! 2xx. Who submitted is what Check's metadata says, never what a header says. Every event is a hint that leads to an
//! idempotent ledger move, so that a repeated entry changes nothing.

use std::sync::Arc;

use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;
use jiff::{SignedDuration, Timestamp};

use crate::authz::metadata;
use crate::ledger::Usage;
use crate::principal::Principal;
use crate::route::{self, Route, is_id};
use crate::settlement::usage::Reported;
use crate::upstream::flowmesh::is_terminal;
use crate::wire::{self, Header, HttpLogEntry, LogCommon, LogResponse, Moment, Struct};

/// Where the shipped bootstrap puts what it captured from response bodies.
const RESPONSE_NAMESPACE: &str = "flowmesh.response";
/// Where it puts what a FlowMesh, or something beside it, reports of a task's usage in the headers of its answer.
const USAGE_NAMESPACE: &str = "flowmesh.usage";
/// Such a header or trailer, without its field's name.
const USAGE_PREFIX: &str = "x-flowmesh-task-";

/// Of an answer that FlowMesh gave itself.
const VIA_UPSTREAM: &str = "via_upstream";

/// What a log entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// FlowMesh answered a submission with its workflow.
    Submitted { submission_id: String, principal_id: String, workflow_id: String, at: Timestamp },
    /// The submission made no workflow.
    SubmissionRefused { over: Over },
    /// The request is over, and whether it made a workflow is not known: the client left, or the answer was lost, or
    /// FlowMesh `failed`, with an error of its own.
    SubmissionEnded { over: Over, failed: bool },
    /// Not from the log: a submission that Check let through without a row, because the ledger did not commit in time. Its
    /// request `began` by Envoy's clock.
    SubmissionOpened {
        submission_id: String,
        principal: Arc<Principal>,
        request_id: String,
        began: Timestamp,
        at: Timestamp,
    },
    /// Not from the log: somebody whose charges wait for an e-mail was seen with one.
    PrincipalSeen { principal: Arc<Principal> },
    /// The task has ended, or is about to: ask until it has.
    TaskEnded { task_id: String },
    /// Somebody looked at the task or moved its artifacts: ask once, if it is not settled.
    TaskTouched { task_id: String },
    /// The answer itself says what the task cost.
    UsageReported { task_id: String, usage: Box<Usage> },
    /// The workflow has ended or was cancelled, or its state was read: ask after its tasks.
    WorkflowSeen { workflow_id: String },
}

/// A submission whose request is over: all that is known of it when its log entry is faster than its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    pub submission_id: String,
    /// Check's metadata always has it.
    pub principal_id: Option<String>,
    /// When the request began, by Envoy's clock.
    pub began: Timestamp,
    /// When it was over, by Envoy's clock.
    pub at: Timestamp,
}

impl Event {
    /// A bounded name for metric labels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Submitted { .. } => "submitted",
            Self::SubmissionRefused { .. } => "submission_refused",
            Self::SubmissionEnded { .. } => "submission_ended",
            Self::SubmissionOpened { .. } => "submission_opened",
            Self::PrincipalSeen { .. } => "principal_seen",
            Self::TaskEnded { .. } => "task_ended",
            Self::TaskTouched { .. } => "task_touched",
            Self::UsageReported { .. } => "usage_reported",
            Self::WorkflowSeen { .. } => "workflow_seen",
        }
    }

    /// What kind it is and what it is about, for a line of log.
    #[must_use]
    pub fn about(&self) -> (&'static str, &str) {
        let id = match self {
            Self::Submitted { workflow_id, .. } | Self::WorkflowSeen { workflow_id } => workflow_id,
            Self::SubmissionRefused { over } | Self::SubmissionEnded { over, .. } => &over.submission_id,
            Self::SubmissionOpened { submission_id, .. } => submission_id,
            Self::PrincipalSeen { principal } => &principal.id,
            Self::TaskEnded { task_id } | Self::TaskTouched { task_id } | Self::UsageReported { task_id, .. } => {
                task_id
            }
        };
        (self.kind(), id)
    }
}

/// Why an entry says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// An entry of a request that still goes on.
    NotFinal,
    /// It did not pass Check, or Check did not ask for it.
    NotOurs,
    /// FlowMesh, or who is in between, did not do what was asked for.
    NotSuccessful,
    /// A route or an answer that tells nothing of billing.
    Irrelevant,
    /// Of Check's own asking, and something that must be there is not, or cannot be read.
    Malformed,
}

impl Ignored {
    /// A bounded name for metric labels.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::NotFinal => "ignored_not_final",
            Self::NotOurs => "ignored_not_ours",
            Self::NotSuccessful => "ignored_not_2xx",
            Self::Irrelevant => "ignored_irrelevant",
            Self::Malformed => "ignored_malformed",
        }
    }
}

/// What an entry says, if anything. `now` stands in for an end time that Envoy did not give.
///
/// # Errors
/// [`Ignored`], for the counter.
pub fn extract(entry: &HttpLogEntry, now: Timestamp) -> Result<Event, Ignored> {
    let common = entry.common_properties.as_ref().ok_or(Ignored::Malformed)?;
    if !is_final(common) {
        return Err(Ignored::NotFinal);
    }
    let ours = namespace(common, metadata::NAMESPACE).ok_or(Ignored::NotOurs)?;
    if ours.text(metadata::RECORD) != Some(metadata::RECORD_YES) {
        return Err(Ignored::NotOurs);
    }
    let (Some(request), Some(response)) = (&entry.request, &entry.response) else { return Err(Ignored::Malformed) };
    let captured = namespace(common, RESPONSE_NAMESPACE);
    let captured = |key: &str| captured.and_then(|captured| captured.text(key));
    let code = response.response_code.unwrap_or_default().value;
    let succeeded = (200..300).contains(&code);
    let method = method_name(request.request_method);
    let path = wire::text(&request.path).ok_or(Ignored::Malformed)?;
    let route = route::classify(method, path).map_err(|_| Ignored::Malformed)?;

    if route == Route::Submit {
        let submission_id = ours.text(metadata::SUBMISSION_ID).ok_or(Ignored::Malformed)?.to_owned();
        let at = end(common).unwrap_or(now);
        let workflow_id = captured("workflow_id").filter(|id| is_id(id));
        let principal_id = ours.text(metadata::PRINCIPAL_ID);
        let over = |submission_id| Over {
            submission_id,
            principal_id: principal_id.map(ToOwned::to_owned),
            began: start(common).unwrap_or(at),
            at,
        };
        return Ok(match (workflow_id, principal_id) {
            (Some(workflow_id), Some(principal_id)) if succeeded => Event::Submitted {
                submission_id,
                principal_id: principal_id.to_owned(),
                workflow_id: workflow_id.to_owned(),
                at,
            },
            // FlowMesh's own refusal, or nothing of the request ever reached it.
            _ if (400..500).contains(&code) && response.response_code_details == VIA_UPSTREAM => {
                Event::SubmissionRefused { over: over(submission_id) }
            }
            _ if code >= 400 && common.upstream_wire_bytes_sent == 0 => {
                Event::SubmissionRefused { over: over(submission_id) }
            }
            _ => Event::SubmissionEnded {
                over: over(submission_id),
                failed: code >= 500 && response.response_code_details == VIA_UPSTREAM,
            },
        });
    }
    if !succeeded {
        return Err(Ignored::NotSuccessful);
    }
    let about = match route {
        Route::ReadTask { task_id } | Route::Artifact { task_id } => Some(task_id),
        Route::PostResult => ours.text(metadata::TASK_ID),
        _ => None,
    };
    if let Some(reported) = reported_usage(common, response, about, ours.text(metadata::SUPPLIER_ID)) {
        return Ok(reported);
    }
    let ended = captured("status").is_some_and(is_terminal);
    match route {
        Route::PostResult => match ours.text(metadata::TASK_ID).filter(|id| is_id(id)) {
            Some(task_id) => Ok(Event::TaskEnded { task_id: task_id.to_owned() }),
            // The body told Check no task: it was too long before the id, or none of a worker's.
            None => Err(Ignored::Malformed),
        },
        Route::ReadTask { task_id } if ended => Ok(Event::TaskEnded { task_id: task_id.to_owned() }),
        // With a captured status that is not final there is nothing to settle, and clients poll this all day.
        Route::ReadTask { .. } | Route::ReadWorkflow { .. } if captured("status").is_some() && !ended => {
            Err(Ignored::Irrelevant)
        }
        Route::ReadTask { task_id } | Route::Artifact { task_id } => {
            Ok(Event::TaskTouched { task_id: task_id.to_owned() })
        }
        Route::ReadWorkflow { workflow_id } | Route::CancelWorkflow { workflow_id } => {
            Ok(Event::WorkflowSeen { workflow_id: workflow_id.to_owned() })
        }
        _ => Err(Ignored::Irrelevant),
    }
}

/// What the answer says of a task's usage: in metadata, where the shipped bootstrap moves headers, in trailers, or in headers
/// where they are logged as they are; all of it in one of these. It is a charge only for the task that the request is
/// `about`. Anything less that names a finished task is a hint to ask after it.
fn reported_usage<'a>(
    common: &'a LogCommon,
    response: &'a LogResponse,
    about: Option<&str>,
    supplier_id: Option<&str>,
) -> Option<Event> {
    let headers = |headers: &'a [Header], name: &str| -> Option<&'a str> {
        // By nearly every answer there is none, and no name is put together.
        if headers.is_empty() {
            return None;
        }
        wire::value(headers, &format!("{USAGE_PREFIX}{}", name.replace('_', "-")))
    };
    let in_metadata = namespace(common, USAGE_NAMESPACE);
    let at = |place: usize, name: &str| match place {
        0 => in_metadata.and_then(|fields| fields.text(name)),
        1 => headers(&response.response_trailers, name),
        _ => headers(&response.response_headers, name),
    };
    let place = (0..3).find(|place| at(*place, "id").is_some())?;
    let field = |name: &str| at(place, name);
    let task_id = field("id").filter(|id| is_id(id))?.to_owned();
    let status = field("status").filter(|status| is_terminal(status))?.to_owned();
    let reported = Reported {
        status,
        cost: field("cost"),
        runtime_sec: field("runtime_sec"),
        cost_per_hour: field("cost_per_hour"),
        worker: field("worker"),
        started_at: field("started_at"),
        finished_at: field("finished_at"),
    };
    Some(match reported.usage(supplier_id).filter(|_| about == Some(&task_id)) {
        Some(usage) => Event::UsageReported { task_id, usage: Box::new(usage) },
        None => Event::TaskEnded { task_id },
    })
}

/// Envoy can also log when a request starts and while it runs.
fn is_final(common: &LogCommon) -> bool {
    !common.intermediate_log_entry
        && matches!(
            AccessLogType::try_from(common.access_log_type),
            Ok(AccessLogType::NotSet | AccessLogType::DownstreamEnd)
        )
}

fn start(common: &LogCommon) -> Option<Timestamp> {
    common.start_time.and_then(Moment::time)
}

fn end(common: &LogCommon) -> Option<Timestamp> {
    let lasted =
        common.duration.map_or(SignedDuration::ZERO, |duration| SignedDuration::new(duration.seconds, duration.nanos));
    start(common)?.checked_add(lasted).ok()
}

fn namespace<'a>(common: &'a LogCommon, name: &str) -> Option<&'a Struct> {
    common.metadata.as_ref()?.namespace(name)
}

/// Envoy logs methods as an enumeration whose names are the methods.
fn method_name(method: i32) -> &'static str {
    use envoy_types::pb::envoy::config::core::v3::RequestMethod;
    RequestMethod::try_from(method).map_or("", |method| method.as_str_name())
}

#[cfg(test)]
mod tests;
