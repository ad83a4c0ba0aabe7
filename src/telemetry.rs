//! Logs, metric families and traces.
//!
//! Never logged: tokens (only the first 8 hex digits of their SHA-256), e-mail addresses, secrets, request or response
//! bodies, query strings. Identifiers stand both in the message, for people, and in a field, for machines. An error is
//! logged once, where it is handled.
//!
//! Metrics live in one registry that is made at start and passed down. Labels are enums or bounded names.

mod logs;
mod metrics;
pub mod names;
mod process;
mod sparing;
pub mod traces;

pub use logs::{FilterInForce, Logs, init_logs};
pub use metrics::{Cache, DecisionLabels, KindLabels, Metrics, OutcomeLabels, zeros};
pub use sparing::{Sparing, Unsaid};
pub use traces::{Traces, init_traces};
