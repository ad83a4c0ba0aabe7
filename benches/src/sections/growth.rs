//! Whether the cost of one thing grows with how many there are.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tollgate_local::stack::{Tollgate, wait_for};

use crate::{
    checks::{self, Checks},
    context::Context,
    cost::Memory,
    figure::{Figure, ratios},
    ledgers::{self, Rows},
    peers::{FlowMesh, LumId, Runmesh},
    section::Measured,
    served::{self, Around, count},
};

/// Connections, and Checks under way at once: two workers of an Envoy that have work.
const SHAPE: (u64, u64) = (2, 64);
/// How long tokens may take to be made known, and how many are between two looks at the clock: no multiple of the prime in
/// [`token`].
const FILLING: Duration = Duration::from_secs(75);
const AT_ONCE: u64 = 20_000;

/// Measures.
pub async fn run(context: &Context) -> Result<Measured> {
    let mut figures = tokens(context).await?;
    figures.extend(settling(context).await?);
    figures.extend(sweeping(context).await?);
    Ok(Measured {
        about: "The processor time of one Check, of one settled task, of one sweep, with ever more of them around; as a ratio to \
                that with the fewest."
            .to_owned(),
        figures,
        notes: vec![
            "Tollgate remembers 10 000 tokens, whatever is set. For more tokens than that the same code runs with a larger cache \
             (benches/src/bin/sized.rs, all three sizes alike), whose entries are trusted for long so that no refresh is measured. Very many are a million, or as many as could be made known in 75 s."
                .to_owned(),
        ],
    })
}

/// The sizes, as they are called in ids, and how many they are.
fn sizes(context: &Context, full: [u64; 3], quick: [u64; 3]) -> [u64; 3] {
    if context.quick { quick } else { full }
}

/// Makes tokens known, one call to lum.id each: a million of them, or as many as there is time for.
async fn make_known(tollgate: &Tollgate, checks: &Checks, tokens: u64) -> Result<u64> {
    let begun = Instant::now();
    let mut known = 0;
    while known < tokens && begun.elapsed() < FILLING {
        let (first, some) = (known, (tokens - known).min(AT_ONCE));
        checks::send(tollgate.grpc(), checks, some, SHAPE, move |n| first + n).await?;
        known += some;
    }
    Ok(known)
}

/// The token of the `n`th Check among so many: none comes again before all others have come, in no order that a cache likes.
fn token(n: u64, tokens: u64) -> u64 {
    // Prime, and no factor of any number of tokens here.
    (n % tokens) * 611_953 % tokens
}

