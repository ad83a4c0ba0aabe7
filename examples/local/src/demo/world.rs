//! What the scenario plays with: a stack of processes that is started for it, or a composed one that is there already.
//!
//! The stand-ins are controlled in one way, through their control listeners; Tollgate and Envoy are processes or
//! containers. Envoy's own pages are not used: in a container nobody outside reaches them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use tollgate_local::{
    control::{Control, FlowMesh, LumId, Runmesh, StandIn},
    stack::{self, Ports, Stack, StackOptions, free_port, metric},
};

use super::compose::Container;
use crate::Binaries;

/// The services that are Tollgates: the first one is always there, the others with the profile `replicas`.
const TOLLGATES: [&str; 3] = ["tollgate", "tollgate-2", "tollgate-3"];

/// The ports that the services of a composed stack have inside.
const EDGE: u16 = 8080;
const ADMIN: u16 = 9090;
const CONTROL: u16 = 7900;

/// Everything the scenario needs.
pub struct World {
    pub lum_id: LumId,
    pub runmesh: Runmesh,
    pub flowmesh: FlowMesh,
    pub tollgate: Tollgate,
    pub envoy: Envoy,
    /// How long a charge may take without outages in between.
    pub charge_limit: Duration,
    /// How long the edge may take to let requests through again.
    pub recovery_limit: Duration,
    /// Of the stand-ins that live in this process, and keep them alive.
    _controls: Vec<Control>,
    /// Their ledger, socket and bootstrap.
    _folder: Option<tempfile::TempDir>,
}

impl World {
    /// Starts everything on free ports.
    pub async fn local(binaries: &Binaries, http: &reqwest::Client) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tollgate-").tempdir().context("no temporary folder")?;
        let options = StackOptions {
            tollgate: binaries.tollgate()?,
            envoy: binaries.envoy()?,
            // Envoy is started anew on the way, and must come back where it was.
            ports: Ports { edge: free_port()?, ..Ports::default() },
            dir: folder.path().to_owned(),
            // What the sweep finds by itself it finds within seconds rather than minutes.
            settings: vec![("TOLLGATE_RECONCILE_GRACE_SECS", "1".to_owned())],
            tollgate_output: None,
            envoy_output: None,
        };
        let Stack { lum_id, runmesh, flowmesh, tollgate, envoy, .. } = Stack::start(options).await?;
        let control = async |standin| Control::start("127.0.0.1:0", standin).await.context("cannot control a stand-in");
        let controls = vec![
            control(StandIn::LumId(lum_id)).await?,
            control(StandIn::Runmesh(runmesh)).await?,
            control(StandIn::FlowMesh(flowmesh)).await?,
        ];
        Ok(Self {
            lum_id: LumId::new(http, &controls[0].url()),
            runmesh: Runmesh::new(http, &controls[1].url()),
            flowmesh: FlowMesh::new(http, &controls[2].url()),
            tollgate: Tollgate::Process(Box::new(tollgate)),
            envoy: Envoy::Process(Box::new(envoy)),
            // Twice the interval of the first sweep.
            charge_limit: Duration::from_secs(15),
            recovery_limit: Duration::from_secs(15),
            _controls: controls,
            _folder: Some(folder),
        })
    }

    /// The stack of a compose project. What of it was stopped is started.
    pub async fn composed(project: &str, http: &reqwest::Client) -> Result<Self> {
        let control = async |service| {
            let container = Container::find(project, service).await?;
            container.start().await?;
            container.inner(CONTROL).await
        };
        let lum_id = LumId::new(http, &control("lum-id").await?);
        let runmesh = Runmesh::new(http, &control("runmesh").await?);
        let flowmesh = FlowMesh::new(http, &control("flowmesh").await?);
        let tollgate = Tollgate::composed(project, http).await?;
        let container = Container::find(project, "envoy").await?;
        container.start().await?;
        let edge = container.published(EDGE).await?;
        Ok(Self {
            lum_id,
            runmesh,
            flowmesh,
            tollgate,
            envoy: Envoy::Container { container, edge },
            // Twice the grace for log entries in production.
            charge_limit: Duration::from_mins(1),
            recovery_limit: Duration::from_mins(1),
            _controls: Vec::new(),
            _folder: None,
        })
    }
}

/// Tollgate, as a process, a container, or several that share a ledger and go down and come back together.
pub enum Tollgate {
    Process(Box<stack::Tollgate>),
    Containers { first: Replica, others: Vec<Replica>, http: reqwest::Client },
}

/// One of the containers, and where its admin page is.
pub struct Replica {
    container: Container,
    admin: String,
}

impl Replica {
    async fn start(container: Container) -> Result<Self> {
        container.start().await?;
        let admin = container.published(ADMIN).await?;
        Ok(Self { container, admin })
    }
}

