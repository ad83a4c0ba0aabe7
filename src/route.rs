//! (method, path) → which FlowMesh operation this is.
//!
//! The one classification that both Check and the access log use, so that what was let through and what is billed
//! can never be two opinions of one request. Pure: it looks at nothing but its arguments.
//!
//! FlowMesh routes on the percent-*decoded* path, Envoy and Tollgate see the raw one. A path that could be read in two
//! ways is therefore refused ([`NotNormal`]) instead of being interpreted, whatever Envoy's own normalisation is set to.
//! Routes are those of FlowMesh's published API; a path that is none of them is [`Route::Other`], which needs a token
//! like any other.

use percent_encoding::percent_decode_str;

/// The operation a request asks of FlowMesh. Ids are borrowed from the path and match `[A-Za-z0-9_.-]{1,128}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `GET /healthz`: public.
    Healthz,
    /// `/api/v1/serve/tasks/{id}/…`: a user's own server, public here; its `Authorization` is not ours.
    Serve,
    /// `POST /api/v1/workflows`.
    Submit,
    /// `POST /api/v1/workflows/{id}/cancel`.
    CancelWorkflow { workflow_id: &'a str },
    /// `GET /api/v1/workflows/{id}`.
    ReadWorkflow { workflow_id: &'a str },
    /// `GET /api/v1/tasks/{id}`.
    ReadTask { task_id: &'a str },
    /// `POST /api/v1/results`, from a worker; the task is named in the body only.
    PostResult,
    /// Result downloads, artifact uploads and trace uploads of a task.
    Artifact { task_id: &'a str },
    /// Any other request that names a task in its path: logs, stop, the SSH proxy.
    OfTask { task_id: &'a str },
    /// Any request that names a worker by its id in its path.
    OfWorker { worker_id: &'a str },
    /// Everything else.
    Other,
}

impl Route<'_> {
    /// Whether the request passes without a lum.id token.
    #[must_use]
    pub fn is_public(&self) -> bool {
        matches!(self, Self::Healthz | Self::Serve)
    }

    /// Whether the log entry of this request can tell something about billing, so that Envoy should send it.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        matches!(
            self,
            Self::Submit
                | Self::CancelWorkflow { .. }
                | Self::ReadWorkflow { .. }
                | Self::ReadTask { .. }
                | Self::PostResult
                | Self::Artifact { .. }
        )
    }

    /// A bounded name for logs and metric labels.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Serve => "serve",
            Self::Submit => "submit",
            Self::CancelWorkflow { .. } => "cancel_workflow",
            Self::ReadWorkflow { .. } => "read_workflow",
            Self::ReadTask { .. } => "read_task",
            Self::PostResult => "post_result",
            Self::Artifact { .. } => "artifact",
            Self::OfTask { .. } => "of_task",
            Self::OfWorker { .. } => "of_worker",
            Self::Other => "other",
        }
    }
}

/// Why a path is refused with 400 instead of being interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotNormal {
    /// Percent-encoded letters, slashes or control characters, bytes that are no text, `//`, `.` or `..` segments, and
    /// the like.
    #[error("Request path is not in normal form")]
    Path,
    /// An id position that holds something other than `[A-Za-z0-9_.-]{1,128}`.
    #[error("Malformed id in request path")]
    Id,
}

/// Splits Envoy's `:path` into path and query; the query is without its `?`.
#[must_use]
pub fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

/// Classifies a request. `target` is Envoy's `:path`: path and query as they were sent upstream.
///
/// # Errors
/// [`NotNormal`] when the path could mean something else to FlowMesh than it does here.
pub fn classify<'a>(method: &str, target: &'a str) -> Result<Route<'a>, NotNormal> {
    let (path, _) = split_query(target);
    let mut first = [""; LONGEST];
    let segments = segments(path, &mut first)?;
    Ok(match (method, segments) {
        ("GET", ["healthz"]) => Route::Healthz,
        (method, ["api", "v1", rest @ ..]) => classify_api(method, rest)?,
        _ => Route::Other,
    })
}