async fn tokens(context: &Context) -> Result<Vec<Figure>> {
    let sizes = sizes(context, [10, 10_000, 1_000_000], [10, 100, 1_000]);
    let each = if context.quick { 1_000 } else { 25_000 };
    let checks = Checks::captured(&context.root)?;
    let lum_id = LumId::start(Duration::ZERO).await?;
    let flowmesh = FlowMesh::start(0, 1).await?;
    let around = Around { lum_id: Some(lum_id.url()), flowmesh: Some(flowmesh.url()), runmesh: None };
    let binary = context.on_server_core(&context.program("sized")?)?;
    let mut running = Vec::new();
    let mut unknown = f64::NAN;
    for tokens in sizes {
        context.progress("growth", 0, format!("{tokens} tokens are made known"));
        let mut settings = served::settings(&around, None)?;
        settings.push(("SIZED_CACHE_ENTRIES", (2 * tokens).max(10_000).to_string()));
        let tollgate = Tollgate::start(&binary, &settings, None).await?;
        let before = served::used(&tollgate)?;
        let tokens = make_known(&tollgate, &checks, tokens).await?;
        unknown = served::used(&tollgate)?.saturating_sub(before).as_secs_f64() * 1e6 / count(tokens);
        checks::send(tollgate.grpc(), &checks, each / 5, SHAPE, move |n| token(n, tokens)).await?;
        context.progress("growth", 0, format!("{tokens} of them are"));
        running.push((tokens, tollgate, Vec::new()));
    }
    let asked = lum_id.asked();
    let known: Vec<u64> = running.iter().map(|(tokens, ..)| *tokens).collect();
    ensure!(asked == known.iter().sum::<u64>(), "lum.id was asked {asked} times for {known:?} tokens");
    for round in 0..context.rounds {
        context.progress("growth", round, "Checks with few, many and very many tokens");
        for (tokens, tollgate, costs) in &mut running {
            let tokens = *tokens;
            let before = served::used(tollgate)?;
            // Others each round, where there are so many.
            let first = each * round as u64;
            checks::send(tollgate.grpc(), &checks, each, SHAPE, move |n| token(first + n, tokens)).await?;
            let used = served::used(tollgate)?.saturating_sub(before);
            costs.push(used.as_secs_f64() * 1e6 / count(each));
        }
    }
    ensure!(lum_id.asked() == asked, "lum.id was asked {} times meanwhile", lum_id.asked() - asked);
    let how = format!(
        "{each} Checks a round, each with the next of so many tokens, all in the cache: {} connections, {} at once; utime + stime",
        SHAPE.0, SHAPE.1
    );
    let how_unknown = format!(
        "{} Checks, each with a token that is new, to a lum.id that answers at once: with the call to it; {} connections, {} at \
         once; utime + stime",
        known[2], SHAPE.0, SHAPE.1
    );
    let resident = |at: usize| Memory::of(running[at].1.process().pid()).map(|memory| memory.now);
    let bytes = ((resident(2)? - resident(0)?) * 1e6 / count(known[2])).max(1.0);
    let how_bytes = format!("VmRSS with {} tokens less that with {}, for each of the former", known[2], known[0]);
    let what = "Processor time of a Check with an unknown token";
    let mut figures = vec![
        Figure::new("growth.check_unknown", what, "µs", vec![unknown], &how_unknown),
        Figure::new("growth.bytes_per_token", "Memory for each token that is known", "B", vec![bytes], &how_bytes),
    ];
    let few = running[0].2.clone();
    for (name, (tokens, tollgate, costs)) in ["few", "many", "very_many"].into_iter().zip(running) {
        tollgate.kill_hard().await?;
        let what = format!("Processor time of a Check, {tokens} tokens");
        figures.push(Figure::new(&format!("growth.check_{name}"), &what, "µs", costs.clone(), &how));
        if name != "few" {
            let what = format!("The same with {tokens} tokens / with {}", sizes[0]);
            figures.push(Figure::new(&format!("growth.check_{name}_ratio"), &what, "×", ratios(&costs, &few), &how));
        }
    }
    Ok(figures)
}

/// Tasks that are due, in a ledger with ever more open workflows.
async fn settling(context: &Context) -> Result<Vec<Figure>> {
    let [few, many, _] = sizes(context, [10, 100_000, 0], [10, 200, 0]);
    let tasks = if context.quick { 50 } else { 2_000 };
    let due = |workflows| Rows::Open { workflows, due_tasks: tasks, due_workflows: 0 };
    let done = "SELECT COUNT(*) FROM charges WHERE state = 'posted'";
    let few_open = Work::new(context, few, due(few), tasks, done).await?;
    let many_open = Work::new(context, many, due(many), tasks, done).await?;
    let (mut with_few, mut with_many) = (Vec::new(), Vec::new());
    for round in 0..context.rounds.min(3) {
        context.progress("growth", round, "tasks settled");
        with_few.push(few_open.work(context).await?);
        with_many.push(many_open.work(context).await?);
    }
    let how = format!(
        "{tasks} due tasks of these workflows, until each is settled and its charge posted; utime + stime, and the time since it was ready"
    );
    Ok(grown("settle", "of a task settled and billed", [few, many], &with_few, &with_many, &how))
}

