//! Names of the dynamic metadata that Check attaches to a request and its log entry brings back.

/// Where Envoy puts it: the ext_authz filter's own namespace.
pub const NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// lum.id's `sub` of the caller.
pub const PRINCIPAL_ID: &str = "principal_id";
/// The configured org.
pub const ORG_ID: &str = "org_id";
/// Namespace of the worker concerned, when known.
pub const SUPPLIER_ID: &str = "supplier_id";
/// Of a submission.
pub const SUBMISSION_ID: &str = "submission_id";
/// Of a result post: its path does not name it.
pub const TASK_ID: &str = "task_id";
/// [`RECORD_YES`] on requests whose log entry is wanted; the bootstrap's filter sends only those.
pub const RECORD: &str = "record";
pub const RECORD_YES: &str = "yes";