fn classify_api<'a>(method: &str, rest: &[&'a str]) -> Result<Route<'a>, NotNormal> {
    Ok(match (method, rest) {
        (_, ["serve", "tasks", task, _, ..]) => {
            id(task)?;
            Route::Serve
        }
        ("POST", ["workflows"]) => Route::Submit,
        // Not an id: FlowMesh matches this route before `/workflows/{id}`.
        (_, ["workflows", "validate"]) => Route::Other,
        ("GET", ["workflows", workflow]) if !workflow.is_empty() => Route::ReadWorkflow { workflow_id: id(workflow)? },
        ("POST", ["workflows", workflow, "cancel"]) => Route::CancelWorkflow { workflow_id: id(workflow)? },
        (_, ["workflows", workflow, ..]) if !workflow.is_empty() => {
            id(workflow)?;
            Route::Other
        }
        ("GET", ["tasks", task]) if !task.is_empty() => Route::ReadTask { task_id: id(task)? },
        ("POST", ["results"]) => Route::PostResult,
        ("GET", ["results", task, ..]) | ("POST", ["results", task, "files"]) if !task.is_empty() => {
            Route::Artifact { task_id: id(task)? }
        }
        ("POST", ["traces", "tasks", task, _]) => Route::Artifact { task_id: id(task)? },
        (_, ["tasks" | "results", task, ..] | ["traces" | "ssh", "tasks", task, ..]) if !task.is_empty() => {
            Route::OfTask { task_id: id(task)? }
        }
        (_, ["workers", worker, ..]) if !worker.is_empty() => Route::OfWorker { worker_id: id(worker)? },
        // A node's worker is named by alias here, which is no worker id.
        (_, ["nodes", node, ..]) if !matches!(*node, "" | "register") => {
            id(node)?;
            Route::Other
        }
        _ => Route::Other,
    })
}

/// More segments than any route tells apart: of a longer path only so many are looked at, which no route with a last segment
/// can be taken for.
const LONGEST: usize = 8;

