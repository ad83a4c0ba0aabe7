//! `tollgate ledger retry`.

use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;

use super::{PAGE, text};
use crate::ledger::books::{Books, ChargeState, Retried, Retry};

/// Between two parts of a large retry.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Tasks whose charges are tried again
    #[arg(value_name = "TASK", conflicts_with_all = ["rejected", "all"])]
    tasks: Vec<String>,
    /// All that Runmesh refused
    #[arg(long, conflicts_with = "all")]
    rejected: bool,
    /// Those, and all that wait for their next try
    #[arg(long)]
    all: bool,
}

pub async fn run(flags: &Flags, books: &dyn Books, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let (mut retried, mut left) = (0, Vec::new());
    let many = match (flags.rejected, flags.all) {
        (true, _) => Some(Retry::Rejected),
        (_, true) => Some(Retry::All),
        _ if flags.tasks.is_empty() => bail!("retry: which charges? Name tasks, or say --rejected or --all"),
        _ => None,
    };
    // Whoever reads may have seen enough; what was asked for is done all the same.
    let mut tell = |charge: &Retried| {
        let principal = text::plain(charge.principal_id.as_deref().unwrap_or("-"));
        let was = if charge.from == ChargeState::Rejected { "was rejected" } else { "was waiting" };
        let _ = writeln!(out, "{}  ${} of {principal}  {was}, is pending", text::plain(&charge.task_id), charge.cost);
    };
    if let Some(which) = many {
        // Each one once: what Runmesh refuses again meanwhile is not tried for ever.
        let mut after = i64::MIN;
        loop {
            let part = books.retry(which, after, now, PAGE).await?;
            let Some(last) = part.last() else { break };
            after = last.number;
            retried += part.len() as u64;
            part.iter().for_each(&mut tell);
            // `serve` writes, too, and SQLite lets nobody in whom it finds waiting.
            tokio::time::sleep(PAUSE).await;
        }
    }
    for task in &flags.tasks {
        if let Some(charge) = books.retry(Retry::Task(task), i64::MIN, now, 1).await?.first() {
            retried += 1;
            tell(charge);
        } else {
            left.push(format!("{}: {}", text::plain(task), why_not(task, books, now).await?));
        }
    }
    if retried > 0 || left.is_empty() {
        writeln!(
            out,
            "{} to be posted within ten seconds where `tollgate serve` runs. No money moves twice: Runmesh takes each task once.",
            text::count(retried, "charge")
        )?;
    }
    if !left.is_empty() {
        out.flush()?;
        bail!("not tried again: {}", left.join("; "));
    }
    Ok(())
}

async fn why_not(task: &str, books: &dyn Books, now: Timestamp) -> anyhow::Result<String> {
    let Some(charge) = books.charge(task).await? else { return Ok("there is no charge for it".to_owned()) };
    Ok(match charge.state {
        ChargeState::Posted => "Runmesh has it already".to_owned(),
        ChargeState::Held => match charge.workflow_id {
            Some(workflow) => {
                format!("it is held; `tollgate ledger attribute {} PRINCIPAL` says whose it is", text::plain(&workflow))
            }
            None => "it is held, and of no workflow that could have an owner".to_owned(),
        },
        ChargeState::Pending if charge.leased_until > now => "it is being posted at this moment".to_owned(),
        ChargeState::Pending | ChargeState::Rejected => "it is about to be posted anyway".to_owned(),
    })
}
