//! What Check says in the log.

use super::Seen;
use super::decision::{Allow, Decision, Denial};
use super::request::Inquiry;
use crate::principal::Principal;
use crate::route;
use crate::upstream::CallError;

/// One line per Check. Refusals and submissions are for everybody, the rest is for whoever looks closer. No query: a
/// refused one may hold a token.
pub(super) fn decided(decision: &Decision, inquiry: &Inquiry, seen: &Seen) {
    let (path, _) = route::split_query(&inquiry.target);
    // Of a refused path nothing is known, so it is quoted and kept short.
    let path: String = path.chars().take(256).flat_map(char::escape_debug).collect();
    let method: String = inquiry.method.chars().take(16).flat_map(char::escape_debug).collect();
    let token = seen.token.map(|hash| hash.to_string()).unwrap_or_default();
    let route = seen.route.unwrap_or("none");
    let (request_id, source, reason) = (&inquiry.request_id, &inquiry.source, decision.reason());
    match decision {
        Decision::Public => tracing::debug!(request_id, route, source, "{method} {path}: public"),
        Decision::Allow(Allow { principal, supplier, submission_id: Some(submission), .. }) => tracing::info!(
            request_id,
            route,
            source,
            token,
            principal = principal.id,
            submission,
            supplier = supplier.as_deref(),
            "{method} {path}: submission {submission} of {}",
            principal.id
        ),
        Decision::Allow(Allow { principal, supplier, .. }) => tracing::debug!(
            request_id,
            route,
            source,
            token,
            principal = principal.id,
            supplier = supplier.as_deref(),
            "{method} {path}: allowed as {}",
            principal.id
        ),
        // The one refusal that is not the client's doing.
        Decision::Deny(denial @ Denial::IdentityUnavailable { .. }) => {
            let cause = seen.cause.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(
                request_id,
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

/// A submission that goes through without a preflight.
pub(super) fn unguarded(principal: &Principal, inquiry: &Inquiry, cause: &CallError) {
    let request_id = &inquiry.request_id;
    tracing::warn!(
        request_id,
        principal = principal.id,
        %cause,
        "no preflight for {}, letting the submission through: {cause}",
        principal.id
    );
}
