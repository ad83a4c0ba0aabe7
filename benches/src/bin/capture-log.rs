//! Takes the log entries in `benches/data` anew, from a real Envoy.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let tollgate = std::env::args_os().nth(1).map(PathBuf::from).context("usage: capture-log TOLLGATE")?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    tollgate_benches::capture::log_entries(&tollgate, &here.join(".."), &here.join("data")).await
}
