//! Tollgate and Envoy as child processes, brought up the same way by the local stack, the demo and the
//! integration tests.
//!
//! Every wait is bounded, and one that fails says what it waited for and shows the last lines of the
//! process concerned. A process ends at the latest with its handle. Children are leaders of process
//! groups of their own, so that Ctrl-C in a terminal reaches only who started them, who can then stop
//! them in order.

mod authority;
mod envoy;
mod network;
mod ports;
mod postgres;
mod process;
mod relay;
mod tollgate;
mod wait;
mod whole;

use std::time::Duration;

use anyhow::{Context as _, Result};

pub use crate::cast::{ACME, ALICE, BOB, PAUPER, PEOPLE, Person, WORKERS};
pub use authority::{Authority, Identity};
pub use envoy::Envoy;
pub use network::{Cut, HUB, Node, lay_out, leave_for_hub};
pub use ports::{Port, check_ports, free_port};
pub use postgres::{Postgres, Sync};
pub use process::{Output, Process};
pub use relay::{Meddled, Meddling, Relay};
pub use tollgate::{Tollgate, envoy_config, metric};
pub use wait::{POLL, wait_for};
pub use whole::{Ports, Stack, StackOptions};

/// How long a process may take to be ready. Generous: a busy machine is no error.
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// An HTTP client for this machine: no TLS, no proxy, no redirects, no idle connections, answers within 20 s.
///
/// # Errors
/// When the client cannot be built.
pub fn http_client() -> Result<reqwest::Client> {
    // Fails when there is one already, which is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        // Plain HTTP needs no CA certificates, and an image need not have any.
        .tls_certs_only([])
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(20))
        .build()
        .context("cannot make an HTTP client")
}
