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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

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
    /// Calls that wait for their place, at most.
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
    Share(Arc<Semaphore>),
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
        // Forgotten calls are not in the map and yet under way.
        if self.shared.tasks.len() >= self.shared.bounds.in_flight + self.shared.bounds.waiting {
            let (_, answer) = watch::channel(Some(Err(Arc::new(CallError::Busy))));
            return Joined::Waits(Ticket { answer, is_own: true });
        }
        under_way.started += 1;
        let number = under_way.started;
        let (sender, answer) = watch::channel(None);
        under_way.calls.insert(key.clone(), Call { number, answer: answer.clone() });
        drop(under_way);

        let landing = Landing { shared: self.shared.clone(), key, number };
        self.shared.tasks.spawn(async move {
            let answer = landing.shared.run(place, call).await.map_err(Arc::new);
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
            Place::Share(share) => match timeout_at(until, share.acquire()).await {
                Ok(Ok(share)) => Some(share),
                _ => return Err(CallError::OverShare),
            },
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
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    fn flights(in_flight: usize) -> Flights<&'static str, u32> {
        let (wait, limit) = (Duration::from_secs(1), Duration::from_secs(5));
        Flights::new(Bounds { in_flight, reserved: 0, waiting: 1, wait, limit })
    }

    fn waits(joined: Joined<u32>) -> Ticket<u32> {
        match joined {
            Joined::Waits(ticket) => ticket,
            Joined::Known(known) => panic!("{known} is known already"),
        }
    }

    /// Joins a call that answers when it is let.
    fn join(flights: &Flights<&'static str, u32>, key: &'static str, gate: &Arc<Notify>, answer: u32) -> Ticket<u32> {
        join_at(flights, Place::Any, key, gate, answer)
    }

    fn join_at(
        flights: &Flights<&'static str, u32>,
        place: Place,
        key: &'static str,
        gate: &Arc<Notify>,
        answer: u32,
    ) -> Ticket<u32> {
        let gate = gate.clone();
        waits(flights.join(
            key,
            place,
            || None,
            move || async move {
                gate.notified().await;
                Ok(answer)
            },
            |_| {},
        ))
    }

    #[tokio::test]
    async fn ten_thousand_who_ask_for_one_thing_make_one_call_and_its_starter_may_leave() {
        let flights = flights(4);
        let calls = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let calls = calls.clone();
            waits(flights.join(
                "a",
                Place::Any,
                || None,
                move || async move {
                    calls.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    Ok(7)
                },
                |_| {},
            ))
        };
        drop(ask());
        let tickets: Vec<_> = (1..10_000).map(|_| ask()).collect();
        for ticket in tickets {
            assert_eq!(ticket.answer().await.expect("answered"), 7);
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn different_things_do_not_wait_for_each_other_until_every_place_is_taken() {
        let flights = flights(2);
        let (never, now) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        now.notify_one();
        let _held = join(&flights, "a", &never, 1);
        assert_eq!(join(&flights, "b", &now, 2).answer().await.expect("answered"), 2);
        let _held_too = join(&flights, "b", &never, 2);
        now.notify_one();
        let mut third = Box::pin(join(&flights, "c", &now, 3).answer());
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut third).await.is_err());
        assert_eq!(flights.figures(), (2, 1));
        never.notify_one();
        assert_eq!(third.await.expect("answered"), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_its_place_only_so_long_and_says_what_it_waited_for() {
        let flights = flights(1);
        let never = Arc::new(Notify::new());
        let start = Instant::now();
        let first = join(&flights, "a", &never, 1);
        let second = join(&flights, "b", &never, 2);
        assert!(matches!(*second.answer().await.expect_err("no place"), CallError::Busy));
        assert_eq!(start.elapsed().as_secs(), 1);
        assert!(matches!(*first.answer().await.expect_err("too slow"), CallError::Timeout));
        assert_eq!(start.elapsed().as_secs(), 5);
        tokio::task::yield_now().await;
        assert_eq!(flights.figures(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_got_its_place_late_has_its_whole_time() {
        let flights = flights(1);
        let (first, second) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let before = join(&flights, "a", &first, 1);
        let late = join(&flights, "b", &second, 2);
        tokio::time::sleep(Duration::from_millis(900)).await;
        first.notify_one();
        assert_eq!(before.answer().await.expect("answered"), 1);
        tokio::time::sleep(Duration::from_millis(4900)).await;
        second.notify_one();
        assert_eq!(late.answer().await.expect("answered"), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_takes_more_than_their_share_and_none_of_the_reserved_places() {
        let (wait, limit) = (Duration::from_secs(1), Duration::from_secs(5));
        let flights = Flights::new(Bounds { in_flight: 2, reserved: 1, waiting: 9, wait, limit });
        let (never, now) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let share = Place::Share(Arc::new(Semaphore::new(1)));
        let _held = join_at(&flights, share.clone(), "a", &never, 1);
        let over = join_at(&flights, share, "b", &never, 2);
        now.notify_one();
        let other = join_at(&flights, Place::Share(Arc::new(Semaphore::new(1))), "c", &now, 3);
        assert_eq!(other.answer().await.expect("its own share"), 3);
        assert!(matches!(*over.answer().await.expect_err("too many"), CallError::OverShare));
        let _fills = join(&flights, "d", &never, 4);
        assert!(matches!(*join(&flights, "e", &never, 5).answer().await.expect_err("full"), CallError::Busy));
        now.notify_one();
        assert_eq!(join_at(&flights, Place::Reserved, "f", &now, 6).answer().await.expect("reserved"), 6);
    }

    #[tokio::test]
    async fn more_calls_than_may_wait_are_not_begun() {
        let flights = flights(1);
        let never = Arc::new(Notify::new());
        let (_first, _second) = (join(&flights, "a", &never, 1), join(&flights, "b", &never, 2));
        // Nobody waits for that one any more, and it is there all the same.
        flights.forget(Some(&"b"));
        assert!(matches!(*join(&flights, "c", &never, 3).answer().await.expect_err("too many"), CallError::Busy));
        // Who joins another's call takes no room.
        let joins = join(&flights, "a", &never, 1);
        never.notify_one();
        assert_eq!(joins.answer().await.expect("answered"), 1);
    }

    #[tokio::test]
    async fn what_is_kept_is_there_for_whoever_comes_as_the_call_lands() {
        let flights = flights(1);
        let cache = Arc::new(Mutex::new(None));
        for expected in ["call", "cache"] {
            let (reads, writes) = (cache.clone(), cache.clone());
            let known = move || *reads.lock().expect("no panic");
            let keep = move |answer: &Answer<u32>| *writes.lock().expect("no panic") = answer.as_ref().ok().copied();
            let joined = flights.join("a", Place::Any, known, || async { Ok(1) }, keep);
            match joined {
                Joined::Waits(ticket) => assert_eq!((expected, ticket.answer().await.expect("answered")), ("call", 1)),
                Joined::Known(known) => assert_eq!((expected, known), ("cache", 1)),
            }
        }
    }

    #[tokio::test]
    async fn a_forgotten_call_answers_its_own_and_nobody_after_it() {
        for key in [Some(&"a"), None] {
            let flights = flights(2);
            let (old, new) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let kept = Arc::new(AtomicUsize::new(0));
            let start = |gate: &Arc<Notify>, answer: u32| {
                let (gate, kept) = (gate.clone(), kept.clone());
                let call = move || async move {
                    gate.notified().await;
                    Ok(answer)
                };
                waits(flights.join(
                    "a",
                    Place::Any,
                    || None,
                    call,
                    move |_| {
                        kept.fetch_add(1, Ordering::SeqCst);
                    },
                ))
            };
            let before = start(&old, 1);
            flights.forget(key);
            let after = start(&new, 2);
            old.notify_one();
            assert_eq!(before.answer().await.expect("answered"), 1);
            assert_eq!(kept.load(Ordering::SeqCst), 0);
            // The end of the old one has not taken the new one off the list.
            let joined = join(&flights, "a", &Arc::new(Notify::new()), 3);
            new.notify_one();
            assert_eq!(after.answer().await.expect("answered"), 2);
            assert_eq!(joined.answer().await.expect("answered"), 2);
            assert_eq!(kept.load(Ordering::SeqCst), 1);
        }
    }

    #[tokio::test]
    async fn a_call_that_panics_is_an_error_and_in_nobodys_way() {
        let flights = flights(1);
        let call = || async { panic!("as the test wants") };
        let ticket = waits(flights.join("a", Place::Any, || None, call, |_| {}));
        assert!(matches!(*ticket.answer().await.expect_err("no answer"), CallError::Aborted));
        let now = Arc::new(Notify::new());
        now.notify_one();
        assert_eq!(join(&flights, "a", &now, 1).answer().await.expect("answered"), 1);
    }
}
