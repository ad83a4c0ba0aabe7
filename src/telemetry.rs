//! Logs and metric families.
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

pub use logs::{Logs, init_logs};
pub use metrics::{Cache, DecisionLabels, KindLabels, Metrics, OutcomeLabels, zeros};
