//! Which operation a request means. Like Starlette, it looks at the *decoded* path, and has the same
//! blind spots: an encoded slash separates, dots and empty segments mean nothing, and one trailing
//! line feed goes unnoticed. A path that differs from a known one by its trailing slash is redirected.

use axum::http::Method;
use percent_encoding::percent_decode_str;

/// An operation; its parameters are the `{}` of its pattern, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Health,
    Submit,
    Validate,
    Workflows,
    Workflow,
    CancelWorkflow,
    WorkflowLogs,
    WorkflowLogStream,
    Tasks,
    Task,
    StopTask,
    TaskLogs,
    TaskLogStream,
    PostResult,
    UploadFile,
    Result,
    Bundle,
    File,
    ResultLogs,
    UploadTrace,
    Workers,
    Worker,
    Cordon,
    Uncordon,
    Nodes,
    RegisterNode,
    RegisterWorker,
    CommandWorker,
    SshProxy,
    Serve,
}

/// Method (`*` is any), pattern, operation. In a pattern `{}` is one segment and `{*}` is the rest.
const ROUTES: &[(&str, &str, Op)] = &[
    ("GET", "/healthz", Op::Health),
    ("POST", "/api/v1/workflows", Op::Submit),
    ("GET", "/api/v1/workflows", Op::Workflows),
    ("POST", "/api/v1/workflows/validate", Op::Validate),
    ("GET", "/api/v1/workflows/{}", Op::Workflow),
    ("POST", "/api/v1/workflows/{}/cancel", Op::CancelWorkflow),
    ("GET", "/api/v1/workflows/{}/logs", Op::WorkflowLogs),
    ("GET", "/api/v1/workflows/{}/logs/stream", Op::WorkflowLogStream),
    ("GET", "/api/v1/tasks", Op::Tasks),
    ("GET", "/api/v1/tasks/{}", Op::Task),
    ("POST", "/api/v1/tasks/{}/stop", Op::StopTask),
    ("GET", "/api/v1/tasks/{}/logs", Op::TaskLogs),
    ("GET", "/api/v1/tasks/{}/logs/stream", Op::TaskLogStream),
    ("POST", "/api/v1/results", Op::PostResult),
    ("POST", "/api/v1/results/{}/files", Op::UploadFile),
    ("GET", "/api/v1/results/{}", Op::Result),
    ("GET", "/api/v1/results/{}/bundle", Op::Bundle),
    ("GET", "/api/v1/results/{}/files/{*}", Op::File),
    ("GET", "/api/v1/results/{}/logs", Op::ResultLogs),
    ("POST", "/api/v1/traces/tasks/{}/{}", Op::UploadTrace),
    ("GET", "/api/v1/workers", Op::Workers),
    ("GET", "/api/v1/workers/{}", Op::Worker),
    ("POST", "/api/v1/workers/{}/cordon", Op::Cordon),
    ("POST", "/api/v1/workers/{}/uncordon", Op::Uncordon),
    ("GET", "/api/v1/nodes", Op::Nodes),
    ("POST", "/api/v1/nodes/register", Op::RegisterNode),
    ("POST", "/api/v1/nodes/{}/workers/register", Op::RegisterWorker),
    ("POST", "/api/v1/nodes/{}/workers/{}/start", Op::CommandWorker),
    ("POST", "/api/v1/nodes/{}/workers/{}/stop", Op::CommandWorker),
    ("GET", "/api/v1/ssh/tasks/{}/proxy", Op::SshProxy),
    ("*", "/api/v1/serve/tasks/{}/{*}", Op::Serve),
];

/// What a method and a path come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Operation(Op, Vec<String>),
    /// The path exists, with these methods.
    WrongMethod(Vec<&'static str>),
    /// The path exists with, or without, a trailing slash.
    Redirect(String),
    Nothing,
}

