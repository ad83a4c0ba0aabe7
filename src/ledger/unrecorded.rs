//! Submissions that went through without a row.
//!
//! When the ledger does not commit, Check lets a submission through and its row follows later, from memory. Until it has,
//! an owner must not be found by elimination: who is missing may be the one. And when the process dies before, nobody
//! knows any more who is missing; so the times are kept in a small file beside the ledger, whose blocks are there from
//! the beginning: it can be written when the disk is full. What it holds at the next start becomes a gap in the ledger,
//! and workflows of that time are held rather than matched.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::Ledger;
use crate::lifecycle::TaskError;

/// Between two tries to write a gap into the ledger.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a submission waits for the file; Envoy waits for the whole Check, and not for ever.
const PATIENCE: Duration = Duration::from_millis(200);

/// From when to when.
pub type Span = (Timestamp, Timestamp);

/// What is missing in the ledger. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Unrecorded(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Never locked over a write: those who look must not wait for the disk.
    state: Mutex<State>,
    /// Absent where there is none, or where it could not be made.
    file: Option<Mutex<File>>,
}

#[derive(Debug, Default)]
struct State {
    /// Rows that are on their way.
    pending: usize,
    /// When these, and those that will never come, were let through.
    span: Option<Span>,
    /// Some will never come.
    lost: bool,
    /// When submissions were let in of which it is not known yet whether they get their row.
    opening: BTreeMap<u64, Timestamp>,
    opened: u64,
}

/// A submission that is about to get its row, or to go through without one.
#[derive(Debug)]
pub struct Opening {
    of: Unrecorded,
    number: u64,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.of.state().opening.remove(&self.number);
    }
}

