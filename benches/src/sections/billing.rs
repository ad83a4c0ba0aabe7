//! How fast charges reach Runmesh.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tollgate_local::stack::wait_for;

use crate::{
    context::Context,
    figure::Figure,
    ledgers::{self, Rows},
    peers::{FlowMesh, Runmesh},
    section::Measured,
    served::{self, Around, count},
};

/// What Runmesh takes to answer.
const DELAY: Duration = Duration::from_millis(10);
/// No round lasts longer; what is posted by then is what there is to calculate with.
const LONGEST: Duration = Duration::from_secs(12);
const POSTED: &str = "SELECT COUNT(*) FROM charges WHERE state = 'posted'";

/// Measures.
pub async fn run(context: &Context) -> Result<Measured> {
    let charges: u64 = if context.quick { 500 } else { 10_000 };
    let dir = context.folder()?;
    let full = dir.path().join("full.db");
    ledgers::make(&full, Rows::Pending(charges)).await?;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for round in 0..context.rounds.min(3) {
        context.progress("billing", round, "charges posted");
        let path = dir.path().join("ledger.db");
        std::fs::copy(&full, &path)?;
        let (runmesh, flowmesh) = (Runmesh::start(DELAY).await?, FlowMesh::start(0, 1).await?);
        let around = Around { runmesh: Some(runmesh.url()), flowmesh: Some(flowmesh.url()), lum_id: None };
        let tollgate = served::tollgate(context, &around, Some(&path)).await?;
        let mut file = ledgers::open(&path, true).await?;
        let mut posted = async || ledgers::number(&mut file, POSTED).await;
        let first = wait_for("the first charge to be posted", Duration::from_secs(10), async || {
            posted().await.ok().filter(|n| *n > 0)
        });
        let first = first.await?;
        let (begun, before) = (Instant::now(), served::used(&tollgate)?);
        let mut last = first;
        while last < charges && begun.elapsed() < LONGEST {
            tokio::time::sleep(Duration::from_millis(10)).await;
            last = posted().await?;
        }
        let (took, used) = (begun.elapsed(), served::used(&tollgate)?.saturating_sub(before));
        tollgate.kill_hard().await?;
        let (tasks, repeated, malformed) = runmesh.entries();
        ensure!(
            tasks >= last && repeated == 0 && malformed == 0,
            "{tasks} entries, {repeated} twice, {malformed} malformed"
        );
        rates.push(count(last - first) / took.as_secs_f64());
        costs.push(used.as_secs_f64() * 1e6 / count(last - first).max(1.0));
        for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
            let _ = std::fs::remove_file(dir.path().join(file));
        }
    }
    let ceiling = ceiling(if context.quick { 200 } else { 5_000 }).await?;
    let how = format!(
        "a ledger with {charges} pending charges, a Runmesh that answers each entry after 10 ms; from the first row that is \
         `posted` to the last ({} s at most), seen by another connection; Runmesh got each task once",
        LONGEST.as_secs()
    );
    let how_ceiling = "256 requests at once over 64 connections that are kept, from the same core, without Tollgate";
    Ok(Measured {
        about: "Charges that wait in the ledger are posted to a Runmesh that takes 10 ms for each.".to_owned(),
        figures: vec![
            Figure::new(
                "billing.entries_per_second",
                "Billing entries posted, each durable as such",
                "1/s",
                rates,
                &how,
            ),
            Figure::new("billing.cost", "Processor time of one of them", "µs", costs, &how),
            Figure::new(
                "billing.runmesh_ceiling",
                "What that Runmesh itself answers, client on its core",
                "1/s",
                vec![ceiling],
                how_ceiling,
            ),
        ],
        notes: Vec::new(),
    })
}

/// What the stand-in answers when nobody is in between; client and server share the core, so it can do more than this.
async fn ceiling(requests: u64) -> Result<f64> {
    let runmesh = Runmesh::start(DELAY).await?;
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).pool_max_idle_per_host(256).build()?;
    let url = format!("{}/billing/flowmesh-entry", runmesh.url());
    let next = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for _ in 0..256 {
        let (http, url, next) = (http.clone(), url.clone(), next.clone());
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if number >= requests {
                    return Ok::<_, reqwest::Error>(());
                }
                let body = format!(r#"{{"taskId":"tsk-{number:012}"}}"#);
                http.post(&url).body(body).send().await?.error_for_status()?.bytes().await?;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    let took = begun.elapsed();
    ensure!(runmesh.entries() == (requests, 0, 0), "the stand-in has lost count: {:?}", runmesh.entries());
    Ok(count(requests) / took.as_secs_f64())
}
