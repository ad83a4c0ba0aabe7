//! Tollgate with another size of its cache, which is no setting: to see what a Check costs when the cache is large. All else is
//! `tollgate serve`, from the same library.

use clap::Parser;
use std::time::Duration;
use tollgate::{
    app::App,
    config::{Config, Options},
    telemetry,
};

/// `tollgate serve` with a cache of another size
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// As Tollgate is started with it
    command: Option<String>,
    /// Active tokens kept in memory
    #[arg(long, env = "SIZED_CACHE_ENTRIES", default_value_t = 10_000)]
    cache_entries: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut config = Config::parse(cli.options)?;
    config.limits.identity_cache_entries = cli.cache_entries;
    // No Check waits for a refresh anyway; that none is made keeps the cost of a Check apart from that of a refresh.
    config.limits.identity_cache_ttl = Duration::from_hours(2);
    let logs = telemetry::init_logs(&config)?;
    Box::pin(App::build(config).await?.run(&logs, None)).await
}