impl Unrecorded {
    /// Reads what an earlier process left in the file beside the ledger at `path`, and makes it if need be. Says whether it was
    /// there: then what it holds is all that was missing.
    #[must_use]
    pub fn open(path: &Path) -> (Self, bool) {
        let name = beside(path);
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&name);
        let ready = opened.and_then(|file| {
            let mut bytes = [0; 16];
            let was_there = file.read_exact_at(&mut bytes, 0).is_ok();
            let left = if was_there { span(bytes) } else { None };
            if left.is_none() {
                // Its place on the disk is taken now, and not when there is none.
                file.write_all_at(&[0; 16], 0)?;
                file.sync_all()?;
            }
            Ok((file, left, was_there))
        });
        match ready {
            Ok((file, left, was_there)) => {
                let state = State { span: left, lost: left.is_some(), ..State::default() };
                (Self(Arc::new(Inner { state: Mutex::new(state), file: Some(Mutex::new(file)) })), was_there)
            }
            Err(error) => {
                tracing::error!(%error, "cannot use {}: a kill while the disk is full may lose whose a workflow is", name.display());
                (Self::default(), false)
            }
        }
    }

    /// A submission is let in. What this returns is dropped when it has its row, or is told to [`Self::begin`].
    #[must_use]
    pub fn opening(&self, at: Timestamp) -> Opening {
        let mut state = self.state();
        let number = state.opened;
        state.opened += 1;
        state.opening.insert(number, at);
        Opening { of: self.clone(), number }
    }

    /// Up to when everything that was let through has its row: now, or before the first that has none.
    #[must_use]
    pub fn recorded_until(&self) -> Timestamp {
        let state = self.state();
        let missing = state.span.filter(|_| state.pending > 0 || state.lost).map(|(since, _)| since);
        let first = state.opening.values().copied().chain(missing).min();
        first.map_or_else(Timestamp::now, |first| first - SignedDuration::from_millis(1))
    }

    /// A submission goes through without a row, which follows: [`Self::recorded`] or [`Self::lost`] must be called once for it,
    /// so nobody may give this up half-way. Durable when it returns.
    pub async fn begin(&self, at: Timestamp) {
        {
            let mut state = self.state();
            state.pending += 1;
            state.span = Some(state.span.map_or((at, at), |(since, until)| (since.min(at), until.max(at))));
        }
        // A disk in trouble may take its time; the submission does not wait for ever.
        match tokio::time::timeout(PATIENCE, self.write()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot note that a submission has no row: {error}"),
            Err(_) => tracing::error!("cannot note in time that a submission has no row"),
        }
    }

    /// Its row is there.
    pub fn recorded(&self) {
        let mut state = self.state();
        state.pending = state.pending.saturating_sub(1);
    }

    /// Its row will never come.
    pub fn lost(&self) {
        let mut state = self.state();
        state.pending = state.pending.saturating_sub(1);
        state.lost = true;
    }

    /// Whether a submission may be missing of which the ledger does not know that it is.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        let state = self.state();
        state.pending > 0 || state.lost
    }

    /// Writes into the ledger what will never come, and empties the file when all of it has, until the stop.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep(self, ledger: Arc<dyn Ledger>, stop: CancellationToken) -> Result<(), TaskError> {
        loop {
            if let Some((since, until)) = self.lost_span() {
                match ledger.note_gap(since, until).await {
                    Ok(()) => {
                        tracing::warn!(
                            "submissions from {since} to {until} may be missing: workflows of that time that no log entry \
                             tells of are held"
                        );
                        self.noted((since, until));
                    }
                    Err(error) => tracing::error!(%error, "cannot note a gap in the ledger: {error}"),
                }
            }
            if self.is_over()
                && let Err(error) = self.write().await
            {
                // A start too many is then careful.
                tracing::error!(%error, "cannot empty the file of submissions without a row: {error}");
            }
            if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// What will never come, however many others are still on their way.
    fn lost_span(&self) -> Option<Span> {
        let state = self.state();
        state.span.filter(|_| state.lost)
    }

    /// The ledger knows of a span; what was let through meanwhile it does not know.
    fn noted(&self, span: Span) {
        let mut state = self.state();
        state.lost = state.span != Some(span);
    }

    /// Whether nothing is missing any more, of which the file does not know yet.
    fn is_over(&self) -> bool {
        let mut state = self.state();
        let over = state.pending == 0 && !state.lost && state.span.is_some();
        if over {
            state.span = None;
        }
        over
    }

    /// Writes what is missing now.
    async fn write(&self) -> std::io::Result<()> {
        let this = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let Some(file) = &this.0.file else { return Ok(()) };
            let file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // Looked at once it is our turn: whoever writes last writes what is true last.
            let span = this.state().span;
            let (since, until) = span.map_or((0, 0), |(since, until)| (since.as_millisecond(), until.as_millisecond()));
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&since.to_le_bytes());
            bytes[8..].copy_from_slice(&until.to_le_bytes());
            file.write_all_at(&bytes, 0)?;
            file.sync_data()
        });
        written.await.map_err(std::io::Error::other)?
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the file beside the ledger at `path` holds, which is left as it is.
///
/// # Errors
/// When it is there and cannot be read.
pub fn left(path: &Path) -> std::io::Result<Option<Span>> {
    let mut bytes = [0; 16];
    match File::open(beside(path)).and_then(|file| file.read_exact_at(&mut bytes, 0)) {
        Ok(()) => Ok(span(bytes)),
        // Not there, or not made to its end: nothing was missing yet.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(None),
        Err(error) => Err(error),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gap");
    PathBuf::from(name)
}

fn span(bytes: [u8; 16]) -> Option<Span> {
    let number = |half: &[u8]| Some(i64::from_le_bytes(half.try_into().ok()?)).filter(|ms| *ms != 0);
    let at = |half: &[u8]| Timestamp::from_millisecond(number(half)?).ok();
    Some((at(&bytes[..8])?, at(&bytes[8..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("valid")
    }

    fn left(path: &Path) -> Option<Span> {
        super::left(path).expect("readable")
    }

    #[tokio::test]
    async fn what_is_missing_is_remembered_by_the_next_process_until_it_is_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("ledger.db");
        let unrecorded = Unrecorded::open(&path).0;
        assert!(!unrecorded.is_uncertain());
        unrecorded.begin(at(5)).await;
        unrecorded.begin(at(2)).await;
        assert!(unrecorded.is_uncertain());
        assert_eq!(left(&path), Some((at(2), at(5))), "as after a kill");
        unrecorded.recorded();
        assert!(unrecorded.is_uncertain());
        unrecorded.recorded();
        assert!(!unrecorded.is_uncertain());
        assert!(unrecorded.is_over());
        unrecorded.write().await.expect("written");
        assert_eq!(left(&path), None);
    }

    #[tokio::test]
    async fn what_gets_lost_while_a_gap_is_noted_is_a_gap_of_its_own() {
        let unrecorded = Unrecorded::default();
        unrecorded.begin(at(2)).await;
        unrecorded.lost();
        let span = unrecorded.lost_span().expect("lost");
        unrecorded.begin(at(9)).await;
        unrecorded.lost();
        unrecorded.noted(span);
        assert_eq!(unrecorded.lost_span(), Some((at(2), at(9))));
        unrecorded.noted((at(2), at(9)));
        assert!(!unrecorded.is_uncertain() && unrecorded.is_over());
    }

    #[tokio::test]
    async fn what_will_never_come_becomes_a_gap_in_the_ledger() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("ledger.db");
        let ledger: Arc<dyn Ledger> =
            Arc::new(super::super::sqlite::SqliteLedger::open(&path, at(0)).await.expect("opens"));
        // Of a process that was killed, and of this one.
        Unrecorded::open(&path).0.begin(at(2)).await;
        let unrecorded = Unrecorded::open(&path).0;
        unrecorded.begin(at(5)).await;
        unrecorded.lost();
        assert!(unrecorded.is_uncertain());
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(unrecorded.clone().keep(ledger.clone(), stop.clone()));
        while unrecorded.is_uncertain() || left(&path).is_some() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        keeping.await.expect("no panic").expect("an orderly end");
        let in_gap = async |from: i64, to: i64| ledger.has_gap(at(from), at(to)).await.expect("read");
        assert!(in_gap(3, 4).await && in_gap(5, 9).await && in_gap(-9, 2).await);
        assert!(!in_gap(6, 9).await && !in_gap(-9, 1).await);
        assert_eq!(left(&path), None);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_reason_not_to_start() {
        assert!(!Unrecorded::open(Path::new("/proc/no/such/ledger.db")).0.is_uncertain());
    }
}
