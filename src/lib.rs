//! Tollgate: lum.id identity, Runmesh balance preflight, supplier attribution and billing for an unmodified FlowMesh,
//! beside Envoy.
//!
//! ```text
//! client ─► Envoy ──Check──► authz ─► identity ─► guard ─► supplier ─► headers ─► Envoy ─► FlowMesh
//!                              └─ on a submission: a ledger row, durable before the OK
//! Envoy ──StreamAccessLogs──► access_log ─► event ─► ledger ─► settlement ─► charge ─► poster ─► Runmesh
//! ```
//!
//! Both ways share the ledger and nothing else. The modules below stand in the order of that flow.

pub mod cli;
pub mod config;

pub mod app;
pub mod lifecycle;
pub mod listen;
pub mod reflection;
pub mod secrets;
pub mod telemetry;
pub mod tls;

pub mod principal;
pub mod route;
pub mod wire;

pub mod authz;
pub mod flight;
pub mod guard;
pub mod identity;
pub mod supplier;

pub mod access_log;
pub mod circuit;
pub mod drive;
pub mod ledger;
pub mod poster;
pub mod retention;
pub mod settlement;

pub mod admin;
pub mod envoy_config;
pub mod upstream;
