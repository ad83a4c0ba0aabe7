//! `tollgate ledger …`: the operator's view of the ledger, and the moves that only a person may make.
//!
//! It works on the ledger beside a `serve` that may be running, and needs no other setting. E-mail addresses are personal data
//! and not needed for looking after charges: they are left out unless `--emails` asks for them.

mod attribute;
mod export;
mod list;
mod migrate;
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
    #[command(flatten)]
    LookAfter(LookAfter),
    /// Move a SQLite ledger into the PostgreSQL that `TOLLGATE_LEDGER` names
    ///
    /// Stop `tollgate serve` first, and start it with `TOLLGATE_LEDGER=postgres://…` when this has ended. Until then neither of
    /// the two ledgers can be used. What is killed goes on where it was when it is started again.
    ///
    /// The source keeps all it has, and is marked: no `serve` starts on it any more, so that nothing is billed from two
    /// ledgers. `sqlite3 PATH 'DELETE FROM moved'` takes the mark away, once no Tollgate uses the other one.
    MigrateFrom(migrate::Flags),
}

/// What works on the ledger as it is.
#[derive(Debug, clap::Subcommand)]
pub enum LookAfter {
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
    let (now, mut out) = (Timestamp::now(), BufWriter::new(io::stdout()));
    let result = match command {
        Command::MigrateFrom(flags) => migrate::run(&flags, store, now, &mut out).await,
        Command::LookAfter(command) => with_books(command, store, now, &mut out).await,
    };
    let result = result.and_then(|()| Ok(out.flush()?));
    match result {
        // Whoever reads has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(ExitCode::SUCCESS)
        }
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

/// Runs a command on the ledger as it is.
async fn with_books(command: LookAfter, store: &Store, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let books: Box<dyn Books> = match store {
        Store::Sqlite(path) => Box::new(SqliteBooks::open(path).await?),
        Store::Postgres(database) => Box::new(PostgresBooks::open(database).await?),
    };
    let books = &*books;
    let result = match command {
        LookAfter::Status(flags) => status::run(&flags, books, store, now, out).await,
        LookAfter::List(flags) => list::run(&flags, books, out).await,
        LookAfter::Show(flags) => show::run(&flags, books, out).await,
        LookAfter::Retry(flags) => retry::run(&flags, books, now, out).await,
        LookAfter::Attribute(flags) => attribute::run(&flags, books, now, out).await,
        LookAfter::Export(flags) => export::run(&flags, books, now, out).await,
    };
    books.close().await;
    result
}
