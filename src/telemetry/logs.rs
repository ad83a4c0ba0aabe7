//! The log: lines on standard error that are never waited for. `docs/LOGGING.md` says what is in them.

use std::fmt;
use std::io::IsTerminal;

use jiff::Timestamp;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Config, LogFormat};

/// Log lines that wait for standard error to take them.
const WAITING_LINES: usize = 16 * 1024;

/// The writer of the log, for as long as anything is logged. Dropping it writes what waits.
pub struct Logs {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
    filter: FilterInForce,
}

impl Logs {
    /// Counts lines that nobody took in time.
    #[must_use]
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }

    /// By which the filter is replaced.
    #[must_use]
    pub fn filter(&self) -> FilterInForce {
        self.filter.clone()
    }
}

/// The filter that lines pass, which can be replaced while they do.
#[derive(Clone)]
pub struct FilterInForce(reload::Handle<Targets, Registry>);

impl FilterInForce {
    /// Lets pass what this filter says, from now on. Config has judged it.
    pub fn replace(&self, filter: &str) {
        // It fails only when there is no log any more, and then there is nobody to tell.
        let _ = self.0.reload(targets(filter));
    }
}

/// Starts logging to standard error, by a thread of its own: whoever reads it may stall, and clients decide how much there is
/// to say. Lines are then dropped and counted, rather than Checks kept waiting.
///
/// # Errors
/// When a subscriber is already installed.
pub fn init_logs(config: &Config) -> Result<Logs, TryInitError> {
    let (filter, in_force) = reload::Layer::new(targets(&config.log.get()));
    let (stderr, writer) =
        NonBlockingBuilder::default().buffered_lines_limit(WAITING_LINES).lossy(true).finish(std::io::stderr());
    let dropped = stderr.error_counter();
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_timer(Utc).with_writer(stderr);
    match config.log_format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && !config.no_colour;
            registry.with(layer.with_ansi(colour)).try_init()
        }
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    }?;
    // By the same way: the default writes to standard error itself, and a panicking worker would wait for its reader.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(Logs { _writer: writer, dropped, filter: FilterInForce(in_force) })
}

fn targets(filter: &str) -> Targets {
    // Config has parsed it before; the fallback only keeps this free of a panic.
    let targets: Targets = filter.parse().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    // At debug sqlx prints every statement; who wants that says so.
    if filter.contains("sqlx") { targets } else { targets.with_target("sqlx", tracing::Level::WARN) }
}

/// RFC 3339 in UTC with milliseconds.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        write!(to, "{:.3}", Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_the_time_in_utc_to_the_millisecond() {
        let mut line = String::new();
        Utc.format_time(&mut Writer::new(&mut line)).expect("written");
        assert_eq!((line.len(), &line[10..11], &line[19..20], &line[23..]), (24, "T", ".", "Z"), "{line}");
        assert!(line.parse::<Timestamp>().is_ok(), "{line}");
    }

    #[test]
    fn statements_are_logged_for_who_asks_for_them_and_nobody_else() {
        let lets = |filter: &str, target: &str| targets(filter).would_enable(target, &tracing::Level::DEBUG);
        assert!(lets("debug", "tollgate::authz") && !lets("debug", "sqlx::query"));
        assert!(lets("info,sqlx=debug", "sqlx::query") && !lets("info,sqlx=debug", "tollgate"));
    }
}