/// The first segments of a path in normal form, which all of them are; a trailing slash leaves an empty last one.
fn segments<'a, 'b>(path: &'a str, first: &'b mut [&'a str; LONGEST]) -> Result<&'b [&'a str], NotNormal> {
    let rest = path.strip_prefix('/').ok_or(NotNormal::Path)?;
    let mut found = 0;
    let mut rest = rest.split('/').peekable();
    while let Some(segment) = rest.next() {
        if segment.is_empty() && rest.peek().is_some() {
            return Err(NotNormal::Path);
        }
        // Nearly every segment is one of those that mean only themselves, and is looked at once.
        if !is_plain(segment) && (!is_normal(segment) || climbs(segment)) {
            return Err(NotNormal::Path);
        }
        if let Some(place) = first.get_mut(found) {
            *place = segment;
            found += 1;
        }
    }
    Ok(&first[..found])
}

/// Whether some server takes the segment for `.` or `..`: those that cut parameters off (`..;a=b`), or blanks, do. Also
/// whether it decodes to no text, as overlong forms of dots and slashes (`%c0%ae`) do.
fn climbs(segment: &str) -> bool {
    let Ok(decoded) = percent_decode_str(segment).decode_utf8() else { return true };
    let name = decoded.split(';').next().unwrap_or_default().trim();
    matches!(name, "." | "..")
}

/// Whether there is nothing in it that anybody could read in another way.
fn is_plain(segment: &str) -> bool {
    segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Whether decoding the segment once, or twice, can change what it means to a router.
fn is_normal(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let mut position = 0;
    while let Some(&byte) = bytes.get(position) {
        match byte {
            b'%' => {
                let Some(decoded) = hex_pair(bytes, position + 1) else { return false };
                let unreserved = decoded.is_ascii_alphanumeric() || b"-._~".contains(&decoded);
                if unreserved || decoded.is_ascii_control() || matches!(decoded, b'/' | b'\\') {
                    return false;
                }
                // `%252f`: one more decoding somewhere behind us would make a slash of it.
                if decoded == b'%' && hex_pair(bytes, position + 3).is_some() {
                    return false;
                }
                position += 3;
            }
            // Raw bytes that no URI holds. '#' would end the path for some parsers, '\' is a slash for others.
            b'\\' | b'#' | 0..=b' ' | 0x7f.. => return false,
            _ => position += 1,
        }
    }
    true
}

fn hex_pair(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |offset: usize| char::from(*bytes.get(at + offset)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

fn id(segment: &str) -> Result<&str, NotNormal> {
    if is_id(segment) { Ok(segment) } else { Err(NotNormal::Id) }
}

/// Whether a text is a FlowMesh id as Tollgate accepts them: `[A-Za-z0-9_.-]{1,128}`.
#[must_use]
pub fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_route_of_the_flowmesh_api_is_known() {
        for (method, path, expected) in [
            ("GET", "/healthz", Route::Healthz),
            ("POST", "/api/v1/workflows", Route::Submit),
            ("POST", "/api/v1/workflows?x=1", Route::Submit),
            ("GET", "/api/v1/workflows", Route::Other),
            ("POST", "/api/v1/workflows/validate", Route::Other),
            ("GET", "/api/v1/workflows/wfl-1?view=status", Route::ReadWorkflow { workflow_id: "wfl-1" }),
            ("POST", "/api/v1/workflows/wfl-1/cancel", Route::CancelWorkflow { workflow_id: "wfl-1" }),
            ("GET", "/api/v1/workflows/wfl-1/logs/stream", Route::Other),
            ("GET", "/api/v1/tasks", Route::Other),
            ("GET", "/api/v1/tasks/tsk-1", Route::ReadTask { task_id: "tsk-1" }),
            ("POST", "/api/v1/tasks/tsk-1/stop", Route::OfTask { task_id: "tsk-1" }),
            ("GET", "/api/v1/tasks/tsk-1/logs/stream", Route::OfTask { task_id: "tsk-1" }),
            ("POST", "/api/v1/results", Route::PostResult),
            ("POST", "/api/v1/results/tsk-1/files", Route::Artifact { task_id: "tsk-1" }),
            ("GET", "/api/v1/results/tsk-1", Route::Artifact { task_id: "tsk-1" }),
            ("GET", "/api/v1/results/tsk-1/files/a%20b.txt", Route::Artifact { task_id: "tsk-1" }),
            ("POST", "/api/v1/traces/tasks/tsk-1/spans", Route::Artifact { task_id: "tsk-1" }),
            ("GET", "/api/v1/workers", Route::Other),
            ("GET", "/api/v1/workers/wrk-9", Route::OfWorker { worker_id: "wrk-9" }),
            ("POST", "/api/v1/workers/wrk-9/cordon", Route::OfWorker { worker_id: "wrk-9" }),
            ("POST", "/api/v1/nodes/register", Route::Other),
            ("POST", "/api/v1/nodes/n1/workers/w/start", Route::Other),
            ("GET", "/api/v1/ssh/tasks/tsk-1/proxy?token=x", Route::OfTask { task_id: "tsk-1" }),
            ("DELETE", "/api/v1/serve/tasks/tsk-1/v1/models", Route::Serve),
            ("GET", "/api/v1/serve/tasks/tsk-1/", Route::Serve),
            ("GET", "/api/v1/serve/tasks/tsk-1/v1/..a;b/...%20%C3%BC", Route::Serve),
            // Near misses are ordinary requests, which need a token.
            ("HEAD", "/healthz", Route::Other),
            ("GET", "/healthz/", Route::Other),
            ("GET", "/api/v1/serve/tasks/tsk-1", Route::Other),
            ("GET", "/api/v1/serve/other/x", Route::Other),
            ("POST", "/API/v1/workflows", Route::Other),
            ("POST", "/api/v1/workflows/", Route::Other),
            ("GET", "/api/v1/workflows/", Route::Other),
            ("GET", "/api/v1/tasks/", Route::Other),
            ("GET", "/api/v1/results/", Route::Other),
            ("GET", "/", Route::Other),
        ] {
            assert_eq!(classify(method, path), Ok(expected), "{method} {path}");
        }
    }

    #[test]
    fn a_path_that_flowmesh_would_read_differently_is_refused() {
        for path in [
            "/api/v1%2Fworkflows",
            "/api/v1%2fworkflows",
            "/api/v1/%77orkflows",
            "/%61pi/v1/workflows",
            "/api/v1/serve/tasks/t/../../../workflows",
            "/api/v1/serve/tasks/t/%2e%2e/x",
            "/api/v1/serve/tasks/t/..%2fx",
            "/api/v1/serve/tasks/t/..%252fx",
            "/api/v1/serve/tasks/t/%252e%252e/x",
            "/api/v1/serve/tasks/t/..;/x",
            "/api/v1/serve/tasks/t/..;a=b/x",
            "/api/v1/serve/tasks/t/..%3b/x",
            "/api/v1/serve/tasks/t/.;/x",
            "/api/v1/serve/tasks/t/..%20/x",
            "/api/v1/serve/tasks/t/%c0%ae%c0%ae/x",
            "/api/v1/serve/tasks/t/..%c0%af..%c0%afworkflows",
            "/api/v1/serve/tasks/t/%ff",
            "/api/v1%u002fworkflows",
            "/api/v1/serve/tasks/t/%25%32%66",
            "//api/v1/workflows",
            "/api//v1/workflows",
            "/./api/v1/workflows",
            "/api/v1/./workflows",
            "/api/v1/workflows/..",
            "/api/v1/work\\flows",
            "/api/v1/work%5cflows",
            "/api/v1/tasks/a%0ab",
            "/api/v1/tasks/a%00",
            "/api/v1/tasks/a%7f",
            "/api/v1/tasks/a b",
            "/api/v1/tasks/a#b",
            "/api/v1/tasks/a%",
            "/api/v1/tasks/a%2",
            "/api/v1/tasks/ü",
            "api/v1/workflows",
            "http://evil/api/v1/workflows",
            "*",
            "",
        ] {
            assert_eq!(classify("POST", path), Err(NotNormal::Path), "{path:?}");
        }
    }

    #[test]
    fn a_path_of_any_length_is_looked_at_to_its_end_and_taken_for_no_shorter_one() {
        for (path, expected) in [
            ("/api/v1/traces/tasks/tsk-1/spans/7/8/9/10", Ok(Route::OfTask { task_id: "tsk-1" })),
            ("/api/v1/results/tsk-1/files/a/b/c/d/e/f", Ok(Route::Artifact { task_id: "tsk-1" })),
            ("/api/v1/serve/tasks/tsk-1/a/b/c/d/e/f/", Ok(Route::Serve)),
            ("/api/v1/serve/tasks/tsk-1/a/b/c/d/e/../f", Err(NotNormal::Path)),
            ("/api/v1/serve/tasks/tsk-1/a/b/c/d/e//f", Err(NotNormal::Path)),
            ("/api/v1/serve/tasks/tsk-1/a/b/c/d/e/%2e%2e", Err(NotNormal::Path)),
        ] {
            assert_eq!(classify("GET", path), expected, "{path}");
        }
    }

    #[test]
    fn an_id_that_is_none_is_refused() {
        let long = format!("/api/v1/tasks/{}", "a".repeat(129));
        for path in
            ["/api/v1/tasks/a%20b", "/api/v1/tasks/a:b", "/api/v1/workflows/a;b", "/api/v1/workers/%C3%BC", &long]
        {
            assert_eq!(classify("GET", path), Err(NotNormal::Id), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics_and_every_id_is_well_formed(method in "[A-Z]{3,6}", path in "/(api/v1/)?\\PC*") {
            if let Ok(
                Route::ReadTask { task_id: id }
                | Route::OfTask { task_id: id }
                | Route::Artifact { task_id: id }
                | Route::ReadWorkflow { workflow_id: id }
                | Route::OfWorker { worker_id: id },
            ) = classify(&method, &path)
            {
                prop_assert!(is_id(id));
            }
        }

        #[test]
        fn decoding_an_accepted_path_never_changes_what_it_is(segment in "[a-z%0-9A-F./]{0,24}") {
            let path = format!("/api/v1/{segment}");
            if let Ok(route) = classify("POST", &path) {
                let decoded = percent_encoding::percent_decode_str(&path).decode_utf8_lossy().into_owned();
                if let Ok(again) = classify("POST", &decoded) {
                    prop_assert_eq!(route.name(), again.name());
                }
            }
        }
    }
}
