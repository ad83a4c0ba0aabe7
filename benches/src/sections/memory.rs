//! How much memory Tollgate needs.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use tollgate_local::stack::{Tollgate, http_client, wait_for};

use super::{access_log, reading};
use crate::{
    checks::{self, Checks},
    context::Context,
    cost::Memory,
    figure::Figure,
    ledgers::{self, RUNNING, TASKS_OF_A_WORKFLOW},
    peers::{FlowMesh, LumId, Runmesh},
    section::Measured,
    served::{self, Around, count},
};

/// The most that are remembered by default.
const PRINCIPALS: u64 = 10_000;

/// Measures.
pub async fn run(context: &Context) -> Result<Measured> {
    let (lum_id, flowmesh) = (LumId::start(Duration::ZERO).await?, FlowMesh::start(RUNNING, 1).await?);
    let runmesh = Runmesh::start(Duration::ZERO).await?;
    let around = Around { lum_id: Some(lum_id.url()), flowmesh: Some(flowmesh.url()), runmesh: Some(runmesh.url()) };
    let mut figures = Vec::new();
    let mut add = |id: &str, what: &str, taken: &[Memory], how: &str| {
        let (now, most) = (taken.iter().map(|one| one.now).collect(), taken.iter().map(|one| one.most).collect());
        figures.push(Figure::new(&format!("memory.{id}"), &format!("Resident {what}"), "MB", now, how));
        figures.push(Figure::new(&format!("memory.{id}_peak"), &format!("At most so far {what}"), "MB", most, how));
    };

    let (mut start, mut cached) = (Vec::new(), Vec::new());
    let checks = Checks::captured(&context.root)?;
    let principals = if context.quick { 200 } else { PRINCIPALS };
    for round in 0..context.rounds.min(3) {
        context.progress("memory", round, "at start, and with a full cache");
        let dir = context.folder()?;
        let tollgate = served::tollgate(context, &around, Some(&dir.path().join("ledger.db"))).await?;
        start.push(Memory::of(tollgate.process().pid())?);
        checks::send(tollgate.grpc(), &checks, principals, (2, 64), |number| number).await?;
        let remembered = served::metric(&tollgate, "tollgate_identity_cache_entries").await?;
        ensure!(remembered >= 0.99 * count(principals), "only {remembered} of {principals} principals are remembered");
        cached.push(Memory::of(tollgate.process().pid())?);
        tollgate.kill_hard().await?;
    }
    add("start", "when it is ready, with an empty ledger", &start, "VmRSS and VmHWM when /readyz is 200; billing on");
    let how = format!("the same after {principals} Checks, each with another token: 2 connections, 64 at once");
    add("cached", &format!("with {principals} principals in memory"), &cached, &how);

    let (charges, tasks) = (ledgers::many(context), if context.quick { 20 } else { 1000 });
    let dir = context.folder()?;
    let path = dir.path().join("ledger.db");
    ledgers::copy_posted(context, &path).await?;
    ledgers::add_running(&path, tasks).await?;
    let tollgate = served::tollgate(context, &around, Some(&path)).await?;
    let opened = Memory::of(tollgate.process().pid())?;
    work(context, &tollgate, &path, tasks).await?;
    let worked = Memory::of(tollgate.process().pid())?;
    tollgate.kill_hard().await?;
    add(
        "opened",
        &format!("when it is ready, with {charges} charges"),
        &[opened],
        "VmRSS and VmHWM when /readyz is 200",
    );
    let how =
        format!("the same after a scrape, a `tollgate ledger list` beside it, and {tasks} tasks settled and billed");
    add("worked", &format!("with {charges} charges, after some work"), &[worked], &how);
    Ok(Measured {
        about: "What the kernel says of the process (`VmRSS`, `VmHWM` in /proc), in MB of 10⁶ bytes. SQLite's file is read \
                through the page cache, which is not the process's."
            .to_owned(),
        figures,
        notes: vec![format!("The charges are of 80 days, {TASKS_OF_A_WORKFLOW} of each workflow.")],
    })
}

/// A scrape, a list, and some results, until they are billed.
async fn work(context: &Context, tollgate: &Tollgate, ledger: &Path, tasks: u64) -> Result<()> {
    let metrics = format!("{}/metrics", tollgate.admin_url());
    http_client()?.get(metrics).send().await?.error_for_status()?.bytes().await?;
    reading::list(context, ledger).await?;
    access_log::send(tollgate.grpc(), &access_log::results(&context.root)?, RUNNING..RUNNING + tasks).await?;
    wait_for(format!("{tasks} charges to be posted"), Duration::from_mins(1), async || {
        let posts = tollgate.metric(r#"tollgate_posts_total{outcome="posted"}"#).await?;
        (posts >= count(tasks)).then_some(())
    })
    .await
}
