//! `tollgate check-config`: what `serve` would run with, and whether it could.
//!
//! It makes no file, takes no lock and moves no money, so it may run beside a `serve` and before the first one.

use std::process::ExitCode;

use crate::app::Upstreams;
use crate::config::{Config, Store};
use crate::ledger::books::Found;
use crate::ledger::postgres::PostgresBooks;
use crate::ledger::sqlite::SqliteBooks;
use crate::tls::Certificates;
use crate::upstream::CallError;
use crate::upstream::lumid::Introspection;

/// A token that nobody has.
const NO_TOKEN: &str = "tollgate-check-config-is-no-token";
/// A user that nobody is: `.invalid` is nobody's, by RFC 2606.
const NO_USER: &str = "check-config@tollgate.invalid";

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Ask lum.id, Runmesh and FlowMesh a harmless question each, too; no money moves
    #[arg(long)]
    online: bool,
}

/// What is checked, and what came of it: a word on what is there, or the cause.
type Line = (&'static str, Result<String, String>);

/// Prints the effective values, then a line for each check. The exit code tells whether all went well.
///
/// # Errors
/// What keeps `serve` from starting, as one line.
pub async fn run(flags: &Flags, config: Config) -> anyhow::Result<ExitCode> {
    // A machine without certificates is as good a reason not to start as a wrong value.
    let upstreams = Upstreams::new(&config)?;
    config.tls.as_ref().map(Certificates::load).transpose()?;
    for setting in config.describe() {
        println!("{setting}");
    }
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    let mut is_good = tell(("ledger", ledger(&config).await));
    if flags.online {
        for line in online(&upstreams).await {
            is_good &= tell(line);
        }
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell((what, result): Line) -> bool {
    match &result {
        Ok(said) => println!("{what}: ok, {said}"),
        Err(cause) => println!("{what}: FAILED, {cause}"),
    }
    result.is_ok()
}

async fn ledger(config: &Config) -> Result<String, String> {
    if config.billing.is_none() {
        return Ok("not used, billing is off".to_owned());
    }
    let found = match &config.ledger {
        Store::Sqlite(path) => SqliteBooks::look(path).await,
        Store::Postgres(database) => PostgresBooks::look(database).await,
    };
    match found {
        Ok(Found::Ready) => Ok("it can be opened".to_owned()),
        Ok(Found::Older) => Ok("of an older version, which `tollgate serve` brings up to date".to_owned()),
        Ok(Found::Nothing) => Ok("there is none yet, `tollgate serve` makes it".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn online(Upstreams { lum_id, flowmesh, runmesh, .. }: &Upstreams) -> [Line; 3] {
    let lum_id = async {
        match lum_id.introspect(NO_TOKEN).await {
            Ok(Introspection::Inactive) => Ok("it knows an invalid token for one".to_owned()),
            Ok(Introspection::Active { .. }) => Err("it says of an invalid token that it is active".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    };
    let runmesh = async {
        let Some(runmesh) = runmesh else { return Ok("not asked, billing is off".to_owned()) };
        match runmesh.preflight(NO_USER).await {
            Ok(_) => Ok("it accepts the secret and tells a balance".to_owned()),
            Err(CallError::Status { status: status @ (401 | 403), .. }) => {
                Err(format!("it does not accept FLOWMESH_BRIDGE_SECRET (status {status})"))
            }
            Err(error) => Err(format!("asked for the balance of {NO_USER}: {error}")),
        }
    };
    let flowmesh = async {
        let healthy = flowmesh.healthy().await;
        healthy.map(|()| "it is healthy".to_owned()).map_err(|error| error.to_string())
    };
    let (lum_id, runmesh, flowmesh) = tokio::join!(lum_id, runmesh, flowmesh);
    [("lum.id", lum_id), ("Runmesh", runmesh), ("FlowMesh", flowmesh)]
}