/// Workflows that are due, among ever more.
async fn sweeping(context: &Context) -> Result<Vec<Figure>> {
    let [few, many, _] = sizes(context, [1_000, 100_000, 0], [20, 200, 0]);
    let due = |workflows| Rows::Open { workflows, due_tasks: 0, due_workflows: few };
    let done = "SELECT COUNT(*) FROM workflows WHERE sweeps > 0";
    let few_open = Work::new(context, few, due(few), few, done).await?;
    let many_open = Work::new(context, many, due(many), few, done).await?;
    let (mut with_few, mut with_many) = (Vec::new(), Vec::new());
    for round in 0..context.rounds.min(3) {
        context.progress("growth", round, "workflows swept");
        with_few.push(few_open.work(context).await?);
        with_many.push(many_open.work(context).await?);
    }
    let how = format!(
        "{few} of these workflows are due, until each is asked after; utime + stime, and the time since it was ready"
    );
    Ok(grown("sweep", "of a workflow swept", [few, many], &with_few, &with_many, &how))
}

/// What work of one kind took.
struct Worked {
    /// Processor time of one piece, in µs.
    cost: f64,
    /// Pieces a second.
    rate: f64,
}

/// A ledger with work that is due.
struct Work {
    dir: tempfile::TempDir,
    workflows: u64,
    pieces: u64,
    done: &'static str,
}

impl Work {
    /// So many pieces, which are done when `done` counts as many.
    async fn new(context: &Context, workflows: u64, rows: Rows, pieces: u64, done: &'static str) -> Result<Self> {
        let dir = context.folder()?;
        ledgers::make(&dir.path().join("due.db"), rows).await?;
        Ok(Self { dir, workflows, pieces, done })
    }

    /// Works on a copy of it until all is done.
    async fn work(&self, context: &Context) -> Result<Worked> {
        let dir = context.folder()?;
        let path = dir.path().join("ledger.db");
        std::fs::copy(self.dir.path().join("due.db"), &path)?;
        let (flowmesh, runmesh) = (FlowMesh::start(0, self.workflows).await?, Runmesh::start(Duration::ZERO).await?);
        let around = Around { flowmesh: Some(flowmesh.url()), runmesh: Some(runmesh.url()), lum_id: None };
        // What its start costs is no part of this.
        let idle = served::tollgate(context, &around, None).await?;
        let start = served::used(&idle)?;
        idle.kill_hard().await?;
        let tollgate = served::tollgate(context, &around, Some(&path)).await?;
        let begun = Instant::now();
        // Not by /metrics, which counts what is open.
        let mut file = ledgers::open(&path, true).await?;
        wait_for(format!("{} pieces of work", self.pieces), Duration::from_mins(1), async || {
            let done = ledgers::number(&mut file, self.done).await.ok()?;
            (done >= self.pieces).then_some(())
        })
        .await?;
        let took = begun.elapsed();
        let used = served::used(&tollgate)?.saturating_sub(start);
        tollgate.kill_hard().await?;
        Ok(Worked {
            cost: used.as_secs_f64() * 1e6 / count(self.pieces),
            rate: count(self.pieces) / took.as_secs_f64(),
        })
    }
}

fn grown(id: &str, what: &str, sizes: [u64; 2], few: &[Worked], many: &[Worked], how: &str) -> Vec<Figure> {
    let costs = |of: &[Worked]| of.iter().map(|worked| worked.cost).collect::<Vec<_>>();
    let [fewer, more] = sizes;
    let figure = |end: &str, what: &str, unit: &str, samples| {
        Figure::new(&format!("growth.{id}_{end}"), what, unit, samples, how)
    };
    vec![
        figure("few", &format!("Processor time {what}, {fewer} open workflows"), "µs", costs(few)),
        figure("many", &format!("Processor time {what}, {more} open workflows"), "µs", costs(many)),
        figure("ratio", &format!("The same with {more} / with {fewer}"), "×", ratios(&costs(many), &costs(few))),
        figure(
            "rate",
            &format!("So many a second {what}, {more} open workflows"),
            "1/s",
            many.iter().map(|of| of.rate).collect(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_token_comes_once_before_one_comes_again() {
        for tokens in [10, 100, 1_000, 10_000, 340_000, 1_000_000] {
            let seen: HashSet<u64> = (0..tokens).map(|n| token(n, tokens)).collect();
            assert_eq!(seen.len() as u64, tokens);
            assert_eq!(token(tokens, tokens), token(0, tokens));
        }
    }
}
