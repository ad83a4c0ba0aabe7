//! The ledger in PostgreSQL, with one Tollgate and with three.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use tollgate_local::stack::{Tollgate, wait_for};

use super::access_log;
use crate::{
    context::Context,
    figure::{Figure, ratios},
    ledgers::Rows,
    peers::{FlowMesh, Runmesh},
    postgres::{Database, Postgres},
    section::Measured,
    served::{self, Around, count},
};

/// What Runmesh takes to answer.
const DELAY: Duration = Duration::from_millis(10);
/// No round lasts longer; what is done by then is what there is to calculate with.
const LONGEST: Duration = Duration::from_secs(12);
const HOW_MANY: [usize; 2] = [1, 3];

/// Measures.
pub async fn run(context: &Context) -> Result<Measured> {
    let postgres = Postgres::start()?;
    let mut figures = durable(context, &postgres).await?;
    figures.extend(posted(context, &postgres).await?);
    figures.extend(grown(context, &postgres).await?);
    Ok(Measured {
        about: "The same work as above on a PostgreSQL on the same machine, which shares its two cores with one Tollgate or with three, \
                and syncs each commit to the same disk."
            .to_owned(),
        figures,
        notes: vec![
            "Writes take turns among all replicas, so three are not faster than one here; on one machine they only share the cores \
             that one has to itself. They are for going on when one of them, or its machine, is gone. Each Tollgate runs on \
             the core of the servers; PostgreSQL goes where the system lets it."
                .to_owned(),
        ],
    })
}

/// So many Tollgates on a ledger.
async fn tollgates(context: &Context, around: &Around, ledger: &Database, many: usize) -> Result<Vec<Tollgate>> {
    let mut running = Vec::with_capacity(many);
    for n in 0..many {
        let mut settings = served::settings(around, Some(&ledger.url))?;
        settings.push(("TOLLGATE_REPLICA", format!("replica-{n}")));
        running.push(Tollgate::start(&context.tollgate()?, &settings, None).await?);
    }
    Ok(running)
}

async fn end(running: Vec<Tollgate>) -> Result<()> {
    for tollgate in running {
        tollgate.kill_hard().await?;
    }
    Ok(())
}

/// Events made durable, of which each replica gets its part.
async fn durable(context: &Context, postgres: &Postgres) -> Result<Vec<Figure>> {
    let log = access_log::submissions_and_results(&context.root)?;
    let entries: u64 = if context.quick { 2_000 } else { 60_000 };
    let rows = "SELECT (SELECT COUNT(*) FROM tasks) + (SELECT COUNT(*) FROM workflows)";
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..context.rounds.min(3) {
        for (many, rates) in HOW_MANY.into_iter().zip(&mut rates) {
            context.progress("replicas", round, format!("entries made durable by {many}"));
            let mut ledger = postgres.ledger(&format!("durable_{many}_{round}"), None).await?;
            let running = tollgates(context, &Around::default(), &ledger, many).await?;
            let each = entries.div_ceil(many as u64);
            let parts: Vec<Range<u64>> = (0..many as u64).map(|n| n * each..((n + 1) * each).min(entries)).collect();
            let begun = Instant::now();
            let sends = running.iter().zip(parts).map(|(tollgate, part)| access_log::send(tollgate.grpc(), &log, part));
            let mut sending = Box::pin(try_join_all(sends));
            let (mut sent, mut durable) = (false, 0);
            while durable < entries && begun.elapsed() < LONGEST {
                tokio::select! {
                    done = &mut sending, if !sent => { done?; sent = true; }
                    () = tokio::time::sleep(Duration::from_millis(20)) => durable = ledger.number(rows).await?,
                }
            }
            rates.push(count(durable) / begun.elapsed().as_secs_f64());
            drop(sending);
            end(running).await?;
        }
    }
    let how = format!(
        "{entries} entries, half of them submissions with their workflows, half results, as for SQLite, in equal parts to each Tollgate; \
         until every row is committed ({} s at most), counted by another connection",
        LONGEST.as_secs()
    );
    Ok(one_and_three("durable", "Events of different tasks and workflows made durable", rates, &how))
}

