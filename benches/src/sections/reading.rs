//! What it takes to look at a ledger with much in it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tollgate_local::stack::http_client;

use crate::{
    context::Context,
    figure::Figure,
    ledgers::{self, Rows},
    section::Measured,
    served::{self, Around},
};

/// Measures.
pub async fn run(context: &Context) -> Result<Measured> {
    let dir = context.folder()?;
    let path = dir.path().join("ledger.db");
    ledgers::copy_posted(context, &path).await?;
    let tollgate = served::tollgate(context, &Around::default(), Some(&path)).await?;
    let (http, url) = (http_client()?, format!("{}/metrics", tollgate.admin_url()));
    let (mut lists, mut scrapes) = (Vec::new(), Vec::new());
    for round in 0..context.rounds {
        context.progress("reading", round, "`tollgate ledger list` and /metrics");
        lists.push(list(context, &path).await?.as_secs_f64() * 1e3);
        let begun = Instant::now();
        let text = http.get(&url).send().await?.error_for_status()?.text().await?;
        scrapes.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(text.contains("tollgate_charges_pending"), "/metrics does not tell of charges");
    }
    tollgate.kill_hard().await?;
    let charges = ledgers::many(context);
    let spread: u64 = if context.quick { 5_000 } else { 50_000 };
    let path = dir.path().join("spread.db");
    ledgers::make(&path, Rows::PostedSpread(spread)).await?;
    let bytes = served::count(std::fs::metadata(&path)?.len()) / served::count(spread);
    Ok(Measured {
        about: format!("A ledger with {charges} posted charges, looked at beside a running Tollgate."),
        figures: vec![
            Figure::new(
                "reading.list",
                "`tollgate ledger list`, the whole process",
                "ms",
                lists,
                "`tollgate ledger list > /dev/null`, its first 100 lines as it prints by default, beside a running `serve`",
            ),
            Figure::new("reading.metrics", "A scrape of /metrics", "ms", scrapes, "one GET on a new connection"),
            Figure::new(
                "reading.bytes_per_charge",
                "Size of the ledger for each posted charge",
                "B",
                vec![bytes],
                &format!(
                    "size of a file with {spread} charges / their number: with tasks, a workflow and a submission for each {}, and all indexes; ids spread like random ones",
                    ledgers::TASKS_OF_A_WORKFLOW
                ),
            ),
        ],
        notes: Vec::new(),
    })
}

/// Lists the ledger as an operator does.
pub(super) async fn list(context: &Context, ledger: &Path) -> Result<Duration> {
    let mut command = context.on_load_core(context.program("tollgate")?);
    command.args(["ledger", "list"]).env("TOLLGATE_LEDGER", format!("sqlite:{}", ledger.display()));
    let begun = Instant::now();
    let listed = command.output().await.context("cannot run `tollgate ledger list`")?;
    let took = begun.elapsed();
    ensure!(listed.status.success(), "`tollgate ledger list`: {}", String::from_utf8_lossy(&listed.stderr));
    ensure!(listed.stdout.len() > 1000, "`tollgate ledger list` lists nothing");
    Ok(took)
}
