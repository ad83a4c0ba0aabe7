//! Check in this process: what answers, without a connection.

use anyhow::{Result, anyhow};
use prometheus_client::registry::Registry;
use tokio_util::task::TaskTracker;
use tollgate::{
    app::Upstreams,
    authz::{Authz, last::LastCheck, response::Stamp},
    config::{Config, Options},
    identity::{Identity, TokenHash},
    ledger::unrecorded::Unrecorded,
    settlement::emails::Awaited,
    supplier::Suppliers,
    telemetry::Metrics,
};

/// An Authz as [`tollgate::app`] makes it without billing, that knows whose `token` is; lum.id is at `lum_id`.
///
/// # Errors
/// When lum.id does not know the token.
pub async fn authz(lum_id: &str, token: &str) -> Result<Authz> {
    let options = Options { lum_id_base_url: Some(lum_id.to_owned()), ..Options::default() };
    let config = Config::parse(options).map_err(|error| anyhow!("{error}"))?;
    let upstreams = Upstreams::new(&config)?;
    let metrics = Metrics::register(&mut Registry::default());
    let authz = Authz {
        identity: Identity::new(&config, upstreams.lum_id, metrics.clone()),
        guard: None,
        suppliers: Suppliers::new(upstreams.flowmesh, &config.limits, metrics.clone()),
        ledger: None,
        events: None,
        awaited: Awaited::default(),
        unrecorded: Unrecorded::default(),
        submission_timeout: config.limits.submission_timeout,
        stamp: Stamp::new(config.org_id, config.forward_authorization),
        requests: TaskTracker::new(),
        last_check: LastCheck::default(),
        metrics,
    };
    let resolved = authz.identity.resolve(token, TokenHash::of(token), "127.0.0.1").await;
    resolved.answer.map_err(|error| anyhow!("lum.id does not know the token: {error}"))?;
    Ok(authz)
}
