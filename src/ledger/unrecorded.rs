//! Submissions that went through without a row.
//!
//! When the ledger does not commit, Check lets a submission through and its row follows later, from memory. Until it has,
//! an owner must not be found by elimination: who is missing may be the one. And when the process dies before, nobody
//! knows any more who is missing; so the times are kept in a small file beside the ledger, whose blocks are there from
//! the beginning: it can be written when the disk is full. What it holds at the next start becomes a gap in the ledger,
//! and workflows of that time are held rather than matched.
//!
//! The first of them has the file say that others may follow, and is all that waits for the disk: when it hangs afterwards,
//! a kill loses nothing. It is written by one thread at a time, however many submissions there are, because those that a
//! hanging disk holds would be missing for the rest of the process.
//!
//! A replica's file says of which start it has all that was missing, and when it was last sure that it can be written. What
//! it cannot say is that it could not be written: one that went stale before the replica's last word remembers nothing.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Error;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::page::left;
use self::page::{Memory, Page, Place, beside};
use super::Ledger;
use crate::lifecycle::TaskError;
use crate::telemetry::Sparing;

mod page;
#[cfg(test)]
mod tests;

/// Between two tries to write a gap into the ledger, and to bring the file up to date.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a submission waits for the file; Envoy waits for the whole Check, and not for ever.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often a replica makes sure that its file can be written.
const SURE_EVERY: Duration = Duration::from_secs(10);
/// How much older than the replica's last word that may be; more, and the file could not be written before the end.
const SURE_FOR: SignedDuration = SignedDuration::from_secs(30);

/// Of submissions that could not be noted: while the disk hangs it is each.
static NOT_NOTED: Sparing = Sparing::of_work();
/// Of a file that is behind.
static BEHIND: Sparing = Sparing::new(1, Duration::from_secs(10));

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
    place: Option<Arc<dyn Place>>,
    /// How the last write ended.
    ended: watch::Sender<Ended>,
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
    /// The file is to say that others may follow.
    is_open: bool,
    /// Whose memory the file is: an earlier start's, until the others know of this one.
    memory: Option<Memory>,
    is_own: bool,
    file: Written,
}

/// How far the file is. Changes and writes have numbers that grow.
#[derive(Debug, Default)]
struct Written {
    /// The last change of what it is to say.
    changes: u64,
    /// The one since which it says that submissions of now may be missing.
    marked: u64,
    /// The last write that was begun, and the last change in it.
    begun: u64,
    includes: u64,
    /// Somebody writes, or is about to.
    is_busy: bool,
    /// When it was last sure that it can be written.
    sure: Option<Instant>,
}

