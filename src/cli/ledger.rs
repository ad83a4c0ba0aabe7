//! `tollgate ledger …`: the operator's view of the ledger, and the moves that only a person may make.
//!
//! It works on the ledger beside a `serve` that may be running, and needs no other setting. E-mail addresses are personal data
//! and not needed for looking after charges: they are left out unless `--emails` asks for them.

mod attribute;
mod export;
mod list;
mod record;
mod retry;
mod show;
mod status;
mod text;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use jiff::Timestamp;

use crate::config::Store;
use crate::ledger::books::Books;
use crate::ledger::postgres::PostgresBooks;
use crate::ledger::sqlite::SqliteBooks;

/// Rows read from the ledger at once.
const PAGE: u32 = 1000;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// How many of everything, since when, and how much money
    Status(status::Flags),
    /// Charges, the newest first; or workflows that nobody owns
    List(list::Flags),
    /// All that is known of a task or a workflow
    Show(show::Flags),
    /// Put charges up for posting again. Money cannot move twice: Runmesh takes each task once
    Retry(retry::Flags),
    /// Say whose a workflow is that nobody owns; its held charges go out
    Attribute(attribute::Flags),
    /// What was posted in a period, with totals, to compare with Runmesh
    Export(export::Flags),
}

/// Runs a command on a ledger.
///
/// # Errors
/// What the operator has to know, as one line.
pub async fn run(command: Command, store: &Store) -> anyhow::Result<ExitCode> {
    let books: Box<dyn Books> = match store {
        Store::Sqlite(path) => Box::new(SqliteBooks::open(path).await?),
        Store::Postgres(database) => Box::new(PostgresBooks::open(database).await?),
    };
    let (books, now) = (&*books, Timestamp::now());
    let mut out = BufWriter::new(io::stdout());
    let result = match command {
        Command::Status(flags) => status::run(&flags, books, store, now, &mut out).await,
        Command::List(flags) => list::run(&flags, books, &mut out).await,
        Command::Show(flags) => show::run(&flags, books, &mut out).await,
        Command::Retry(flags) => retry::run(&flags, books, now, &mut out).await,
        Command::Attribute(flags) => attribute::run(&flags, books, now, &mut out).await,
        Command::Export(flags) => export::run(&flags, books, now, &mut out).await,
    };
    books.close().await;
    let result = result.and_then(|()| Ok(out.flush()?));
    match result {
        // Whoever reads has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(ExitCode::SUCCESS)
        }
        result => result.map(|()| ExitCode::SUCCESS),
    }
}
