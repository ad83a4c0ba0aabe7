//! Moves that wait for one writer are committed together.
//!
//! Whoever comes while nobody writes writes at once, and takes along whatever waits by then. So a lone move waits for nobody,
//! and under load the cost of a commit is shared by as many as came meanwhile. A move is done when its group is committed:
//! who is told so has it on the disk.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::Error;

/// Why a group was not committed.
#[derive(Debug)]
pub enum Failed {
    /// One of it cannot be: the others can, each by itself.
    One(Error),
    /// None of it can be now.
    All(Error),
}

/// Commits moves.
pub trait Commit: Sync {
    type Move: Send + Sync;
    type Moved: Send;

    /// Commits all of them in one transaction, or none; what came of each, in their order.
    ///
    /// # Errors
    /// [`Failed`].
    fn commit(&self, moves: &[Arc<Self::Move>]) -> impl Future<Output = Result<Vec<Self::Moved>, Failed>> + Send;
}

type Told<T> = oneshot::Sender<Result<T, Error>>;

/// Those that wait.
#[derive(Debug)]
pub struct Group<M, T> {
    waiting: Mutex<Vec<(Arc<M>, Told<T>)>>,
    /// Held by whoever writes.
    turn: tokio::sync::Mutex<()>,
    /// How many are committed at once at most: somebody waits for the writer meanwhile.
    most: usize,
}

