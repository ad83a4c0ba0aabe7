//! One round from its first process to its books.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Figures, Progress, Report, Round, clients, faults, operator, shared,
    verify::{Books, Held},
    workers,
    world::{REPEATS, World},
};

/// What is still held after so long without any other work is held for good.
const HELD_FOR: Duration = Duration::from_secs(12);
/// What is still missing after so long without any work was forgotten: FlowMesh's list is looked at every minute at least.
const FORGOTTEN: Duration = Duration::from_secs(90);

/// Plays a round.
///
/// # Errors
/// When it cannot be played. What went wrong in it is in its report.
pub async fn play(round: &Round, progress: &Progress) -> Result<Report> {
    let dir = tempfile::Builder::new().prefix(&format!("seed-{}-", round.seed)).tempdir_in(&round.parent);
    let dir = dir.with_context(|| format!("cannot make a folder in {}", round.parent.display()))?;
    progress.update(|figures| figures.phase = "starting");
    let mut random = fastrand::Rng::with_seed(round.seed);
    let world = Arc::new(World::start(round, dir.path(), &mut random).await?);
    let played = act(&world, round, &mut random, progress).await;
    progress.update(|figures| figures.phase = "over");
    if let Err(error) = played {
        world.record.fail(format_args!("{error:#}"));
    }
    let failures = world.record.failures();
    observe(&world, progress);
    let figures = progress.figures();
    let _ = world.envoy.lock().await.kill_hard().await;
    for tollgate in &world.tollgates {
        let _ = tollgate.lock().await.kill_hard().await;
    }
    if failures.is_empty() {
        return Ok(Report { seed: round.seed, figures, failures, kept: None });
    }
    keep(&world, dir.path())?;
    Ok(Report { seed: round.seed, figures, failures, kept: Some(dir.keep()) })
}

/// Leaves everything that tells what happened in the folder.
fn keep(world: &World, dir: &Path) -> Result<()> {
    std::fs::write(dir.join("timeline.txt"), world.record.timeline())?;
    let submissions = world.record.submissions();
    let lines: Vec<String> = submissions
        .iter()
        .enumerate()
        .map(|(number, submission)| {
            let uncertain = world.record.uncertain(submission);
            let (sub, sent) = (&world.people[submission.person].sub, submission.sent_at);
            let (status, workflow) = (submission.answered.map(|(_, status)| status), &submission.workflow);
            format!("{number} {sub} {sent} {status:?} {workflow:?} {uncertain:?}\n")
        })
        .collect();
    std::fs::write(dir.join("submissions.txt"), lines.concat())?;
    let entries: Vec<_> = world.runmesh.entries().iter().map(|entry| entry.raw.to_string() + "\n").collect();
    std::fs::write(dir.join("entries.txt"), entries.concat())?;
    // What is on it goes with it; on a folder it stays anyway.
    if let Some(disk) = &world.disk {
        disk.save(&dir.join("ledger"))?;
    }
    Ok(())
}

async fn act(world: &Arc<World>, round: &Round, random: &mut fastrand::Rng, progress: &Progress) -> Result<()> {
    progress.update(|figures| figures.phase = "raging");
    let mut actors = JoinSet::new();
    for person in 0..world.people.len() {
        actors.spawn(clients::person(world.clone(), person, random.fork()));
    }
    actors.spawn(workers::work(world.clone(), random.fork()));
    let rage = faults::rage(world, random.fork());
    let clock = async {
        let end = Instant::now() + round.length;
        while Instant::now() < end {
            sleep(Duration::from_millis(500)).await;
            observe(world, progress);
        }
        world.over.cancel();
    };
    tokio::join!(rage, clock);
    while let Some(ended) = actors.join_next().await {
        ended.context("an actor broke off")?;
    }

    progress.update(|figures| figures.phase = "healing");
    world.record.note("healed");
    world.runmesh.heal();
    world.flowmesh.heal();
    world.lum_id.heal();
    shared::all_serve(world).await?;
    clients::show_addresses(world).await;
    workers::end_everything(world, random);
    clients::look_again(world, random).await;
    quiet(world, round.patience, progress).await?;
    let calm = world.floor.is_calm();
    compare(world, calm).await?;
    if !world.record.failures().is_empty() {
        return Ok(());
    }
    if operator::may_name_owners(&round.tollgate).await {
        progress.update(|figures| figures.phase = "attributing");
        let attributed = operator::name_owners(world, &round.tollgate).await?;
        progress.update(|figures| figures.attributed = attributed);
        if attributed > 0 {
            quiet(world, round.patience, progress).await?;
        }
    }
    stop(world).await?;
    let held = compare(world, calm).await?;
    if progress.figures().attributed > 0 && held > 0 {
        world.record.fail(format_args!("{held} workflows are held though the operator has named their owners"));
    }
    progress.update(|figures| figures.held = held);
    Ok(())
}