/// Charges posted.
async fn posted(context: &Context, postgres: &Postgres) -> Result<Vec<Figure>> {
    let charges: u64 = if context.quick { 500 } else { 10_000 };
    let done = "SELECT COUNT(*) FROM charges WHERE state = 'posted'";
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..context.rounds.min(3) {
        for (many, rates) in HOW_MANY.into_iter().zip(&mut rates) {
            context.progress("replicas", round, format!("charges posted by {many}"));
            let mut ledger = postgres.ledger(&format!("posted_{many}_{round}"), Some(Rows::Pending(charges))).await?;
            let (runmesh, flowmesh) = (Runmesh::start(DELAY).await?, FlowMesh::start(0, 1).await?);
            let around = Around { runmesh: Some(runmesh.url()), flowmesh: Some(flowmesh.url()), lum_id: None };
            // From when they are all there, which takes a while.
            let running = tollgates(context, &around, &ledger, many).await?;
            let (begun, first) = (Instant::now(), ledger.number(done).await?);
            let mut last = first;
            while last < charges && begun.elapsed() < LONGEST {
                tokio::time::sleep(Duration::from_millis(10)).await;
                last = ledger.number(done).await?;
            }
            let took = begun.elapsed();
            end(running).await?;
            let (tasks, repeated, malformed) = runmesh.entries();
            ensure!(
                tasks >= last && repeated == 0 && malformed == 0,
                "{tasks} entries, {repeated} twice, {malformed} malformed"
            );
            rates.push(count(last - first) / took.as_secs_f64());
        }
    }
    let how = format!(
        "a ledger with {charges} pending charges, a Runmesh that answers each entry after 10 ms; from when all Tollgates are ready to \
         the last row that is `posted` ({} s at most); Runmesh got each task once",
        LONGEST.as_secs()
    );
    Ok(one_and_three("posted", "Billing entries posted, each durable as such", rates, &how))
}

fn one_and_three(id: &str, what: &str, [one, three]: [Vec<f64>; 2], how: &str) -> Vec<Figure> {
    let figure = |end: &str, what: String, unit: &str, samples| {
        Figure::new(&format!("replicas.{id}_{end}"), &what, unit, samples, how)
    };
    vec![
        figure("ratio", format!("{what}: three Tollgates / one"), "×", ratios(&three, &one)),
        figure("one", format!("{what}, one Tollgate"), "1/s", one),
        figure("three", format!("{what}, three Tollgates"), "1/s", three),
    ]
}

/// Whether work takes longer the more workflows are open.
async fn grown(context: &Context, postgres: &Postgres) -> Result<Vec<Figure>> {
    let (few, many) = if context.quick { (20, 200) } else { (1_000, 100_000) };
    let tasks = if context.quick { 50 } else { 2_000 };
    let settled = "SELECT COUNT(*) FROM charges WHERE state = 'posted'";
    let swept = "SELECT COUNT(*) FROM workflows WHERE sweeps > 0";
    let mut figures = Vec::new();
    for (kind, what, pieces, done) in
        [("settle", "a task settled and billed", tasks, settled), ("sweep", "a workflow swept", few, swept)]
    {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..context.rounds.min(3) {
            for (open, times) in [few, many].into_iter().zip(&mut times) {
                context.progress("replicas", round, format!("{what}, with {open} workflows open"));
                let (due_tasks, due_workflows) = if kind == "settle" { (tasks, 0) } else { (0, few) };
                let rows = Rows::Open { workflows: open, due_tasks, due_workflows };
                let mut ledger = postgres.ledger(&format!("{kind}_{open}_{round}"), Some(rows)).await?;
                let (flowmesh, runmesh) = (FlowMesh::start(0, open).await?, Runmesh::start(Duration::ZERO).await?);
                let around = Around { flowmesh: Some(flowmesh.url()), runmesh: Some(runmesh.url()), lum_id: None };
                let running = tollgates(context, &around, &ledger, 1).await?;
                let begun = Instant::now();
                wait_for(format!("{pieces} pieces of work"), Duration::from_mins(1), async || {
                    (ledger.number(done).await.ok()? >= pieces).then_some(())
                })
                .await?;
                times.push(begun.elapsed().as_secs_f64() * 1e6 / count(pieces));
                end(running).await?;
            }
        }
        let how = format!(
            "{pieces} due pieces among so many open workflows, one Tollgate; by the clock, from when it is ready until all are done"
        );
        let [with_few, with_many] = times;
        let figure = |end: &str, what: String, unit: &str, samples| {
            Figure::new(&format!("replicas.{kind}_{end}"), &what, unit, samples, &how)
        };
        figures.extend([
            figure(
                "ratio",
                format!("Time of {what} with {many} open workflows / with {few}"),
                "×",
                ratios(&with_many, &with_few),
            ),
            figure("few", format!("Time of {what}, {few} open workflows"), "µs", with_few),
            figure("many", format!("Time of {what}, {many} open workflows"), "µs", with_many),
        ]);
    }
    Ok(figures)
}
