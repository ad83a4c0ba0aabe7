//! Brings up the processes of a round.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use futures_util::future::try_join_all;

use super::{
    Round,
    disk::Disk,
    ledger::Place,
    record::Record,
    shared::Shared,
    world::{free_port, note_meddling, watched},
};
use crate::{
    cast::{self, BRIDGE_SECRET},
    stack::{Envoy, HUB, Node, Ports, Postgres, Relay, Stack, StackOptions, Tollgate, envoy_config, lay_out},
    standin::{FlowMesh, LumId, Runmesh},
};

/// Where the log services share their endpoints with Check, in the bootstrap.
const DIRECT: &str = "load_assignment: *tollgate";
const LOCALHOST: &str = "127.0.0.1";

/// Settings of Tollgate.
type Settings = Vec<(&'static str, String)>;

/// Everything that runs.
pub(super) struct Up {
    pub lum_id: LumId,
    pub runmesh: Runmesh,
    pub flowmesh: FlowMesh,
    pub tollgates: Vec<Tollgate>,
    pub envoy: Envoy,
    pub relays: Vec<Relay>,
    pub disk: Option<Disk>,
    pub shared: Option<Shared>,
    pub ledger: Place,
}

/// One Tollgate with a ledger of SQLite's.
pub(super) async fn one(
    round: &Round,
    dir: &Path,
    mut settings: Settings,
    relayed: bool,
    record: &Arc<Record>,
    random: &mut fastrand::Rng,
) -> Result<Up> {
    let disk = if round.disk {
        let mounted = Disk::mount(&dir.join("disk"));
        mounted.inspect_err(|error| record.count("no disk to fill", format_args!("{error:#}"))).ok()
    } else {
        None
    };
    std::fs::create_dir_all(dir.join("disk"))?;
    let ledger = Place::Sqlite(dir.join("disk/ledger.db"));
    settings.push(("TOLLGATE_LEDGER", ledger.setting()));
    let mut port = || free_port(random);
    let ports = Ports {
        edge: port()?,
        tollgate_admin: port()?,
        envoy_admin: 0,
        lum_id: port()?,
        runmesh: port()?,
        flowmesh: port()?,
    };
    let stack = Stack::start(StackOptions {
        tollgate: round.tollgate.clone(),
        envoy: round.envoy.clone(),
        ports,
        dir: dir.to_owned(),
        settings,
        tollgate_output: Some(watched(&dir.join("tollgate.log"), None, record.clone())?),
        envoy_output: Some(watched(&dir.join("envoy.log"), None, record.clone())?),
    });
    let Stack { lum_id, runmesh, flowmesh, tollgate, mut envoy, .. } = stack.await?;
    let tollgates = vec![tollgate];
    let mut relays = Vec::new();
    if relayed {
        envoy.kill_hard().await?;
        let sockets;
        (relays, sockets) = relay_all(&tollgates, dir, record, random)?;
        let upstream = flowmesh.url().trim_start_matches("http://").to_owned();
        let listen = format!("{LOCALHOST}:{}", ports.edge);
        let bootstrap = tollgates[0].envoy_config(&listen, "127.0.0.1:0", &upstream).await?;
        envoy = start_envoy(round, dir, &relayed_by(&bootstrap, &sockets)?, record).await?;
    }
    Ok(Up { lum_id, runmesh, flowmesh, tollgates, envoy, relays, disk, shared: None, ledger })
}

/// Several that share a PostgreSQL, each on a machine of its own where that is allowed.
pub(super) async fn several(
    round: &Round,
    dir: &Path,
    mut settings: Settings,
    relayed: bool,
    record: &Arc<Record>,
    random: &mut fastrand::Rng,
) -> Result<Up> {
    let (service, database) = (free_port(random)?, free_port(random)?);
    let laid_out = match &round.uncut {
        None => lay_out(round.replicas, service, database),
        Some(reason) => Err(anyhow!("{reason}")),
    };
    let laid_out = laid_out.inspect_err(|error| record.count("no network to cut", format_args!("{error:#}")));
    let nodes = laid_out.unwrap_or_default();
    let host = if nodes.is_empty() { LOCALHOST } else { HUB };
    let mut listen = || Ok::<_, anyhow::Error>(format!("{host}:{}", free_port(random)?));
    let lum_id = cast::lum_id(&listen()?).await.context("cannot start the lum.id stand-in")?;
    let runmesh = cast::runmesh(&listen()?, BRIDGE_SECRET).await.context("cannot start the Runmesh stand-in")?;
    let flowmesh = cast::flowmesh(&listen()?).await.context("cannot start the FlowMesh stand-in")?;
    let edge = listen()?;
    let postgres = {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || Postgres::start_new(&dir, host, database)).await??
    };
    let ledger = Place::Postgres(postgres.url().to_owned());
    settings.extend([
        ("LUM_ID_BASE_URL", lum_id.url()),
        ("RUNMESH_BILLING_BASE_URL", runmesh.billing_url()),
        ("FLOWMESH_BRIDGE_SECRET", BRIDGE_SECRET.to_owned()),
        ("LUMID_BALANCE_GUARD", "on".to_owned()),
        ("FLOWMESH_BASE_URL", flowmesh.url()),
        ("TOLLGATE_LEDGER", ledger.setting()),
        ("TOLLGATE_INSECURE_LISTEN", "on".to_owned()),
        // In proportion to outages that are shorter than those of life.
        ("TOLLGATE_POSTGRES_CONNECT_TIMEOUT_SECS", "1".to_owned()),
        ("TOLLGATE_POSTGRES_STATEMENT_TIMEOUT_SECS", "3".to_owned()),
    ]);
    let mut starting = Vec::new();
    for number in 0..round.replicas {
        let node = nodes.get(usize::from(number));
        let mut settings = settings.clone();
        let address = node.map_or(LOCALHOST, Node::address);
        let grpc = if node.is_some() { service } else { free_port(random)? };
        let state = dir.join(format!("replica-{number}"));
        std::fs::create_dir_all(&state)?;
        settings.extend([
            ("TOLLGATE_REPLICA", format!("replica-{number}")),
            ("TOLLGATE_STATE_DIR", state.to_str().context("a folder is no text")?.to_owned()),
            ("TOLLGATE_GRPC_LISTEN", format!("{address}:{grpc}")),
            ("TOLLGATE_ADMIN_LISTEN", format!("{address}:{}", free_port(random)?)),
        ]);
        let password = postgres.url().split([':', '@']).nth(2).map(ToOwned::to_owned);
        let output = watched(&dir.join(format!("tollgate-{number}.log")), password, record.clone())?;
        starting.push(async move { Tollgate::start_on(node, &round.tollgate, &settings, Some(output)).await });
    }
    let tollgates = try_join_all(starting).await?;
    let upstream = flowmesh.url().trim_start_matches("http://").to_owned();
    let addresses: Vec<&str> = tollgates.iter().map(Tollgate::grpc).collect();
    let mut bootstrap = envoy_config(&round.tollgate, &edge, "127.0.0.1:0", &upstream, &addresses).await?;
    let mut relays = Vec::new();
    if relayed {
        let sockets;
        (relays, sockets) = relay_all(&tollgates, dir, record, random)?;
        bootstrap = relayed_by(&bootstrap, &sockets)?;
    }
    let envoy = start_envoy(round, dir, &bootstrap, record).await?;
    let shared = Some(Shared { postgres: Arc::new(postgres), nodes });
    Ok(Up { lum_id, runmesh, flowmesh, tollgates, envoy, relays, disk: None, shared, ledger })
}