/// Brings the figures up to date.
fn observe(world: &World, progress: &Progress) {
    let (workflows, tasks) = (world.flowmesh.workflows().len(), world.flowmesh.tasks().len());
    let entries = world.runmesh.entries().len();
    let mut counts = world.record.counts();
    let repeats = counts.remove(REPEATS).unwrap_or_default();
    progress.update(|figures| {
        let Figures { phase, held, attributed, .. } = *figures;
        *figures = Figures { phase, workflows, tasks, entries, repeats, held, attributed, counts };
    });
}

/// Waits until everything is billed, or nothing more happens.
async fn quiet(world: &World, patience: Duration, progress: &Progress) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut still_since = Instant::now();
    let mut last = (usize::MAX, 0);
    loop {
        observe(world, progress);
        let missing = Books::of(world).missing().len();
        for tollgate in &world.tollgates {
            if tollgate.lock().await.process().exited().is_some() {
                bail!("a Tollgate has ended by itself");
            }
        }
        // Each tells of the whole ledger.
        let tollgate = world.tollgates[0].lock().await;
        let (mut work, mut held) = (0.0, 0.0);
        for metric in ["tollgate_due_tasks", "tollgate_charges_pending"] {
            work += tollgate.metric(metric).await.unwrap_or(1.0);
        }
        for metric in ["tollgate_charges_held", "tollgate_held_workflows"] {
            held += tollgate.metric(metric).await.unwrap_or(0.0);
        }
        let open = tollgate.metric("tollgate_open_workflows").await.unwrap_or(1.0);
        drop(tollgate);
        let now = (missing, world.runmesh.entries().len());
        if now != last || work > 0.0 {
            (last, still_since) = (now, Instant::now());
        }
        if missing == 0 && work == 0.0 && open == 0.0 {
            return Ok(());
        }
        let most = if held > 0.0 { HELD_FOR } else { FORGOTTEN };
        if still_since.elapsed() > most && open == 0.0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            world.record.fail(format_args!(
                "not quiet after {patience:?}: {missing} executions not billed, {work} charges and tasks to do, {open} \
                 workflows open, {held} held"
            ));
            return Ok(());
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// The last stop.
async fn stop(world: &World) -> Result<()> {
    for tollgate in &world.tollgates {
        let status = tollgate.lock().await.terminate().await?;
        if !status.success() {
            world.record.fail(format_args!("the last stop was not clean: {status}"));
        }
    }
    let left = world.ledger.replicas().await?;
    if !left.is_empty() {
        world.record.fail(format_args!("after an orderly stop these are still said to be there: {left:?}"));
    }
    for violation in world.lum_id.violations().into_iter().chain(world.runmesh.violations()) {
        world.record.fail(format_args!("against the contract: {violation}"));
    }
    Ok(())
}

/// The books. Returns how many workflows are rightly held.
async fn compare(world: &World, calm: bool) -> Result<usize> {
    let books = Books::of(world);
    let rows = world.ledger.read().await?;
    let Held { undecidable, row_lost, wrong } = books.held(world, &rows);
    for what in books.wrong(world).into_iter().chain(wrong) {
        world.record.fail(what);
    }
    if calm && !undecidable.is_empty() {
        world
            .record
            .fail(format_args!("held, though one person alone was there when entries were lost: {undecidable:?}"));
    }
    for (state, count) in &rows.submissions {
        world.record.note(format_args!("{count} submissions are {state}"));
    }
    if !row_lost.is_empty() {
        world.record.note(format_args!("held for a row that was lost: {row_lost:?}"));
    }
    Ok(undecidable.len() + row_lost.len())
}
