//! `make bench`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tollgate_benches::{
    capture,
    context::Context,
    message,
    report::{self, Report},
    run,
    section::Section,
    sections,
};

/// Measures what Tollgate costs, and writes it down.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Measure only this section, and write nothing unless --output says where; may be repeated
    #[arg(long, value_name = "SECTION")]
    only: Vec<String>,
    /// How often to measure everything
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: u16,
    /// See whether everything works, in a minute: what is measured means nothing, and nothing is written unless --output says where
    #[arg(long)]
    quick: bool,
    /// Where to write PERFORMANCE.md and performance.json [default: docs]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Only list the sections
    #[arg(long)]
    list: bool,
    #[command(subcommand)]
    instead: Option<Instead>,
}

/// What else there is to do.
#[derive(Subcommand)]
enum Instead {
    /// Write the messages in benches/data anew: the Check and the log entries that the reference Envoy sends
    Capture,
    /// Write docs/PERFORMANCE.md anew from docs/performance.json, when only the layout has changed
    Render,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = async {
        let cli = Cli::parse();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // What is dropped takes its child processes with it.
        tokio::select! {
            done = bench(cli) => done,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    };
    match done.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollgate-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(cli: Cli) -> Result<()> {
    if cli.list {
        for section in sections::ALL {
            println!("{:12} {} (at most {} s)", section.name, section.title, section.budget.as_secs());
        }
        return Ok(());
    }
    if let Some(Instead::Render) = cli.instead {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let text = std::fs::read_to_string(docs.join(report::JSON)).context("there are no figures")?;
        return write(&Report::from_json(&text)?, &docs);
    }
    let sections = match sections::named(&cli.only) {
        Ok(sections) => sections,
        Err(unknown) => bail!("there is no section {unknown}: --list shows all"),
    };
    // Which cargo would have to build first.
    let slow = |section: &Section| cli.quick && cli.only.is_empty() && section.name == "stages";
    let sections: Vec<_> = sections.into_iter().filter(|section| !slow(section)).collect();
    let rounds = if cli.quick { 1 } else { usize::from(cli.rounds) };
    let context = Context::new(rounds, cli.quick).await?;
    if let Some(Instead::Capture) = cli.instead {
        message::capture(&context).await?;
        return capture::log_entries(&context).await;
    }
    let report = run::run(&context, &sections).await?;
    let output = match cli.output {
        Some(output) => Some(output),
        None if cli.quick || !cli.only.is_empty() => None,
        None => Some(context.root.join("docs")),
    };
    print!("{}", report.to_text());
    if let Some(output) = output {
        write(&report, &output)?;
    }
    Ok(())
}

fn write(report: &Report, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in [(report::JSON, report.to_json()?), (report::MARKDOWN, report.to_markdown())] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