async fn start_envoy(round: &Round, dir: &Path, bootstrap: &str, record: &Arc<Record>) -> Result<Envoy> {
    let output = watched(&dir.join("envoy.log"), None, record.clone())?;
    let envoy = Envoy::start(&round.envoy, bootstrap, dir, 2, Some(output)).await?;
    envoy.wait_for_tollgate(Duration::from_secs(15)).await?;
    Ok(envoy)
}

/// A relay in front of each, and its socket.
fn relay_all(
    tollgates: &[Tollgate],
    dir: &Path,
    record: &Arc<Record>,
    random: &mut fastrand::Rng,
) -> Result<(Vec<Relay>, Vec<PathBuf>)> {
    let dir = dir.canonicalize()?;
    let mut relays = Vec::new();
    let mut sockets = Vec::new();
    for (number, tollgate) in tollgates.iter().enumerate() {
        let socket = dir.join(format!("relay-{number}.sock"));
        let (relay, meddled) = Relay::start(&socket, tollgate.grpc(), random.fork())?;
        tokio::spawn(note_meddling(meddled, record.clone()));
        relays.push(relay);
        sockets.push(socket);
    }
    Ok((relays, sockets))
}

/// The bootstrap with endpoints of the log's own in place of those that it shares.
fn relayed_by(bootstrap: &str, sockets: &[PathBuf]) -> Result<String> {
    ensure!(bootstrap.contains(DIRECT), "the bootstrap has no {DIRECT}");
    let endpoint =
        |socket: &PathBuf| format!("{{endpoint: {{address: {{pipe: {{path: \"{}\"}}}}}}}}", socket.display());
    let endpoints: Vec<String> = sockets.iter().map(endpoint).collect();
    let other =
        format!("load_assignment: {{cluster_name: relay, endpoints: [{{lb_endpoints: [{}]}}]}}", endpoints.join(", "));
    Ok(bootstrap.replace(DIRECT, &other))
}
