//! The log: lines on standard error that are never waited for.

use std::io::IsTerminal;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Config, LogFormat};

/// Log lines that wait for standard error to take them.
const WAITING_LINES: usize = 16 * 1024;

/// The writer of the log, for as long as anything is logged. Dropping it writes what waits.
pub struct Logs {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Logs {
    /// Counts lines that nobody took in time.
    #[must_use]
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

/// Starts logging to standard error, by a thread of its own: whoever reads it may stall, and clients decide how much there is
/// to say. Lines are then dropped and counted, rather than Checks kept waiting.
///
/// # Errors
/// When a subscriber is already installed.
pub fn init_logs(config: &Config) -> Result<Logs, TryInitError> {
    // Config has parsed it before; the fallback only keeps this free of a panic.
    let filter: Targets = config.log.parse().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    // At debug sqlx prints every statement; who wants that says so.
    let filter = if config.log.contains("sqlx") { filter } else { filter.with_target("sqlx", tracing::Level::WARN) };
    let (stderr, writer) =
        NonBlockingBuilder::default().buffered_lines_limit(WAITING_LINES).lossy(true).finish(std::io::stderr());
    let dropped = stderr.error_counter();
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Text => {
            registry.with(fmt::layer().with_writer(stderr).with_ansi(std::io::stderr().is_terminal())).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(stderr)).try_init(),
    }?;
    // By the same way: the default writes to standard error itself, and a panicking worker would wait for its reader.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(Logs { _writer: writer, dropped })
}