impl Tollgate {
    /// Those that a compose project has.
    async fn composed(project: &str, http: &reqwest::Client) -> Result<Self> {
        let [first, others @ ..] = TOLLGATES;
        let first = Replica::start(Container::find(project, first).await?).await?;
        let mut more = Vec::new();
        for service in others {
            if let Some(container) = Container::find_any(project, service).await? {
                more.push(Replica::start(container).await?);
            }
        }
        Ok(Self::Containers { first, others: more, http: http.clone() })
    }

    /// The sum over all labels of a metric; `None` when there is none or no answer. What the ledger says, they all say.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        match self {
            Self::Process(process) => process.metric(name).await,
            Self::Containers { first, http, .. } => metric(http, &first.admin, name).await,
        }
    }

    /// The same of each of them, which do not agree on what each has done by itself.
    pub async fn metric_of_each(&self, name: &str) -> Option<Vec<f64>> {
        match self {
            Self::Process(process) => Some(vec![process.metric(name).await?]),
            Self::Containers { first, others, http } => {
                let mut all = Vec::new();
                for replica in std::iter::once(first).chain(others) {
                    all.push(metric(http, &replica.admin, name).await?);
                }
                Some(all)
            }
        }
    }

    /// Whether the log, of whichever of them, has a line with all of these words.
    pub async fn has_said(&self, words: &[&str]) -> Result<bool> {
        match self {
            Self::Process(process) => {
                Ok(process.lines().iter().any(|line| words.iter().all(|word| line.contains(word))))
            }
            Self::Containers { first, others, .. } => {
                for replica in std::iter::once(first).chain(others) {
                    if replica.container.has_said(words).await? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// SIGKILL, and nobody starts it again.
    pub async fn kill_hard(&self) -> Result<()> {
        match self {
            Self::Process(process) => process.kill_hard().await.map(drop),
            Self::Containers { first, others, .. } => {
                let all = std::iter::once(first).chain(others).map(|replica| replica.container.kill_hard());
                try_join_all(all).await.map(drop)
            }
        }
    }

    /// An orderly stop; its exit code, or the worst.
    pub async fn terminate(&self) -> Result<i64> {
        match self {
            Self::Process(process) => Ok(process.terminate().await?.code().unwrap_or(-1).into()),
            Self::Containers { first, others, .. } => {
                let all = std::iter::once(first).chain(others).map(|replica| replica.container.stop());
                let codes = try_join_all(all).await?;
                Ok(codes.into_iter().find(|code| *code != 0).unwrap_or(0))
            }
        }
    }

    /// The first container, when it is one.
    pub fn container(&self) -> Option<&Container> {
        match self {
            Self::Process(_) => None,
            Self::Containers { first, .. } => Some(&first.container),
        }
    }

    /// Starts it again, unless a container runs already, and waits until it is ready.
    pub async fn restart(&mut self) -> Result<()> {
        match self {
            Self::Process(process) => process.restart().await,
            Self::Containers { first, others, .. } => {
                for Replica { container, admin } in std::iter::once(first).chain(others) {
                    container.start().await?;
                    *admin = container.published(ADMIN).await?;
                }
                Ok(())
            }
        }
    }
}

/// Envoy, as a process or a container.
pub enum Envoy {
    Process(Box<stack::Envoy>),
    Container { container: Container, edge: String },
}

impl Envoy {
    /// `http://HOST:PORT` where clients go.
    pub fn edge_url(&self) -> &str {
        match self {
            Self::Process(process) => process.edge_url(),
            Self::Container { edge, .. } => edge,
        }
    }

    /// SIGKILL, and nobody starts it again.
    pub async fn kill_hard(&self) -> Result<()> {
        match self {
            Self::Process(process) => process.kill_hard().await.map(drop),
            Self::Container { container, .. } => container.kill_hard().await,
        }
    }

    /// An orderly stop.
    pub async fn stop(&self) -> Result<()> {
        match self {
            Self::Process(process) => process.stop().await.map(drop),
            Self::Container { container, .. } => container.stop().await.map(drop),
        }
    }

    /// Starts it again, and waits until it is ready.
    pub async fn restart(&mut self) -> Result<()> {
        match self {
            Self::Process(process) => process.restart().await,
            Self::Container { container, edge } => {
                container.start().await?;
                *edge = container.published(EDGE).await?;
                Ok(())
            }
        }
    }
}

impl World {
    /// Envoy goes first and Tollgate, which then commits what it has and posts what is due, last.
    pub async fn stop(&self) -> Result<()> {
        self.envoy.stop().await?;
        match self.tollgate.terminate().await? {
            0 => Ok(()),
            code => bail!("Tollgate did not stop well, exit code {code}"),
        }
    }
}
