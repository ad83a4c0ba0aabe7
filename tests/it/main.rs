//! The real Tollgate process behind a real Envoy, with stand-ins for lum.id, Runmesh and FlowMesh.
//!
//! Each test has everything of its own: processes, ports, ledger. What is waited for is waited for with a bound and by
//! name. [`harness::Edge::finish`] ends each test with what must always hold.

#![allow(clippy::expect_used, reason = "a test that cannot go on says why")]

mod bearers;
mod billing;
mod chaos;
mod check;
mod console;
mod crashes;
mod edge;
mod envoy_config;
mod harness;
mod identity;
mod killpoints;
mod log_service;
mod logs;
mod metrics;
mod moving;
mod mtls;
mod operating;
mod operator;
mod ops;
mod paths;
mod privacy;
mod process;
mod reflection;
mod replicas;
mod restarts;
mod results;
mod serve;
mod shared_ledger;
mod slow_ledger;
mod source;
mod spoofing;
mod streams;
mod suppliers;
mod traces;
mod uploads;
