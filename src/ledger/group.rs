//! Moves that wait for one writer are committed together.
//!
//! Who comes while nothing is written is written at once, and takes along whatever waits by then. So a lone move waits for
//! nobody, and under load the cost of a commit is shared by as many as came meanwhile. A move is done when its group is
//! committed: who is told so has it on the disk.
//!
//! The writing is a task of its own: a caller who goes away, as a Check does, cancels nothing of what is under way, and a move that
//! nobody waits for any more is not begun.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::Error;

/// Why a group was not committed.
#[derive(Debug)]
pub enum Failed {
    /// One of it cannot be: the others can, each by itself.
    One(Error),
    /// None of it can be now.
    All(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            error @ Error::Refused(_) => Self::One(error),
            error => Self::All(error),
        }
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Error::from(error).into()
    }
}

/// Commits moves.
pub trait Commit: Send + Sync + 'static {
    type Move: Send + Sync + 'static;
    type Moved: Send + 'static;

    /// Commits all of them in one transaction, or none; what came of each, in their order.
    ///
    /// # Errors
    /// [`Failed`].
    fn commit(&self, moves: &[Self::Move]) -> impl Future<Output = Result<Vec<Self::Moved>, Failed>> + Send;
}

type Told<S> = oneshot::Sender<Result<<S as Commit>::Moved, Error>>;
type Waiting<S> = (<S as Commit>::Move, Told<S>);
type Taken<S> = (Vec<<S as Commit>::Move>, Vec<Told<S>>);

/// How many may wait, and be committed at once.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Past it a move is refused at once, so that a store that hangs costs no more memory than that.
    pub waiting: usize,
    /// Somebody waits for the writer meanwhile.
    pub at_once: usize,
}

/// The moves of one store.
pub struct Group<S: Commit>(Arc<Inner<S>>);

struct Inner<S: Commit> {
    store: S,
    bounds: Bounds,
    queue: Mutex<Queue<S>>,
    tasks: TaskTracker,
}

struct Queue<S: Commit> {
    waiting: VecDeque<Waiting<S>>,
    /// Whether somebody is at it, who takes along what comes.
    is_written: bool,
}

impl<S: Commit> fmt::Debug for Group<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("bounds", &self.0.bounds).finish_non_exhaustive()
    }
}

