//! What Check says in the log.

use super::Seen;
use super::decision::{Allow, Decision, Denial};
use super::request::Inquiry;
use crate::principal::Principal;
use crate::route;
use crate::telemetry::traces;
use crate::upstream::CallError;

/// One line per Check. Refusals and submissions are for everybody, the rest is for whoever looks closer.
pub(super) fn decided(decision: &Decision, inquiry: &Inquiry, seen: &Seen) {
    // Nearly every Check is one of these, and nothing of its line is put together where nobody reads it.
    let is_for_a_closer_look = match decision {
        Decision::Public => true,
        Decision::Allow(allow) => allow.submission_id.is_none(),
        Decision::Deny(_) => false,
    };
    if is_for_a_closer_look && !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let path = shown(&inquiry.target);
    let method: String = inquiry.method.chars().take(16).flat_map(char::escape_debug).collect();
    let token = seen.token.map(|hash| hash.to_string()).unwrap_or_default();
    let route = seen.route.unwrap_or("none");
    let (request_id, source, reason) = (&inquiry.request_id, &inquiry.source, decision.reason());
    let trace_id = traces::id();
    match decision {
        Decision::Public => tracing::debug!(request_id, trace_id, route, source, "{method} {path}: public"),
        Decision::Allow(Allow { caller, supplier, submission_id: Some(submission), .. }) => tracing::info!(
            request_id,
            trace_id,
            route,
            source,
            token,
            principal = caller.principal.id,
            submission,
            supplier = supplier.as_deref(),
            "{method} {path}: submission {submission} of {}",
            caller.principal.id
        ),
        Decision::Allow(Allow { caller, supplier, .. }) => tracing::debug!(
            request_id,
            trace_id,
            route,
            source,
            token,
            principal = caller.principal.id,
            supplier = supplier.as_deref(),
            "{method} {path}: allowed as {}",
            caller.principal.id
        ),
        // The one refusal that is not the client's doing.
        Decision::Deny(denial @ Denial::IdentityUnavailable { .. }) => {
            let cause = seen.cause.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(
                request_id,
                trace_id,
                route,
                source,
                token,
                reason,
                status = denial.status(),
                cause,
                "{method} {path}: refused with {}, {reason}: lum.id: {cause}",
                denial.status()
            );
        }
        Decision::Deny(denial) => tracing::info!(
            request_id,
            trace_id,
            route,
            source,
            token,
            reason,
            status = denial.status(),
            "{method} {path}: refused with {}, {reason}",
            denial.status()
        ),
    }
}

/// The same for the span, where there is one.
pub(super) fn note(decision: &Decision, inquiry: &Inquiry, seen: &Seen) {
    if !traces::is_on() {
        return;
    }
    traces::note("tollgate.decision", decision.reason());
    traces::note("tollgate.route", seen.route.unwrap_or("none"));
    traces::note("tollgate.request_id", inquiry.request_id.clone());
    match decision {
        Decision::Public => {}
        Decision::Allow(Allow { caller, supplier, submission_id, .. }) => {
            traces::note("tollgate.principal_id", caller.principal.id.clone());
            if let Some(supplier) = supplier {
                traces::note("tollgate.supplier_id", supplier.to_string());
            }
            if let Some(submission) = submission_id {
                traces::note("tollgate.submission_id", submission.clone());
            }
        }
        Decision::Deny(denial) => {
            traces::note("http.response.status_code", i64::from(denial.status()));
            // The others are the client's doing, and no failure of the Check.
            if matches!(denial, Denial::IdentityUnavailable { .. }) {
                traces::failed("lum.id gave no answer");
            }
        }
    }
}

/// A submission that goes through without a preflight.
pub(super) fn unguarded(principal: &Principal, inquiry: &Inquiry, cause: &CallError) {
    let request_id = &inquiry.request_id;
    tracing::warn!(
        request_id,
        trace_id = traces::id(),
        principal = principal.id,
        %cause,
        "no preflight for {}, letting the submission through: {cause}",
        principal.id
    );
}

/// What of a target can be in a log. No query, and of a mistyped path nothing from where a query could have begun: somebody's
/// token may be there. It is quoted and kept short, because of a refused one nothing is known.
fn shown(target: &str) -> String {
    let path = target.split(['?', '&', ';', '=', '%', '#']).next().unwrap_or_default();
    let segments: Vec<&str> =
        path.split('/').map(|segment| if is_like_a_token(segment) { "…" } else { segment }).collect();
    let shown: String = segments.join("/").chars().take(256).flat_map(char::escape_debug).collect();
    if path.len() < route::split_query(target).0.len() { shown + "…" } else { shown }
}

/// Personal access tokens and JWTs as lum.id makes them.
fn is_like_a_token(segment: &str) -> bool {
    segment.contains("lm_pat_") || segment.starts_with("eyJ")
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_path_is_shown_without_anything_that_could_be_a_token() {
        for (target, expected) in [
            ("/api/v1/tasks/tsk-1?token=abc", "/api/v1/tasks/tsk-1"),
            ("/api/v1/results/tsk-1/files/a%20b.txt", "/api/v1/results/tsk-1/files/a…"),
            ("/api/v1/ssh/tasks/tsk-1/proxy%3Ftoken=abc", "/api/v1/ssh/tasks/tsk-1/proxy…"),
            ("/api/v1/ssh/tasks/tsk-1/proxy&token=abc", "/api/v1/ssh/tasks/tsk-1/proxy…"),
            ("/api/v1/tasks/lm_pat_live_0123", "/api/v1/tasks/…"),
            ("/eyJhbGciOi.eyJzdWIi.c2ln/x", "/…/x"),
            ("/a\nb", "/a\\nb"),
            ("", ""),
        ] {
            assert_eq!(shown(target), expected, "{target}");
        }
        assert_eq!(shown(&format!("/{}", "a".repeat(1000))).len(), 256);
    }
}
