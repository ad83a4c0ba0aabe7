//! `tollgate-local standin` and `probe`: one stand-in as a process of its own, and how its supervisor asks after it.

use std::{
    io::{self, ErrorKind},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use tollgate_local::{
    cast::{self, BRIDGE_SECRET},
    control::{Control, StandIn},
    stack::http_client,
};

use crate::{
    account::{Account, Printer, Source},
    stop::Stop,
};

/// Shorter than a health check usually may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Which one.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// The identity provider
    LumId,
    /// Billing, below the path /Runmesh
    Runmesh,
    /// The upstream, with two workers
    #[value(name = "flowmesh")]
    FlowMesh,
}

#[derive(Args)]
pub struct StandInOptions {
    #[arg(value_enum)]
    kind: Kind,
    /// Where it serves, as ADDRESS:PORT [default: 127.0.0.1 and 7001, 7002 or 8000]
    #[arg(long, env = "STANDIN_LISTEN", value_name = "ADDR")]
    listen: Option<String>,
    /// Where it is scripted and asked what it saw, and answers GET /healthz. Whoever reaches this decides what is
    /// billed to whom
    #[arg(long, env = "STANDIN_CONTROL", value_name = "ADDR", default_value = "127.0.0.1:7900")]
    control: String,
    /// What Tollgate must know to be heard by Runmesh
    #[arg(long, env = "FLOWMESH_BRIDGE_SECRET", value_name = "SECRET", default_value = BRIDGE_SECRET, hide_env_values = true)]
    bridge_secret: String,
}

#[derive(Args)]
pub struct ProbeOptions {
    /// For example `http://127.0.0.1:7900/healthz`
    url: String,
}

/// Serves until asked to stop, and tells what happens.
pub async fn standin(options: StandInOptions) -> Result<ExitCode> {
    // Before anything is served: a signal right after the first line is a stop and not a kill. The first process of a
    // container has no default for it, either.
    let mut stop = Stop::listen()?;
    let printer = Printer::new();
    let mut account = Account::new();
    let (source, standin) = start(&options).await?;
    account.follow_one(&standin);
    let control = Control::start(&options.control, standin.clone()).await;
    let control = control.map_err(|error| taken(&options.control, "its control", "STANDIN_CONTROL", &error))?;
    printer.line(source, format_args!("serving on {}, control on {}", standin.address(), control.address()));
    loop {
        tokio::select! {
            // It serves on when nobody reads this any more.
            line = account.next() => if let Some((source, line)) = line {
                printer.line(source, line);
            },
            () = stop.asked() => break,
        }
    }
    control.stop().await;
    standin.stop().await;
    for (source, line) in account.waiting() {
        printer.line(source, line);
    }
    printer.line(source, "stopped");
    Ok(ExitCode::SUCCESS)
}

async fn start(options: &StandInOptions) -> Result<(Source, StandIn)> {
    let (source, default) = match options.kind {
        Kind::LumId => (Source::LumId, "127.0.0.1:7001"),
        Kind::Runmesh => (Source::Runmesh, "127.0.0.1:7002"),
        Kind::FlowMesh => (Source::FlowMesh, "127.0.0.1:8000"),
    };
    let listen = options.listen.as_deref().unwrap_or(default);
    let standin = match options.kind {
        Kind::LumId => cast::lum_id(listen).await.map(StandIn::LumId),
        Kind::Runmesh => cast::runmesh(listen, &options.bridge_secret).await.map(StandIn::Runmesh),
        Kind::FlowMesh => cast::flowmesh(listen).await.map(StandIn::FlowMesh),
    };
    Ok((source, standin.map_err(|error| taken(listen, source.name(), "STANDIN_LISTEN", &error))?))
}

/// One line on an address that cannot be had.
fn taken(listen: &str, owner: &str, variable: &str, error: &io::Error) -> anyhow::Error {
    let state = match error.kind() {
        ErrorKind::AddrInUse => "taken".to_owned(),
        ErrorKind::PermissionDenied => "reserved for root".to_owned(),
        _ => format!("out of reach ({error})"),
    };
    anyhow!("{listen} ({owner}) is {state}: choose another with {variable}=…")
}

/// Whether `url` answers well.
pub async fn probe(options: ProbeOptions) -> Result<ExitCode> {
    let url = options.url;
    let answer = http_client()?.get(&url).timeout(PROBE_LIMIT).send().await;
    let status = answer.with_context(|| format!("{url} does not answer"))?.status();
    if !status.is_success() {
        bail!("{url} answers {status}");
    }
    Ok(ExitCode::SUCCESS)
}
