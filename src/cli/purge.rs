//! `tollgate purge`: makes a revocation at lum.id immediate, also where there is no curl.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::{Value, json};

use super::{Cli, admin_url};
use crate::config::Config;
use crate::identity::TokenHash;
use crate::upstream::Http;

/// Whose tokens are forgotten.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Flags {
    /// The tokens of this principal, lum.id's `sub`
    #[arg(long, value_name = "SUB")]
    principal: Option<String>,
    /// One token, by the 64 hex digits of its SHA-256: `printf %s "$TOKEN" | sha256sum`
    #[arg(long, value_name = "HEX")]
    token_sha256: Option<String>,
    /// Every token
    #[arg(long)]
    all: bool,
}

impl Flags {
    /// The question, as the admin listener wants it.
    fn body(&self) -> Value {
        match (&self.principal, &self.token_sha256) {
            (Some(id), _) => json!({ "principal_id": id }),
            (None, Some(hash)) if hash.parse::<TokenHash>().is_ok() => json!({ "token_sha256": hash }),
            // Not by clap's own check, which would show what may be the token itself.
            (None, Some(_)) => {
                Cli::command().error(ErrorKind::ValueValidation, "--token-sha256 wants 64 hex digits").exit()
            }
            (None, None) => json!({ "all": true }),
        }
    }
}

/// Asks the Tollgate that runs with these settings.
pub async fn run(flags: &Flags, config: &Config) -> anyhow::Result<ExitCode> {
    let (url, body) = (admin_url(config, "/cache/purge"), flags.body());
    let http = Http::local(Duration::from_secs(3))?;
    let response = http.send(|client| client.post(&url).json(&body)).await.with_context(|| url.clone())?;
    let status = response.status();
    let answer: Value = response.json().await.with_context(|| format!("{url}: status {status}"))?;
    match answer["purged"].as_u64() {
        Some(purged) if status.is_success() => {
            println!("{purged} forgotten");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("{url}: status {status}: {}", answer["detail"].as_str().unwrap_or("no reason given")),
    }
}
