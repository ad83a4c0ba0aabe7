//! Check in this process: what answers, without a connection.

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use prometheus_client::registry::Registry;
use prost::Message as _;
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
use tollgate_local::{cast, standin::LumId};

use crate::{message, servers::TOKEN};

/// Log messages as Envoy sends them, with one entry each.
pub const LOGS: [(&str, &[u8]); 3] = [
    ("submission", include_bytes!("../data/log_submission.binpb")),
    ("result", include_bytes!("../data/log_result.binpb")),
    ("read", include_bytes!("../data/log_read.binpb")),
];

/// The Check of a client that polls its workflow, with [`TOKEN`].
///
/// # Errors
/// When what was captured is no Check.
pub fn poll() -> Result<Bytes> {
    let mut request = message::request("")?;
    let http = request.attributes.as_mut().and_then(|all| all.request.as_mut()?.http.as_mut());
    let path = &mut http.context("no HTTP")?.path;
    "/api/v1/workflows/wfl-00000000-0000-4000-8000-000000000000?view=status".clone_into(path);
    Ok(request.encode_to_vec().into())
}

/// An Authz as [`tollgate::app`] makes it without billing, that knows whose [`TOKEN`] is, and its lum.id.
///
/// # Errors
/// When that does not start, or does not know the token.
pub async fn authz() -> Result<(Authz, LumId)> {
    let lum_id = cast::lum_id("127.0.0.1:0").await.context("cannot start the lum.id stand-in")?;
    lum_id.user(TOKEN, "user-alice", Some("alice@example.com"), &["flowmesh:*"]);
    let options = Options { lum_id_base_url: Some(lum_id.url()), ..Options::default() };
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
    let resolved = authz.identity.resolve(TOKEN, TokenHash::of(TOKEN), "127.0.0.1").await;
    resolved.answer.map_err(|error| anyhow!("lum.id does not know the token: {error}"))?;
    Ok((authz, lum_id))
}
