//! The subcommands.

mod check_config;
mod ledger;
mod purge;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::config::{Config, Options, Origins};
use crate::envoy_config::{self, Addresses, TlsFlags};
use crate::telemetry;
use crate::upstream::Http;

/// lum.id identity, Runmesh balance preflight, supplier attribution and billing for an unmodified FlowMesh, beside Envoy.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer Envoy's Checks, take its access log, bill (the default)
    Serve,
    /// Print the effective values with the origin of each, secrets masked, and check whether `serve` could start
    CheckConfig(check_config::Flags),
    /// Print a complete Envoy bootstrap
    EnvoyConfig(Box<EnvoyConfig>),
    /// Ask a running Tollgate whether it is ready; the exit code tells
    Healthcheck,
    /// Have a running Tollgate forget what lum.id said of tokens, so that a revocation is immediate
    Purge(purge::Flags),
    /// Look after the ledger: what is there, what waits for you. Safe while `serve` runs
    #[command(subcommand)]
    Ledger(ledger::Command),
}

#[derive(Debug, clap::Args)]
struct EnvoyConfig {
    /// Where clients reach Envoy, host:port
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080")]
    listen: String,
    /// Envoy's own admin page, host:port; it can stop Envoy, so keep it on loopback
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    admin: String,
    /// FlowMesh, host:port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    upstream: String,
    /// Tollgate's gRPC listener, host:port or `unix:/path`; once for each Tollgate
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001")]
    tollgate: Vec<String>,
    #[command(flatten)]
    tls: TlsFlags,
    /// Write it to this file, whole or not at all, instead of to standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Cli {
    /// Reads this process's command line, and where each setting came from. Ends the process where that is the answer.
    #[must_use]
    pub fn read() -> Self {
        let matches = Self::command().get_matches();
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        cli.options.origins = Origins::read(&matches);
        cli
    }
}

/// Runs a command.
///
/// # Errors
/// What the person at the terminal has to know, as one line.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command.unwrap_or(Command::Serve) {
        Command::EnvoyConfig(flags) => {
            let EnvoyConfig { listen, admin, upstream, tollgate, tls, output } = *flags;
            let addresses = Addresses::parse(&listen, &admin, &upstream, &tollgate, tls)?;
            let bootstrap = envoy_config::render(&addresses)?;
            match output {
                None => print!("{bootstrap}"),
                Some(path) => replace(&path, &bootstrap).with_context(|| format!("--output {}", path.display()))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::CheckConfig(flags) => block_on(check_config::run(&flags, config(cli.options)?)),
        Command::Healthcheck => block_on(healthcheck(config(cli.options)?)),
        Command::Purge(flags) => {
            let config = config(cli.options)?;
            block_on(async move { purge::run(&flags, &config).await })
        }
        Command::Ledger(command) => {
            // Nothing but the ledger: no other secret, no address.
            let store = Config::store(&cli.options)?;
            block_on(async move { ledger::run(command, &store).await })
        }
        Command::Serve => block_on(serve(config(cli.options)?)),
    }
}

/// Writes a file that nobody sees half of: beside its place, and then into it.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

fn config(options: Options) -> anyhow::Result<Config> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut config = Config::parse(options)?.warn_of_unknown(names).heed_otel(|name| std::env::var(name).ok());
    config.no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Ok(config)
}

fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(work);
    // Not its drop, which would wait for a name look-up that hangs.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let logs = telemetry::init_logs(&config).context("cannot start logging")?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let traces = config.otlp_endpoint.as_ref().map(telemetry::init_traces).transpose();
    let traces = traces.context("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    // From here on a SIGHUP ends nothing, also while the ledger is still being opened, which a migration may make long. What it
    // asks for is being read just now.
    let _hang_up = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    let app = App::build(config).await?;
    tracing::info!(
        grpc = app.grpc_address(),
        admin = %app.admin_address(),
        version = env!("CARGO_PKG_VERSION"),
        "serving Envoy on {}, health and metrics on http://{}",
        app.grpc_address(),
        app.admin_address()
    );
    // It is large, and this is the one place where it is.
    let result = Box::pin(app.run(&logs, traces.as_ref())).await;
    if let Some(traces) = traces {
        traces.finish().await;
    }
    result?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// A page of the Tollgate that runs with these settings.
fn admin_url(config: &Config, path: &str) -> String {
    let mut address = config.admin_listen;
    if address.ip().is_unspecified() {
        // An address to listen on, not one to connect to.
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    format!("http://{address}{path}")
}

async fn healthcheck(config: Config) -> anyhow::Result<ExitCode> {
    let url = admin_url(&config, "/readyz");
    let response = Http::local(Duration::from_secs(3))?.send(|client| client.get(&url)).await.context(url.clone())?;
    let ready = response.status().is_success();
    println!("{}", response.text().await.unwrap_or_default());
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