impl<S: Commit> Group<S> {
    #[must_use]
    pub fn new(store: S, bounds: Bounds) -> Self {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), is_written: false });
        Self(Arc::new(Inner { store, bounds, queue, tasks: TaskTracker::new() }))
    }

    /// Returns when the move is committed, or cannot be.
    ///
    /// # Errors
    /// What kept it from being committed.
    pub async fn commit(&self, this: S::Move) -> Result<S::Moved, Error> {
        let (told, outcome) = oneshot::channel();
        let is_written = {
            let mut queue = self.0.queue();
            if queue.waiting.len() >= self.0.bounds.waiting {
                queue.forget_the_gone();
            }
            if queue.waiting.len() >= self.0.bounds.waiting {
                return Err(Error::Database(format!("{} moves wait already", queue.waiting.len())));
            }
            queue.waiting.push_back((this, told));
            std::mem::replace(&mut queue.is_written, true)
        };
        if !is_written {
            self.0.tasks.spawn(self.0.clone().write());
        }
        outcome.await.unwrap_or_else(|_| Err(Error::Database("what was being written came to grief".to_owned())))
    }

    /// Waits until all that came is committed. Nothing may come after it.
    pub async fn close(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl<S: Commit> Queue<S> {
    /// Who has gone away does not want it any more.
    fn forget_the_gone(&mut self) {
        self.waiting.retain(|(_, told)| !told.is_closed());
    }
}

impl<S: Commit> Inner<S> {
    fn queue(&self) -> MutexGuard<'_, Queue<S>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until nobody waits.
    async fn write(self: Arc<Self>) {
        while let Some((group, told)) = self.take() {
            let this = self.clone();
            // A task of its own: one that panics fails its own group, and the next is written all the same.
            let _ = self.tasks.spawn(async move { this.commit(&group, told).await }).await;
        }
    }

    fn take(&self) -> Option<Taken<S>> {
        let mut queue = self.queue();
        queue.forget_the_gone();
        if queue.waiting.is_empty() {
            queue.is_written = false;
            return None;
        }
        let some = queue.waiting.len().min(self.bounds.at_once);
        Some(queue.waiting.drain(..some).unzip())
    }

    async fn commit(&self, group: &[S::Move], told: Vec<Told<S>>) {
        let mut told = told.into_iter();
        match self.store.commit(group).await {
            Ok(moved) => {
                for (told, moved) in told.zip(moved) {
                    // Who has gone away meanwhile does not want to know.
                    let _ = told.send(Ok(moved));
                }
            }
            Err(Failed::One(_)) if group.len() > 1 => {
                for (this, one) in group.iter().zip(told.by_ref()) {
                    let moved = match self.store.commit(std::slice::from_ref(this)).await {
                        Ok(mut moved) => moved.pop().ok_or_else(|| Error::Database("nothing came of it".to_owned())),
                        Err(Failed::One(error)) => Err(error),
                        Err(Failed::All(error)) => {
                            // The store has nothing more for anybody now, and each try may take seconds.
                            let _ = one.send(Err(error.clone()));
                            return fail(told, &error);
                        }
                    };
                    let _ = one.send(moved);
                }
            }
            Err(Failed::One(error) | Failed::All(error)) => fail(told, &error),
        }
    }
}

fn fail<T>(told: impl Iterator<Item = oneshot::Sender<Result<T, Error>>>, error: &Error) {
    for told in told {
        let _ = told.send(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    use super::*;

    /// Commits numbers, once it is allowed to; 13 never, at 99 it panics, and takes nothing at all while it is full.
    struct Numbers {
        allowed: Semaphore,
        full: AtomicBool,
        /// It is full from this commit on.
        full_from: AtomicUsize,
        commits: AtomicUsize,
        kept: Mutex<Vec<u32>>,
    }

    impl Commit for Arc<Numbers> {
        type Move = u32;
        type Moved = u32;

        async fn commit(&self, moves: &[u32]) -> Result<Vec<u32>, Failed> {
            self.allowed.acquire().await.expect("open").forget();
            let commits = self.commits.fetch_add(1, Ordering::Relaxed);
            let error = |why: &str| Error::Database(why.to_owned());
            if self.full.load(Ordering::Relaxed) || commits >= self.full_from.load(Ordering::Relaxed) {
                return Err(Failed::All(error("full")));
            }
            assert!(!moves.contains(&99), "ninety-nine");
            if moves.contains(&13) {
                return Err(Failed::One(error("thirteen")));
            }
            self.kept.lock().expect("not poisoned").extend(moves);
            Ok(moves.to_vec())
        }
    }

    const BOUNDS: Bounds = Bounds { waiting: 64, at_once: 64 };

    struct Fixture {
        store: Arc<Numbers>,
        group: Arc<Group<Arc<Numbers>>>,
    }

    impl Fixture {
        fn new() -> Self {
            let store = Arc::new(Numbers {
                allowed: Semaphore::new(0),
                full: false.into(),
                full_from: usize::MAX.into(),
                commits: 0.into(),
                kept: Mutex::default(),
            });
            let group = Arc::new(Group::new(store.clone(), BOUNDS));
            Self { store, group }
        }

        fn waiting(&self) -> usize {
            self.group.0.queue().waiting.len()
        }

        async fn until(&self, waiting: usize) {
            while self.waiting() != waiting {
                tokio::task::yield_now().await;
            }
        }

        /// Begins these, the first of which is being committed when the others come.
        async fn begin(&self, numbers: impl IntoIterator<Item = u32>) -> JoinSet<(u32, Result<u32, Error>)> {
            let mut running = JoinSet::new();
            for (before, number) in numbers.into_iter().enumerate() {
                let group = self.group.clone();
                running.spawn(async move { (number, group.commit(number).await) });
                self.until(before).await;
                if before == 0 {
                    // The first is not only there but taken.
                    while !self.group.0.queue().is_written {
                        tokio::task::yield_now().await;
                    }
                    self.until(0).await;
                }
            }
            running
        }

        fn kept(&self) -> Vec<u32> {
            self.store.kept.lock().expect("not poisoned").clone()
        }
    }

    #[tokio::test]
    async fn what_comes_while_somebody_writes_is_one_commit() {
        let fixture = Fixture::new();
        let running = fixture.begin(20..60).await;
        fixture.store.allowed.add_permits(100);
        let all = running.join_all().await;
        assert!(all.iter().all(|(number, moved)| moved.as_ref().is_ok_and(|moved| moved == number)));
        assert_eq!(fixture.store.commits.load(Ordering::Relaxed), 2, "the first alone, and the others together");
        assert_eq!(fixture.kept(), (20..60).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn one_that_cannot_be_committed_keeps_no_other_back() {
        let fixture = Fixture::new();
        let running = fixture.begin(10..16).await;
        fixture.store.allowed.add_permits(100);
        for (number, moved) in running.join_all().await {
            assert_eq!(moved.is_ok(), number != 13, "{number}");
        }
        assert_eq!(fixture.kept(), [10, 11, 12, 14, 15]);
    }

    #[tokio::test]
    async fn a_store_that_takes_nothing_is_not_asked_once_for_each() {
        let fixture = Fixture::new();
        fixture.store.full.store(true, Ordering::Relaxed);
        let running = fixture.begin(20..60).await;
        fixture.store.allowed.add_permits(100);
        assert!(running.join_all().await.iter().all(|(_, moved)| moved.is_err()));
        assert_eq!(fixture.store.commits.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn nor_when_it_fills_up_while_they_are_committed_one_by_one() {
        let fixture = Fixture::new();
        // The first, the group with thirteen in it, and one of these by itself.
        fixture.store.full_from.store(3, Ordering::Relaxed);
        let running = fixture.begin(10..60).await;
        fixture.store.allowed.add_permits(100);
        let failed = running.join_all().await.iter().filter(|(_, moved)| moved.is_err()).count();
        assert_eq!((failed, fixture.store.commits.load(Ordering::Relaxed)), (48, 4));
        assert_eq!(fixture.kept(), [10, 11]);
    }

    #[tokio::test]
    async fn who_goes_away_takes_nothing_along_that_is_under_way_and_is_not_begun_with_while_waiting() {
        let fixture = Fixture::new();
        let mut first = fixture.begin([1]).await;
        first.abort_all();
        assert!(first.join_next().await.expect("one").expect_err("aborted").is_cancelled());
        let gone = tokio::spawn({
            let group = fixture.group.clone();
            async move { group.commit(2).await }
        });
        fixture.until(1).await;
        gone.abort();
        assert!(gone.await.expect_err("aborted").is_cancelled());
        let group = fixture.group.clone();
        let stays = tokio::spawn(async move { group.commit(3).await });
        fixture.until(2).await;
        fixture.store.allowed.add_permits(100);
        assert_eq!(stays.await.expect("no panic").expect("committed"), 3);
        assert_eq!(fixture.kept(), [1, 3]);
        fixture.group.close().await;
    }

    #[tokio::test]
    async fn a_close_waits_for_all_that_came() {
        let fixture = Fixture::new();
        let running = fixture.begin([1, 2, 3]).await;
        let mut closing = std::pin::pin!(fixture.group.close());
        assert!(closing.as_mut().now_or_never().is_none(), "nothing is written yet");
        fixture.store.allowed.add_permits(100);
        closing.await;
        assert_eq!(fixture.kept(), [1, 2, 3]);
        assert!(running.join_all().await.iter().all(|(_, moved)| moved.is_ok()));
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_group_and_keeps_nobody_waiting() {
        let fixture = Fixture::new();
        let running = fixture.begin([1, 99, 2]).await;
        fixture.store.allowed.add_permits(100);
        let failed: Vec<u32> =
            running.join_all().await.iter().filter(|(_, moved)| moved.is_err()).map(|(number, _)| *number).collect();
        assert_eq!(failed.len(), 2, "{failed:?}");
        assert_eq!(fixture.group.commit(3).await.expect("committed"), 3);
        assert_eq!(fixture.kept(), [1, 3]);
    }

    #[tokio::test]
    async fn when_too_many_wait_one_more_is_refused_unless_others_have_gone() {
        let fixture = Fixture::new();
        let mut running = fixture.begin(100..165).await;
        assert_eq!(fixture.waiting(), BOUNDS.waiting);
        assert!(fixture.group.commit(1).await.is_err(), "at once, though the store hangs");
        running.abort_all();
        while running.join_next().await.is_some() {}
        fixture.store.allowed.add_permits(100);
        assert_eq!(fixture.group.commit(2).await.expect("committed"), 2);
        assert_eq!(fixture.kept(), [100, 2]);
    }
}