impl<M: Send + Sync, T: Send> Group<M, T> {
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { waiting: Mutex::default(), turn: tokio::sync::Mutex::default(), most }
    }

    /// Returns when the move is committed, or cannot be. It must be idempotent: when whoever wrote for it goes away half-way,
    /// it is made again.
    ///
    /// # Errors
    /// What kept it from being committed.
    pub async fn commit(&self, store: &impl Commit<Move = M, Moved = T>, this: M) -> Result<T, Error> {
        let this = Arc::new(this);
        let mut outcome = self.wait(&this);
        loop {
            tokio::select! {
                biased;
                told = &mut outcome => match told {
                    Ok(moved) => return moved,
                    Err(_gone) => outcome = self.wait(&this),
                },
                _turn = self.turn.lock() => self.commit_some(store).await,
            }
        }
    }

    fn wait(&self, this: &Arc<M>) -> oneshot::Receiver<Result<T, Error>> {
        let (told, outcome) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((this.clone(), told));
        outcome
    }

    async fn commit_some(&self, store: &impl Commit<Move = M, Moved = T>) {
        let (moves, told): (Vec<Arc<M>>, Vec<Told<T>>) = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let some = waiting.len().min(self.most);
            waiting.drain(..some).unzip()
        };
        if moves.is_empty() {
            return;
        }
        match store.commit(&moves).await {
            Ok(outcomes) => {
                for (told, outcome) in told.into_iter().zip(outcomes) {
                    // Who has gone away does not want to know.
                    let _ = told.send(Ok(outcome));
                }
            }
            Err(Failed::One(_)) if moves.len() > 1 => {
                for (this, told) in moves.iter().zip(told) {
                    let outcome = match store.commit(std::slice::from_ref(this)).await {
                        Ok(mut outcomes) => {
                            outcomes.pop().ok_or_else(|| Error::Database("nothing came of it".to_owned()))
                        }
                        Err(Failed::One(error) | Failed::All(error)) => Err(error),
                    };
                    let _ = told.send(outcome);
                }
            }
            Err(Failed::One(error) | Failed::All(error)) => {
                for told in told {
                    let _ = told.send(Err(error.clone()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    use super::*;

    /// Commits numbers, once it is allowed to; 13 never, and nothing at all while it is full.
    struct Numbers {
        allowed: Semaphore,
        full: std::sync::atomic::AtomicBool,
        commits: AtomicUsize,
        kept: Mutex<Vec<u32>>,
    }

    impl Numbers {
        fn new() -> Arc<Self> {
            let (full, commits, kept) = (false.into(), 0.into(), Mutex::default());
            Arc::new(Self { allowed: Semaphore::new(0), full, commits, kept })
        }
    }

    impl Commit for Numbers {
        type Move = u32;
        type Moved = u32;

        async fn commit(&self, moves: &[Arc<u32>]) -> Result<Vec<u32>, Failed> {
            self.allowed.acquire().await.expect("open").forget();
            self.commits.fetch_add(1, Ordering::Relaxed);
            let error = |why: &str| Error::Database(why.to_owned());
            if self.full.load(Ordering::Relaxed) {
                return Err(Failed::All(error("full")));
            }
            let moves: Vec<u32> = moves.iter().map(|number| **number).collect();
            if moves.contains(&13) {
                return Err(Failed::One(error("thirteen")));
            }
            self.kept.lock().expect("not poisoned").extend(&moves);
            Ok(moves)
        }
    }

    /// Begins so many moves, the first of which is being committed when the others come.
    async fn begun(store: &Arc<Numbers>, numbers: std::ops::Range<u32>) -> JoinSet<(u32, Result<u32, Error>)> {
        let group = Arc::new(Group::new(64));
        let mut running = JoinSet::new();
        for number in numbers.clone() {
            let (store, shared) = (store.clone(), group.clone());
            running.spawn(async move { (number, shared.commit(&*store, number).await) });
            let waiting = (number - numbers.start) as usize;
            while group.waiting.lock().expect("not poisoned").len() != waiting {
                tokio::task::yield_now().await;
            }
        }
        running
    }

    #[tokio::test]
    async fn what_comes_while_somebody_writes_is_one_commit() {
        let store = Numbers::new();
        let running = begun(&store, 20..60).await;
        store.allowed.add_permits(100);
        let all = running.join_all().await;
        assert!(all.iter().all(|(number, moved)| moved.as_ref().is_ok_and(|moved| moved == number)));
        assert_eq!(store.commits.load(Ordering::Relaxed), 2, "the first alone, and the others together");
        assert_eq!(*store.kept.lock().expect("not poisoned"), (20..60).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn one_that_cannot_be_committed_keeps_no_other_back() {
        let store = Numbers::new();
        let running = begun(&store, 10..16).await;
        store.allowed.add_permits(100);
        for (number, moved) in running.join_all().await {
            assert_eq!(moved.is_ok(), number != 13, "{number}");
        }
        assert_eq!(*store.kept.lock().expect("not poisoned"), [10, 11, 12, 14, 15]);
    }

    #[tokio::test]
    async fn a_store_that_takes_nothing_is_not_asked_once_for_each() {
        let store = Numbers::new();
        store.full.store(true, Ordering::Relaxed);
        let running = begun(&store, 20..60).await;
        store.allowed.add_permits(100);
        assert!(running.join_all().await.iter().all(|(_, moved)| moved.is_err()));
        assert_eq!(store.commits.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn when_whoever_writes_goes_away_what_it_took_along_is_committed_all_the_same() {
        let store = Numbers::new();
        let group = Arc::new(Group::new(64));
        let begin = |number| {
            let (store, group) = (store.clone(), group.clone());
            tokio::spawn(async move { group.commit(&*store, number).await })
        };
        let waiting = || group.waiting.lock().expect("not poisoned").len();
        let first = begin(1);
        while group.turn.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        let (second, third) = (begin(2), begin(3));
        while waiting() != 2 {
            tokio::task::yield_now().await;
        }
        // The second writes for both when the first is through.
        store.allowed.add_permits(1);
        assert_eq!(first.await.expect("no panic").expect("committed"), 1);
        while waiting() != 0 {
            tokio::task::yield_now().await;
        }
        second.abort();
        assert!(second.await.expect_err("aborted").is_cancelled());
        store.allowed.add_permits(1);
        assert_eq!(third.await.expect("no panic").expect("committed"), 3);
        assert_eq!(*store.kept.lock().expect("not poisoned"), [1, 3]);
    }
}
