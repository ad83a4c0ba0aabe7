//! One call for all who ask for the same thing at the same time.
//!
//! A call runs in a task of its own, so whoever goes away takes nobody with it, not even the one who started it. Calls of
//! different keys never wait for each other, but for a place among those that may be in flight at once. Nobody waits long
//! for a place, and a call that has one has its whole time: a queue in which calls begin with what is left of their time
//! would, once it is full, cut all of them off and never get empty again. So many may wait and no more: callers that
//! leave at once could else pile them up. Nothing is remembered here: who wants to keep an answer does so in the moment it
//! lands, and is not asked when the call was forgotten meanwhile.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::telemetry::traces::Around;
use crate::upstream::CallError;

/// How much longer than the time limit of its HTTP client a call gets: the client's error says more.
pub const GRACE: Duration = Duration::from_millis(200);

/// What a call came to.
pub type Answer<T> = Result<T, Arc<CallError>>;

/// How many and how long.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Calls in flight at once, beside the reserved ones.
    pub in_flight: usize,
    /// Calls in flight at once at [`Place::Reserved`].
    pub reserved: usize,
    /// Calls that wait for their place, at most, but for the reserved ones.
    pub waiting: usize,
    /// For a call to get its place.
    pub wait: Duration,
    /// For a call that has its place.
    pub limit: Duration,
}

/// Where a call gets its place from.
#[derive(Debug, Clone)]
pub enum Place {
    Any,
    /// One of those that only such calls take.
    Reserved,
    /// Any, within the share of whoever asks, so that nobody takes all of them.
    Share(Arc<Share>),
}

/// What one of those who ask may take.
#[derive(Debug)]
pub struct Share {
    places: Semaphore,
    /// For places of the share, which others have no part in.
    waiting: AtomicUsize,
    most_waiting: usize,
}

impl Share {
    /// So many places, and four times as many calls that wait for one of them.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self { places: Semaphore::new(places), waiting: AtomicUsize::new(0), most_waiting: places.saturating_mul(4) }
    }

    async fn acquire(&self, until: Instant) -> Result<SemaphorePermit<'_>, CallError> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let place = if self.waiting.fetch_add(1, Ordering::Relaxed) < self.most_waiting {
            timeout_at(until, self.places.acquire()).await.ok().and_then(Result::ok)
        } else {
            None
        };
        // The task of a call runs to its end, so this is always reached.
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        place.ok_or(CallError::OverShare)
    }
}

/// The calls of one kind. Cheap to clone.
#[derive(Debug)]
pub struct Flights<K, T> {
    shared: Arc<Shared<K, T>>,
}

