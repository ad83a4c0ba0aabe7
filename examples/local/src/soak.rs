//! `tollgate-local chaos`: rounds of faults, with a line of progress now and then.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollgate_local::chaos::{Figures, Progress, Report, Round, play_apart};

use crate::{Binaries, account::Printer, stop::Stop};

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// Twice the longest pause that Tollgate makes between two tries of anything.
const PATIENCE: Duration = Duration::from_mins(10);

#[derive(Args)]
pub struct ChaosOptions {
    #[command(flatten)]
    binaries: Binaries,
    /// The first seed; each further round takes the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// No new round is begun after so long; by default one round is played
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Play so many rounds, however long that takes
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    seeds: Option<u64>,
    /// Tollgates in each round; several share a PostgreSQL, and as root the network between them is cut, both ways or one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,
    /// Rounds side by side
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// How long things fail in a round, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 60)]
    round_secs: u64,
    /// How long a single outage lasts at most, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 8)]
    outage_secs: u64,
    /// Where the folders of the rounds go; that of a failed one stays
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave the disk alone; filling it needs a file system that only root may mount
    #[arg(long)]
    no_disk: bool,
    /// Leave the network alone; cutting it needs network namespaces, which only root may make
    #[arg(long)]
    no_cuts: bool,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
}

/// Plays rounds until the time is over, the seeds are used up, or one fails.
pub async fn chaos(options: ChaosOptions) -> Result<ExitCode> {
    let printer = Printer::new();
    let started = Instant::now();
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let parent = parent.canonicalize()?;
    let (tollgate, envoy) = (options.binaries.tollgate()?, options.binaries.envoy()?);
    let limit = options.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let seeds = options.seeds.unwrap_or(if limit.is_some() { u64::MAX } else { 1 });
    let mut rounds: JoinSet<(u64, Result<Report>)> = JoinSet::new();
    let mut running: BTreeMap<u64, Progress> = BTreeMap::new();
    let (mut next, mut played, mut total, mut failed) = (0, 0_u64, Figures::default(), Vec::new());
    let mut progress = tokio::time::interval(PROGRESS);
    let (mut signals, stop) = (Stop::listen()?, CancellationToken::new());
    loop {
        let in_time = limit.is_none_or(|limit| started.elapsed() < limit);
        let going = failed.is_empty() || options.keep_going;
        while going && in_time && !stop.is_cancelled() && next < seeds && rounds.len() < options.jobs {
            let round = Round {
                tollgate: tollgate.clone(),
                envoy: envoy.clone(),
                seed: options.seed.wrapping_add(next),
                replicas: options.replicas,
                uncut: uncut(&options),
                length: Duration::from_secs(options.round_secs),
                outage: Duration::from_secs(options.outage_secs),
                patience: PATIENCE,
                disk: !options.no_disk,
                parent: parent.clone(),
            };
            next += 1;
            let shown = Progress::default();
            running.insert(round.seed, shown.clone());
            let stop = stop.clone();
            rounds.spawn(async move { (round.seed, play_apart(round, shown, stop).await) });
        }
        tokio::select! {
            ended = rounds.join_next() => {
                let Some(ended) = ended else { break };
                let (seed, report) = ended.context("a round broke off")?;
                running.remove(&seed);
                played += 1;
                match report {
                    Ok(report) => {
                        total.add(&report.figures);
                        if !tell(printer, &report, &options, started) {
                            failed.push(seed);
                        }
                    }
                    Err(error) => {
                        printer.plain(format_args!("seed {seed} could not be played: {error:#}"));
                        failed.push(seed);
                    }
                }
            }
            () = signals.asked(), if !stop.is_cancelled() => stop.cancel(),
            _ = progress.tick() => {
                for (seed, progress) in &running {
                    let figures = progress.figures();
                    printer.plain(format_args!("{} seed {seed} {}: {}", elapsed(started), figures.phase, line(&figures)));
                }
            }
        }
    }
    printer.plain(format_args!("{} all {played} rounds: {}", elapsed(started), line(&total)));
    printer.plain(format_args!("  {}", counts(&total)));
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    printer.plain(format_args!("FAILED: seeds {failed:?}"));
    Ok(ExitCode::FAILURE)
}

/// Tells how a round went. Whether it went well.
fn tell(printer: Printer, report: &Report, options: &ChaosOptions, started: Instant) -> bool {
    let (seed, figures) = (report.seed, &report.figures);
    let verdict = if report.failures.is_empty() { "ok" } else { "FAILED" };
    printer.plain(format_args!("{} seed {seed} {verdict}: {}", elapsed(started), line(figures)));
    printer.plain(format_args!("  {}", counts(figures)));
    if report.failures.is_empty() {
        return true;
    }
    for failure in report.failures.iter().take(20) {
        printer.plain(format_args!("  {failure}"));
    }
    if report.failures.len() > 20 {
        printer.plain(format_args!("  … and {} more", report.failures.len() - 20));
    }
    if let Some(kept) = &report.kept {
        printer.plain(format_args!("  ledger, logs and timeline are in {}", kept.display()));
    }
    printer.plain(format_args!(
        "  again: tollgate-local chaos --seed {seed} --replicas {} --round-secs {} --outage-secs {}",
        options.replicas, options.round_secs, options.outage_secs
    ));
    false
}

/// Why the network is left alone.
fn uncut(options: &ChaosOptions) -> Option<String> {
    if options.replicas == 1 {
        return Some("there is one Tollgate".to_owned());
    }
    options.no_cuts.then(|| "it was so wished".to_owned())
}

fn elapsed(started: Instant) -> String {
    let seconds = started.elapsed().as_secs();
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

fn line(figures: &Figures) -> String {
    let Figures { workflows, tasks, entries, repeats, held, attributed, counts, .. } = figures;
    let faults: u64 = counts.iter().filter(|(kind, _)| is_fault(kind)).map(|(_, count)| count).sum();
    format!(
        "{workflows} workflows, {tasks} tasks, {faults} faults, {entries} entries, {repeats} repeats, {held} held, \
         {attributed} attributed"
    )
}

/// What is counted beside faults.
const OTHERS: [&str; 12] = [
    "calm",
    "crowded",
    "log messages",
    "merged",
    "no disk",
    "no network",
    "results",
    "rounds",
    "starts",
    "stops",
    "submissions",
    "workflows",
];

fn is_fault(kind: &str) -> bool {
    !OTHERS.iter().any(|other| kind.starts_with(other))
}

fn counts(figures: &Figures) -> String {
    let counts: Vec<String> = figures.counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    counts.join(", ")
}