pub(super) fn find(method: &Method, raw_path: &str) -> Found {
    let path = percent_decode_str(raw_path).decode_utf8_lossy();
    let mut allowed = Vec::new();
    for (wanted, pattern, op) in ROUTES {
        if let Some(parameters) = parameters(pattern, &path) {
            if *wanted == "*" || *wanted == method.as_str() {
                return Found::Operation(*op, parameters);
            }
            allowed.push(*wanted);
        }
    }
    if !allowed.is_empty() {
        return Found::WrongMethod(allowed);
    }
    let (other, raw_other) = match path.strip_suffix('/') {
        Some(_) => (path.trim_end_matches('/').to_owned(), raw_path.trim_end_matches('/').to_owned()),
        None => (format!("{path}/"), format!("{raw_path}/")),
    };
    let known = ROUTES.iter().any(|(_, pattern, _)| parameters(pattern, &other).is_some());
    if known { Found::Redirect(raw_other) } else { Found::Nothing }
}

fn parameters(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut parameters = Vec::new();
    let mut rest = path.strip_prefix('/')?;
    let mut segments = pattern.strip_prefix('/')?.split('/').peekable();
    while let Some(wanted) = segments.next() {
        if wanted == "{*}" {
            parameters.push(rest.to_owned());
            return Some(parameters);
        }
        let is_last = segments.peek().is_none();
        let (segment, after) = match rest.split_once('/') {
            Some((segment, after)) if !is_last => (segment, after),
            None if is_last => (rest, ""),
            _ => return None,
        };
        match wanted {
            "{}" if !segment.is_empty() => parameters.push(segment.to_owned()),
            "{}" => return None,
            _ if segment == wanted => {}
            // A regular expression's `$` also matches before a final line feed.
            _ if is_last && segment.strip_suffix('\n') == Some(wanted) => {}
            _ => return None,
        }
        rest = after;
    }
    Some(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(method: &Method, path: &str) -> Option<(Op, Vec<String>)> {
        match find(method, path) {
            Found::Operation(op, parameters) => Some((op, parameters)),
            _ => None,
        }
    }

    #[test]
    fn paths_are_matched_after_decoding() {
        let cases = [
            ("/api/v1/workflows", Op::Submit, vec![]),
            ("/api/v1/work%66lows", Op::Submit, vec![]),
            ("/api%2Fv1%2fworkflows", Op::Submit, vec![]),
            ("/api/v1/workflows%0A", Op::Submit, vec![]),
            ("/api/v1/workflows/validate", Op::Validate, vec![]),
            ("/api/v1/workflows/a/cancel", Op::CancelWorkflow, vec!["a"]),
            ("/api/v1/workflows/a%2Fcancel", Op::CancelWorkflow, vec!["a"]),
            ("/api/v1/workflows/../cancel", Op::CancelWorkflow, vec![".."]),
            ("/api/v1/serve/tasks/t/v1/x", Op::Serve, vec!["t", "v1/x"]),
            ("/api/v1/serve/tasks/t/", Op::Serve, vec!["t", ""]),
        ];
        for (path, op, parameters) in cases {
            let parameters = parameters.into_iter().map(ToOwned::to_owned).collect();
            assert_eq!(operation(&Method::POST, path), Some((op, parameters)), "{path}");
        }
        for path in ["/api/v1//workflows", "//api/v1/workflows", "/api/v1/./workflows", "/"] {
            assert_eq!(find(&Method::POST, path), Found::Nothing, "{path}");
        }
        // Decoded once, not twice.
        assert_eq!(find(&Method::POST, "/api/v1/work%2566lows"), Found::Nothing);
    }

    #[test]
    fn a_wrong_method_and_a_stray_slash_are_told_apart_from_an_unknown_path() {
        assert_eq!(find(&Method::DELETE, "/api/v1/workflows"), Found::WrongMethod(vec!["POST", "GET"]));
        assert_eq!(find(&Method::POST, "/api/v1/workflows/"), Found::Redirect("/api/v1/workflows".to_owned()));
        assert_eq!(find(&Method::POST, "/api/v1/serve/tasks/t"), Found::Redirect("/api/v1/serve/tasks/t/".to_owned()));
        assert_eq!(find(&Method::GET, "/api/v1/users"), Found::Nothing);
    }
}
