//! `tollgate ledger migrate-from`.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use jiff::Timestamp;

use super::text;
use crate::config::Store;
use crate::ledger::postgres::migrating::{Figure, Outcome, Progress, migrate};

/// Between two lines on one table.
const TELL_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// The SQLite ledger that is moved
    #[arg(value_name = "sqlite:PATH")]
    source: String,
}

pub async fn run(flags: &Flags, store: &Store, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let Store::Postgres(database) = store else {
        bail!("migrate-from: TOLLGATE_LEDGER is {store}, and has to be the postgres://… that the ledger is moved to");
    };
    let Some(path) = flags.source.strip_prefix("sqlite:").filter(|path| !path.is_empty()) else {
        bail!("migrate-from: wants the ledger that is moved, such as sqlite:tollgate.db");
    };
    let (begun, mut told) = (Instant::now(), Instant::now());
    // Whoever reads may have seen enough; what was asked for is done all the same.
    let mut tell = |line: String| {
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    };
    let outcome = migrate(Path::new(path), database, now, |progress| match progress {
        Progress::Resumed { moved } => tell(format!("{} moved before; going on", text::count(moved, "row"))),
        Progress::Rows { table, rows } => {
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(format!("{table}: {rows} so far"));
            }
        }
        Progress::Table { table, rows } => {
            told = Instant::now();
            tell(format!("{table}: {rows} moved"));
        }
        Progress::Comparing => tell("reading both ledgers to compare them".to_owned()),
    })
    .await?;
    match outcome {
        Outcome::WasDone { at, moved } => {
            let rows = text::count(moved, "row");
            writeln!(
                out,
                "{} was moved into {database} at {}, {rows}: nothing is left to do",
                flags.source,
                text::moment(at)
            )?;
        }
        Outcome::Done { moved, figures } => {
            writeln!(out, "\nin both ledgers:")?;
            text::columns(&table(&figures), &[1], out)?;
            let (rows, seconds) = (text::count(moved, "row"), begun.elapsed().as_secs());
            writeln!(
                out,
                "\n{} is moved into {database}: {rows}, {seconds} s. No `serve` starts on it any more.",
                flags.source
            )?;
        }
    }
    Ok(())
}

fn table(figures: &[Figure]) -> Vec<Vec<String>> {
    let heading = ["", "count", "US dollars"].map(str::to_owned).to_vec();
    let row = |Figure { what, rows, cost }: &Figure| {
        vec![what.clone(), rows.to_string(), cost.as_ref().map(ToString::to_string).unwrap_or_default()]
    };
    std::iter::once(heading).chain(figures.iter().map(row)).collect()
}
