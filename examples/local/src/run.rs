//! `tollgate-local run`: everything up until Ctrl-C, with a running account.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use tollgate_local::stack::{Stack, StackOptions};

use crate::{
    RunOptions,
    account::{Account, Printer, Render, Source, envoy_line, tollgate_line},
    intro,
    stop::Stop,
};

/// How the running time ended.
enum End {
    Asked,
    Died,
}

/// Runs until asked to stop, or until something dies.
pub async fn run(options: RunOptions) -> Result<ExitCode> {
    let ports = options.ports();
    ports.check()?;
    let mut stop = Stop::listen()?;
    let printer = Printer::new();
    // Removed when dropped, at the end of this function.
    let (dir, _temporary) = folder(options.dir.clone())?;
    let mut account = Account::new();
    let start = Stack::start(StackOptions {
        tollgate: options.binaries.tollgate()?,
        envoy: options.binaries.envoy()?,
        ports,
        dir: dir.clone(),
        settings: vec![("TOLLGATE_LOG", "info,tollgate::authz=debug".to_owned())],
        tollgate_output: Some(account.output(Source::Tollgate, tollgate_line)),
        envoy_output: Some(account.output(Source::Envoy, envoy_line)),
    });
    let stack = tokio::select! {
        started = start => started?,
        () = stop.asked() => {
            printer.line(Source::Local, "stopped before everything was up");
            return Ok(ExitCode::FAILURE);
        }
    };
    account.follow(&stack);
    intro::print(printer, &stack);
    if options.dir.is_some() {
        printer.line(Source::Local, format_args!("ledger and bootstrap are kept in {}", dir.display()));
    }
    // Nobody needs to read how everything started; only what was wrong with it.
    for (source, line) in account.waiting() {
        if source == Source::Tollgate && line.starts_with(['W', 'E']) {
            printer.line(source, line);
        }
    }

    let end = loop {
        tokio::select! {
            line = account.next() => if let Some((source, line)) = line && !printer.line(source, line) {
                // Nobody reads this any more, as after `tollgate-local run | head`.
                break End::Asked;
            },
            () = stop.asked() => break End::Asked,
            _ = stack.first_to_end() => break End::Died,
        }
    };
    let code = match end {
        End::Asked => {
            printer.line(
                Source::Local,
                "stopping in order, which takes some seconds: Envoy drains, Tollgate posts what is due",
            );
            ExitCode::SUCCESS
        }
        End::Died => {
            for (source, line) in account.waiting() {
                printer.line(source, line);
            }
            explain(printer, &stack);
            ExitCode::FAILURE
        }
    };
    let stopped = {
        let stopping = stack.stop();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                result = &mut stopping => break Some(result),
                line = account.next() => if let Some((source, line)) = line {
                    printer.line(source, line);
                },
                () = stop.asked() => break None,
            }
        }
    };
    if let Some(result) = stopped {
        result?;
    } else {
        printer.line(Source::Local, "asked again: killing what is left");
        stack.kill_hard().await;
        return Ok(ExitCode::FAILURE);
    }
    for (source, line) in account.waiting() {
        printer.line(source, line);
    }
    printer.line(Source::Local, "stopped: no process and no socket is left");
    Ok(code)
}

/// Says what has died, how, and what it said last.
fn explain(printer: Printer, stack: &Stack) {
    let processes: [(_, _, Render); 2] = [
        (Source::Tollgate, stack.tollgate.process(), tollgate_line),
        (Source::Envoy, stack.envoy.process(), envoy_line),
    ];
    for (source, process, render) in processes {
        let Some(status) = process.exited() else { continue };
        let lines: Vec<_> = process.lines().iter().filter_map(|line| render(line)).collect();
        printer.line(Source::Local, format_args!("{} has ended by itself, {status}; its last lines:", process.name()));
        for line in &lines[lines.len().saturating_sub(5)..] {
            printer.line(source, format_args!("  {line}"));
        }
        if lines.is_empty() {
            printer.line(source, "  (none)");
        }
    }
    printer.line(Source::Local, "stopping the rest");
}

/// The folder that was named, made if need be, or a temporary one.
fn folder(named: Option<PathBuf>) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(dir) = named {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok((dir, None))
    } else {
        let temporary = tempfile::Builder::new().prefix("tollgate-").tempdir().context("no temporary folder")?;
        Ok((temporary.path().to_owned(), Some(temporary)))
    }
}
