//! A round on a thread and, as far as that is allowed, in a network of its own.

use std::thread;

use anyhow::{Context as _, Result, bail};
use tokio::{runtime, sync::oneshot};
use tokio_util::sync::CancellationToken;

use super::{Progress, Report, Round, play};
use crate::stack::leave_for_hub;

/// As [`play`], until the stop: then everything that runs is killed. Where this is not root, nothing is cut.
///
/// # Errors
/// As [`play`]; also at the stop.
pub async fn play_apart(round: Round, progress: Progress, stop: CancellationToken) -> Result<Report> {
    let (over, end) = oneshot::channel();
    let name = format!("seed {}", round.seed);
    // Who waits may go away; the thread ends at the stop all the same.
    thread::Builder::new()
        .name(name)
        .spawn(move || drop(over.send(play_here(round, &progress, &stop))))
        .context("no thread for the round")?;
    end.await.context("the round broke off")?
}

fn play_here(mut round: Round, progress: &Progress, stop: &CancellationToken) -> Result<Report> {
    if round.uncut.is_none()
        && let Err(error) = leave_for_hub()
    {
        round.uncut = Some(format!("{error:#}"));
    }
    // Its threads, and so its processes, are where this one is.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            report = play(&round, progress) => report,
            () = stop.cancelled() => bail!("stopped"),
        }
    })
}
