//! `tollgate-local`: Tollgate, Envoy and stand-ins for everything else, on one machine.
//!
//! `run` keeps them up and tells what happens; `demo` plays through the whole scenario by itself; `chaos` lets everything
//! fail under load. `standin` is one stand-in as a process of its own, and `probe` its health check.

mod account;
mod alone;
mod demo;
mod intro;
mod run;
mod soak;
mod stop;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use tollgate_local::stack::{Envoy, Ports};

/// Tollgate on one machine, with stand-ins for lum.id, Runmesh and FlowMesh.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything, say how to use it, and tell what happens until Ctrl-C
    Run(RunOptions),
    /// Play the whole scenario, on free ports or with a composed stack; the exit code says whether all went as expected
    Demo(demo::DemoOptions),
    /// Let everything fail while many people are at work, and compare what was billed with what was run
    Chaos(soak::ChaosOptions),
    /// Serve one stand-in, as in a container, and tell what happens until it is asked to stop
    #[command(name = "standin")]
    StandIn(alone::StandInOptions),
    /// Ask a URL: exit code 0 when it answers well. A health check for images without a shell
    Probe(alone::ProbeOptions),
}

/// The programs to run.
#[derive(Args)]
struct Binaries {
    /// The `tollgate` program [default: the one beside this program]
    #[arg(long, env = "TOLLGATE_BIN", value_name = "PATH")]
    tollgate_bin: Option<PathBuf>,
    /// The `envoy` program [default: what `make envoy` fetches]
    #[arg(long, env = "ENVOY_BIN", value_name = "PATH")]
    envoy_bin: Option<PathBuf>,
}

#[derive(Args)]
struct RunOptions {
    #[command(flatten)]
    binaries: Binaries,
    /// Where clients go
    #[arg(long, env = "EDGE_PORT", value_name = "PORT", default_value_t = 8080)]
    edge_port: u16,
    /// Tollgate's health and metrics
    #[arg(long, env = "TOLLGATE_ADMIN_PORT", value_name = "PORT", default_value_t = 9090)]
    tollgate_admin_port: u16,
    /// Envoy's own pages
    #[arg(long, env = "ENVOY_ADMIN_PORT", value_name = "PORT", default_value_t = 9901)]
    envoy_admin_port: u16,
    /// The stand-in for lum.id
    #[arg(long, env = "LUM_ID_PORT", value_name = "PORT", default_value_t = 7001)]
    lum_id_port: u16,
    /// The stand-in for Runmesh
    #[arg(long, env = "RUNMESH_PORT", value_name = "PORT", default_value_t = 7002)]
    runmesh_port: u16,
    /// The stand-in for FlowMesh
    #[arg(long, env = "FLOWMESH_PORT", value_name = "PORT", default_value_t = 8000)]
    flowmesh_port: u16,
    /// A folder for ledger, socket and bootstrap, which is kept [default: a temporary one, removed at the end]
    #[arg(long, env = "STACK_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl RunOptions {
    fn ports(&self) -> Ports {
        Ports {
            edge: self.edge_port,
            tollgate_admin: self.tollgate_admin_port,
            envoy_admin: self.envoy_admin_port,
            lum_id: self.lum_id_port,
            runmesh: self.runmesh_port,
            flowmesh: self.flowmesh_port,
        }
    }
}

impl Binaries {
    fn tollgate(&self) -> Result<PathBuf> {
        let binary = match &self.tollgate_bin {
            Some(binary) => binary.clone(),
            None => {
                std::env::current_exe().context("this program does not know where it is")?.with_file_name("tollgate")
            }
        };
        if !binary.is_file() {
            bail!("there is no tollgate at {}: build it, or name it with TOLLGATE_BIN=…", binary.display());
        }
        Ok(binary)
    }

    fn envoy(&self) -> Result<PathBuf> {
        match &self.envoy_bin {
            Some(binary) if binary.is_file() => Ok(binary.clone()),
            Some(binary) => bail!("there is no envoy at {}", binary.display()),
            None => Envoy::fetched(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")), None),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(options) => run::run(options).await,
        Command::Demo(options) => demo::demo(&options).await,
        Command::Chaos(options) => soak::chaos(options).await,
        Command::StandIn(options) => alone::standin(options).await,
        Command::Probe(options) => alone::probe(options).await,
    };
    result.unwrap_or_else(|error| {
        // There is nobody left to tell when this fails.
        let _ = writeln!(std::io::stderr(), "{error:#}");
        ExitCode::FAILURE
    })
}