#[derive(Debug, Default)]
struct Ended {
    write: u64,
    /// The last change that is on the disk.
    durable: u64,
    error: Option<Arc<Error>>,
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
    /// Reads what an earlier process left in the file beside the ledger at `path`, and makes it if need be.
    #[must_use]
    pub fn open(path: &Path, now: Timestamp) -> Self {
        let name = beside(path);
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&name);
        let unusable = |error: &Error| {
            let name = name.display();
            tracing::error!(%error, "cannot use {name}: a kill while the disk is full may lose whose a workflow is: {error}");
        };
        let (file, page, is_whole) =
            match opened.and_then(|file| Page::read(&file).map(|(page, whole)| (file, page, whole))) {
                Ok(read) => read,
                Err(error) => {
                    unusable(&error);
                    return Self::default();
                }
            };
        // Its place on the disk is taken now, and not when there is none. Without it the file may still do, later on.
        if !is_whole && let Err(error) = file.write(&page.to_bytes()).and_then(|()| file.sync_all()) {
            unusable(&error);
        }
        Self::over(Arc::new(file), page, now)
    }

    fn over(place: Arc<dyn Place>, page: Page, now: Timestamp) -> Self {
        let span = page.missing(now);
        let state = State { span, lost: span.is_some(), memory: page.memory, ..State::default() };
        Self(Arc::new(Inner { state: Mutex::new(state), place: Some(place), ended: watch::Sender::default() }))
    }

    /// Whether the file has all that was missing of a replica's start `incarnation`, whose word was last that it had recorded
    /// everything up to `recorded_until`.
    #[must_use]
    pub fn remembers(&self, incarnation: &str, recorded_until: Timestamp) -> bool {
        let state = self.state();
        let Some(memory) = state.memory.filter(|_| !state.is_own) else { return false };
        Uuid::parse_str(incarnation).is_ok_and(|it| it == memory.incarnation)
            && recorded_until.duration_since(memory.as_of) <= SURE_FOR
    }

    /// The others know of this start of a replica, and of none before it any more: from now on the file is its memory. Not
    /// earlier, so that what is found under its name and what the file says go together after a kill in between.
    pub async fn belongs_to(&self, incarnation: &str) {
        let change = {
            let mut state = self.state();
            if std::mem::replace(&mut state.is_own, true) {
                return;
            }
            let own = |incarnation| Memory { incarnation, as_of: Timestamp::now() };
            state.memory = Uuid::parse_str(incarnation).ok().map(own);
            state.file.change()
        };
        self.bring_up_to(change).await;
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
    /// so nobody may give this up half-way. Durable when it returns, unless the disk is in trouble: that is an error in the log.
    pub async fn begin(&self, at: Timestamp) {
        let marked = {
            let mut state = self.state();
            let is_marked = state.is_open && state.span.is_some_and(|(since, _)| since <= at);
            state.pending += 1;
            state.span = Some(state.span.map_or((at, at), |(since, until)| (since.min(at), until.max(at))));
            if !is_marked {
                state.is_open = true;
                state.file.marked = state.file.change();
            }
            state.file.marked
        };
        if let Err(reason) = self.written_in_time(marked).await
            && let Some(unsaid) = NOT_NOTED.say()
        {
            tracing::error!(unsaid = unsaid.count(), "cannot note that a submission has no row: {reason}{unsaid}");
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

    /// Writes into the ledger what will never come, empties the file when all of it has, and makes sure that a replica's can be
    /// written, until the stop.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep(self, ledger: Arc<dyn Ledger>, stop: CancellationToken) -> Result<(), TaskError> {
        let noting = async {
            loop {
                self.note(ledger.as_ref()).await;
                if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                    return;
                }
            }
        };
        // Waits for no ledger.
        let writing = async {
            loop {
                let change = self.due();
                self.bring_up_to(change).await;
                if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                    return;
                }
            }
        };
        tokio::join!(noting, writing);
        Ok(())
    }

    /// Empties the file when nothing is missing any more. After everything that could still bring a row has ended: what the file says then
    /// is a gap up to the next start.
    pub async fn close(&self) {
        let change = self.due();
        self.bring_up_to(change).await;
    }

    async fn note(&self, ledger: &dyn Ledger) {
        let Some((since, until)) = self.lost_span() else { return };
        match ledger.note_gap(since, until).await {
            Ok(()) => {
                tracing::warn!(
                    "submissions from {since} to {until} may be missing: workflows of that time that no log entry tells of \
                     are held"
                );
                self.noted((since, until));
            }
            Err(error) => tracing::error!(%error, "cannot note a gap in the ledger: {error}"),
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

    /// The change that the file should have by now: that nothing is missing any more, that it can be written, or the last one,
    /// when writing that failed.
    fn due(&self) -> u64 {
        let mut state = self.state();
        if state.pending == 0 && !state.lost && state.span.is_some() {
            (state.span, state.is_open) = (None, false);
            return state.file.change();
        }
        if state.is_own && state.file.sure.is_none_or(|sure| sure.elapsed() >= SURE_EVERY) {
            return state.file.change();
        }
        state.file.changes
    }

    /// Has the file say so much.
    async fn bring_up_to(&self, change: u64) {
        // Else a start too many is careful, but what is missing next may not get into it.
        if let Err(reason) = self.written_in_time(change).await
            && let Some(unsaid) = BEHIND.say()
        {
            let said = format!("the file of submissions without a row is not written: {reason}");
            tracing::error!(unsaid = unsaid.count(), "{said}{unsaid}");
        }
    }

    /// A disk in trouble may take its time; whoever has the file say something does not wait for ever.
    async fn written_in_time(&self, change: u64) -> Result<(), String> {
        match tokio::time::timeout(PATIENCE, self.written(change)).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err("the disk does not answer in time".to_owned()),
        }
    }

    /// Returns when a change is on the disk, or could not be written.
    async fn written(&self, change: u64) -> Result<(), Arc<Error>> {
        let Some(place) = &self.0.place else { return Ok(()) };
        let mut ended = self.0.ended.subscribe();
        let (awaited, begins) = {
            let mut state = self.state();
            let (last, durable) = {
                let ended = ended.borrow();
                (ended.write, ended.durable)
            };
            if durable >= change {
                return Ok(());
            }
            let file = &mut state.file;
            let begins = !std::mem::replace(&mut file.is_busy, true);
            // Who writes goes on for as long as there are changes, so the next write has this one.
            let is_under_way = last < file.begun && file.includes >= change;
            (if is_under_way { file.begun } else { file.begun + 1 }, begins)
        };
        if begins {
            let (this, place) = (self.clone(), place.clone());
            tokio::task::spawn_blocking(move || this.write_all(place.as_ref()));
        }
        let ended = ended.wait_for(|ended| ended.durable >= change || ended.write >= awaited).await;
        let ended = ended.map_err(Error::other)?;
        match &ended.error {
            Some(error) if ended.durable < change => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Writes what is so now, and again when that changed meanwhile. Never two at a time.
    fn write_all(&self, place: &dyn Place) {
        loop {
            let begun = Instant::now();
            let (page, write, change) = self.state().page();
            let error = place.write(&page.to_bytes()).err().map(Arc::new);
            let mut state = self.state();
            if error.is_none() && state.is_own {
                state.file.sure = Some(begun);
            }
            self.0.ended.send_modify(|ended| {
                let durable = if error.is_none() { change } else { ended.durable };
                *ended = Ended { write, durable, error };
            });
            if state.file.changes == change {
                state.file.is_busy = false;
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What the file is to say, with the numbers of this write and of the last change in it.
    fn page(&mut self) -> (Page, u64, u64) {
        if self.is_own
            && let Some(memory) = &mut self.memory
        {
            memory.as_of = Timestamp::now();
        }
        self.file.begun += 1;
        self.file.includes = self.file.changes;
        let page = Page { span: self.span, is_open: self.is_open, memory: self.memory };
        (page, self.file.begun, self.file.changes)
    }
}

impl Written {
    fn change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }
}