#[derive(Debug)]
struct Shared<K, T> {
    under_way: Mutex<UnderWay<K, T>>,
    places: Semaphore,
    reserved: Semaphore,
    bounds: Bounds,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct UnderWay<K, T> {
    calls: HashMap<K, Call<T>>,
    started: u64,
}

#[derive(Debug)]
struct Call<T> {
    /// Tells a call from a later one of the same key.
    number: u64,
    answer: watch::Receiver<Option<Answer<T>>>,
}

/// A wait for an answer.
#[derive(Debug)]
pub struct Ticket<T> {
    answer: watch::Receiver<Option<Answer<T>>>,
    /// Whether the call was begun for who holds this.
    pub is_own: bool,
}

/// What [`Flights::join`] found.
#[derive(Debug)]
pub enum Joined<T> {
    /// It had just become known.
    Known(T),
    Waits(Ticket<T>),
}

impl<K, T> Clone for Flights<K, T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let under_way = Mutex::new(UnderWay { calls: HashMap::new(), started: 0 });
        let places = Semaphore::new(bounds.in_flight);
        let reserved = Semaphore::new(bounds.reserved);
        Self { shared: Arc::new(Shared { under_way, places, reserved, bounds, tasks: TaskTracker::new() }) }
    }

    /// Joins the call for `key` that is under way, or starts one. Between the two `known` is asked: a call may have landed
    /// since the caller looked. `call` begins once there is a place for it; `keep` sees its answer before anybody else.
    pub fn join<F>(
        &self,
        key: K,
        place: Place,
        known: impl FnOnce() -> Option<T>,
        call: impl FnOnce() -> F + Send + 'static,
        keep: impl FnOnce(&Answer<T>) + Send + 'static,
    ) -> Joined<T>
    where
        F: Future<Output = Result<T, CallError>> + Send,
    {
        let mut under_way = self.shared.lock();
        if let Some(call) = under_way.calls.get(&key) {
            return Joined::Waits(Ticket { answer: call.answer.clone(), is_own: false });
        }
        if let Some(known) = known() {
            return Joined::Known(known);
        }
        // Forgotten calls are not in the map and yet under way. The reserved ones are few by themselves.
        let most = self.shared.bounds.in_flight + self.shared.bounds.reserved + self.shared.bounds.waiting;
        if self.shared.tasks.len() >= most && !matches!(place, Place::Reserved) {
            let (_, answer) = watch::channel(Some(Err(Arc::new(CallError::Busy))));
            return Joined::Waits(Ticket { answer, is_own: true });
        }
        under_way.started += 1;
        let number = under_way.started;
        let (sender, answer) = watch::channel(None);
        under_way.calls.insert(key.clone(), Call { number, answer: answer.clone() });
        drop(under_way);

        let landing = Landing { shared: self.shared.clone(), key, number };
        // It is part of what its first caller is part of.
        let around = Around::here();
        self.shared.tasks.spawn(async move {
            let answer = around.run(landing.shared.run(place, call)).await.map_err(Arc::new);
            landing.land(|| keep(&answer));
            // Nobody may be waiting any more.
            let _ = sender.send(Some(answer));
        });
        Joined::Waits(Ticket { answer, is_own: true })
    }

    /// Whoever asks from now on gets a new call, and the answers of these are kept by nobody; who waits for them still
    /// gets them. `None`: all of them.
    pub fn forget(&self, key: Option<&K>) {
        let mut under_way = self.shared.lock();
        match key {
            Some(key) => drop(under_way.calls.remove(key)),
            None => under_way.calls.clear(),
        }
    }

    /// Calls in flight, and calls that wait for a place.
    #[must_use]
    pub fn figures(&self) -> (usize, usize) {
        let free = self.shared.places.available_permits() + self.shared.reserved.available_permits();
        let in_flight = (self.shared.bounds.in_flight + self.shared.bounds.reserved).saturating_sub(free);
        (in_flight, self.shared.tasks.len().saturating_sub(in_flight))
    }
}

impl<T: Clone> Ticket<T> {
    /// Waits for the answer, no longer than the time limits of the call.
    ///
    /// # Errors
    /// What went wrong with the call.
    pub async fn answer(mut self) -> Answer<T> {
        match self.answer.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(answer)) => answer.clone(),
            // Its task panicked, or the process is ending.
            _ => Err(Arc::new(CallError::Aborted)),
        }
    }
}

impl<K, T> Shared<K, T> {
    fn lock(&self) -> MutexGuard<'_, UnderWay<K, T>> {
        // Whatever panicked under the lock, the map is whole.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<F>(&self, place: Place, call: impl FnOnce() -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let until = Instant::now() + self.bounds.wait;
        let _share = match &place {
            Place::Share(share) => Some(share.acquire(until).await?),
            Place::Any | Place::Reserved => None,
        };
        let places = if matches!(place, Place::Reserved) { &self.reserved } else { &self.places };
        let Ok(Ok(_place)) = timeout_at(until, places.acquire()).await else { return Err(CallError::Busy) };
        timeout_at(Instant::now() + self.bounds.limit, call()).await.unwrap_or(Err(CallError::Timeout))
    }
}

/// Takes a call off the list, however it ends.
struct Landing<K: Eq + Hash, T> {
    shared: Arc<Shared<K, T>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, T> Landing<K, T> {
    /// `keep` runs under the lock, so that nobody can find the call gone and its answer not kept yet.
    fn land(self, keep: impl FnOnce()) {
        let mut under_way = self.shared.lock();
        if self.remove_from(&mut under_way) {
            keep();
        }
    }

    /// Whether it was still there.
    fn remove_from(&self, under_way: &mut UnderWay<K, T>) -> bool {
        let is_this = under_way.calls.get(&self.key).is_some_and(|call| call.number == self.number);
        if is_this {
            under_way.calls.remove(&self.key);
        }
        is_this
    }
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        let shared = self.shared.clone();
        self.remove_from(&mut shared.lock());
    }
}

#[cfg(test)]
mod tests;
