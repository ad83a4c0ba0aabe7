//! The disk is a real file; one that hangs is the same file behind a gate.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Condvar;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;

use super::page::BYTES;
use super::*;
use crate::ledger::sqlite::SqliteLedger;

/// Longer than anything here may take; never waited for when all is well.
const LONG: Duration = Duration::from_secs(20);
const FIRST: &str = "0198c0de000070008000000000000001";
const SECOND: &str = "0198c0de000070008000000000000002";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("valid")
}

fn left(path: &Path) -> Option<Span> {
    super::left(path, at(0)).expect("readable")
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("ledger.db");
    (dir, path)
}

/// Submissions do not wait for a slow disk; the tests do.
async fn settled(unrecorded: &Unrecorded) {
    let last = unrecorded.state().file.changes;
    unrecorded.written(last).await.expect("written");
}

/// Something else that the file is to say.
fn change(unrecorded: &Unrecorded) -> u64 {
    unrecorded.state().file.change()
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let wait = async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A disk that can be made to hang, and to fail.
#[derive(Debug)]
struct Disk {
    file: File,
    hangs: Mutex<bool>,
    goes_on: Condvar,
    fails: Mutex<bool>,
    writes: AtomicUsize,
}

impl Disk {
    fn at(path: &Path) -> Arc<Self> {
        drop(Unrecorded::open(path, at(0)));
        let file = OpenOptions::new().write(true).open(beside(path)).expect("made");
        let (hangs, fails) = (Mutex::default(), Mutex::default());
        Arc::new(Self { file, hangs, goes_on: Condvar::new(), fails, writes: AtomicUsize::new(0) })
    }

    fn unrecorded(self: &Arc<Self>) -> Unrecorded {
        Unrecorded::over(self.clone(), Page::default(), at(0))
    }

    fn hang(&self, hangs: bool) {
        *self.hangs.lock().expect("no panic") = hangs;
        self.goes_on.notify_all();
    }

    fn fail(&self, fails: bool) {
        *self.fails.lock().expect("no panic") = fails;
    }

    fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }
}

impl Place for Disk {
    fn write(&self, page: &[u8; BYTES]) -> std::io::Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let hangs = self.hangs.lock().expect("no panic");
        drop(self.goes_on.wait_while(hangs, |hangs| *hangs).expect("no panic"));
        if *self.fails.lock().expect("no panic") {
            Err(ErrorKind::ReadOnlyFilesystem.into())
        } else {
            self.file.write(page)
        }
    }
}

#[tokio::test]
async fn what_is_missing_is_remembered_by_the_next_process_until_it_is_there() {
    let (_dir, path) = folder();
    let unrecorded = Unrecorded::open(&path, at(0));
    assert!(!unrecorded.is_uncertain());
    unrecorded.begin(at(5)).await;
    unrecorded.begin(at(2)).await;
    settled(&unrecorded).await;
    assert!(unrecorded.is_uncertain());
    assert_eq!(left(&path), Some((at(2), at(5))), "as after a kill");
    unrecorded.recorded();
    assert!(unrecorded.is_uncertain());
    unrecorded.recorded();
    assert!(!unrecorded.is_uncertain());
    unrecorded.written(unrecorded.due()).await.expect("written");
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
    assert!(!unrecorded.is_uncertain());
    unrecorded.due();
    assert_eq!(unrecorded.state().span, None);
}

#[tokio::test]
async fn what_will_never_come_becomes_a_gap_in_the_ledger() {
    let (_dir, path) = folder();
    let ledger: Arc<dyn Ledger> = Arc::new(SqliteLedger::open(&path, at(0)).await.expect("opens"));
    // Of a process that was killed, and of this one.
    let killed = Unrecorded::open(&path, at(0));
    killed.begin(at(2)).await;
    settled(&killed).await;
    let unrecorded = Unrecorded::open(&path, at(3));
    unrecorded.begin(at(5)).await;
    unrecorded.lost();
    assert!(unrecorded.is_uncertain());
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(unrecorded.clone().keep(ledger.clone(), stop.clone()));
    until("all is noted", || !unrecorded.is_uncertain() && left(&path).is_none()).await;
    stop.cancel();
    keeping.await.expect("no panic").expect("an orderly end");
    let in_gap = async |from: i64, to: i64| ledger.has_gap(at(from), at(to)).await.expect("read");
    assert!(in_gap(3, 4).await && in_gap(5, 9).await && in_gap(-9, 2).await);
    assert!(!in_gap(6, 9).await && !in_gap(-9, 1).await);
    assert_eq!(left(&path), None);
}

#[test]
fn a_folder_that_cannot_be_written_is_no_reason_not_to_start() {
    assert!(!Unrecorded::open(Path::new("/proc/no/such/ledger.db"), at(0)).is_uncertain());
}

#[test]
fn a_disk_that_hangs_holds_one_thread_however_many_submissions_there_are() {
    // One for the writer, and one for whoever else needs one, such as the lookup of a name.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(2).build();
    let runtime = runtime.expect("a runtime");
    let (_dir, path) = folder();
    let disk = Disk::at(&path);
    let unrecorded = disk.unrecorded();
    disk.hang(true);
    runtime.block_on(async {
        let mut begun: JoinSet<()> = (0..2000_u32)
            .map(|n| {
                let unrecorded = unrecorded.clone();
                async move { unrecorded.begin(at(2000 - i64::from(n))).await }
            })
            .collect();
        let all = async { while begun.join_next().await.is_some() {} };
        tokio::time::timeout(LONG, all).await.expect("none waits for ever");
        let lookup = tokio::time::timeout(LONG, tokio::net::lookup_host(("localhost", 80))).await;
        assert!(lookup.expect("a thread is left").expect("found").count() > 0);
        until("a write is under way", || disk.writes() > 0).await;
        assert_eq!(disk.writes(), 1, "all wait for one");
        assert_eq!(left(&path), None);

        // It heals: what came meanwhile is one write more.
        disk.hang(false);
        until("they are noted", || left(&path).is_some_and(|(since, _)| since == at(1))).await;
        unrecorded.begin(at(3000)).await;
        settled(&unrecorded).await;
        assert_eq!(super::left(&path, at(9000)).expect("readable"), Some((at(1), at(9000))));
        assert!(disk.writes() <= 3, "{}", disk.writes());
        (0..2001).for_each(|_| unrecorded.recorded());
        unrecorded.written(unrecorded.due()).await.expect("written");
        assert_eq!(left(&path), None);
    });
}

#[tokio::test]
async fn a_submission_waits_for_the_write_that_has_it_and_not_for_the_one_before() {
    let (_dir, path) = folder();
    let disk = Disk::at(&path);
    let unrecorded = disk.unrecorded();
    disk.hang(true);
    let first = tokio::spawn({
        let unrecorded = unrecorded.clone();
        async move { unrecorded.written(change(&unrecorded)).await }
    });
    until("a write is under way", || disk.writes() == 1).await;
    // It has nothing of this one.
    unrecorded.state().span = Some((at(7), at(7)));
    let second = tokio::spawn({
        let unrecorded = unrecorded.clone();
        async move { unrecorded.written(change(&unrecorded)).await }
    });
    until("both wait", || unrecorded.state().file.changes == 2).await;
    disk.hang(false);
    second.await.expect("no panic").expect("written");
    first.await.expect("no panic").expect("written");
    assert_eq!(left(&path), Some((at(7), at(7))));
    assert_eq!(disk.writes(), 2);
}

#[tokio::test]
async fn a_write_that_failed_is_made_up_for() {
    let (_dir, path) = folder();
    let disk = Disk::at(&path);
    let unrecorded = disk.unrecorded();
    disk.fail(true);
    unrecorded.begin(at(1)).await;
    assert_eq!(left(&path), None);
    assert!(unrecorded.written(unrecorded.due()).await.is_err(), "it is tried again");
    disk.fail(false);
    // By the next one, also when the file is to say nothing new,
    unrecorded.begin(at(2)).await;
    settled(&unrecorded).await;
    assert_eq!(left(&path), Some((at(1), at(2))));
    // and when it is over.
    unrecorded.recorded();
    unrecorded.recorded();
    disk.fail(true);
    assert!(unrecorded.written(unrecorded.due()).await.is_err());
    disk.fail(false);
    unrecorded.written(unrecorded.due()).await.expect("written");
    assert_eq!(left(&path), None);
}

#[tokio::test]
async fn what_follows_the_first_is_remembered_when_the_disk_hangs_from_then_on() {
    let (_dir, path) = folder();
    let disk = Disk::at(&path);
    let unrecorded = disk.unrecorded();
    unrecorded.begin(at(1)).await;
    settled(&unrecorded).await;
    disk.hang(true);
    unrecorded.begin(at(8)).await;
    assert_eq!(disk.writes(), 1, "which needs no other write");
    // After a kill, and the start that follows.
    let next = Unrecorded::open(&path, at(60));
    assert_eq!(next.lost_span(), Some((at(1), at(60))));
    let now = at(60) + SignedDuration::from_nanos(1);
    assert_eq!(super::left(&path, now).expect("readable"), Some((at(1), at(60))), "as a ledger has it");
    disk.hang(false);
}

#[tokio::test]
async fn a_file_remembers_the_start_that_the_others_know_of_and_no_other() {
    let (_dir, path) = folder();
    let unrecorded = Unrecorded::open(&path, at(0));
    assert!(!unrecorded.remembers(FIRST, at(-100)), "there was none");
    unrecorded.belongs_to(FIRST).await;
    settled(&unrecorded).await;
    let now = Timestamp::now();
    assert!(!unrecorded.remembers(FIRST, now), "this one is no earlier start");

    // Killed, and the next one is killed before it is known: under the name is still the first.
    let second = Unrecorded::open(&path, at(0));
    assert!(second.remembers(FIRST, now) && !second.remembers(SECOND, now) && !second.remembers("", now));
    second.begin(at(3)).await;
    settled(&second).await;
    let third = Unrecorded::open(&path, at(4));
    assert!(third.remembers(FIRST, now));
    assert_eq!(third.lost_span(), Some((at(3), at(4))));

    third.belongs_to(SECOND).await;
    settled(&third).await;
    let fourth = Unrecorded::open(&path, at(5));
    assert!(fourth.remembers(SECOND, now) && !fourth.remembers(FIRST, now));
    assert_eq!(fourth.lost_span(), Some((at(3), at(4))), "the gap stays until the ledger has it");
}

#[tokio::test]
async fn a_file_that_could_not_be_written_before_the_last_word_remembers_nothing() {
    let (_dir, path) = folder();
    let disk = Disk::at(&path);
    let unrecorded = disk.unrecorded();
    disk.fail(true);
    unrecorded.belongs_to(FIRST).await;
    assert!(unrecorded.written(unrecorded.due()).await.is_err());
    let of = |incarnation, word| Unrecorded::open(&path, at(0)).remembers(incarnation, word);
    assert!(!of(FIRST, Timestamp::now()), "not even that it began");
    disk.fail(false);
    unrecorded.written(unrecorded.due()).await.expect("written");
    let sure = Timestamp::now();
    assert!(of(FIRST, sure), "made up for");
    let last_word = sure + SURE_FOR + SignedDuration::from_secs(1);
    assert!(!of(FIRST, last_word), "it was alive for longer than the file could be written");
    // A start that is not known yet makes it no younger.
    let next = Unrecorded::open(&path, at(0));
    next.begin(at(3)).await;
    settled(&next).await;
    assert!(of(FIRST, sure) && !of(FIRST, last_word));
}

#[tokio::test]
async fn a_replica_makes_sure_that_its_file_can_be_written_and_a_ledger_of_one_process_does_not() {
    let (_dir, path) = folder();
    let disk = Disk::at(&path);
    let unrecorded = disk.unrecorded();
    let before = unrecorded.due();
    assert_eq!(unrecorded.due(), before, "nothing to be written");
    unrecorded.belongs_to(FIRST).await;
    settled(&unrecorded).await;
    assert_eq!(unrecorded.due(), before + 1, "it is sure");
    unrecorded.state().file.sure = Instant::now().checked_sub(SURE_EVERY);
    let due = unrecorded.due();
    assert_eq!(due, before + 2);
    unrecorded.written(due).await.expect("written");
    assert_eq!((unrecorded.due(), disk.writes()), (due, 2));
}

#[tokio::test]
async fn the_earlier_form_has_its_gap_and_remembers_nobody() {
    let (_dir, path) = folder();
    let mut earlier = at(2).as_millisecond().to_le_bytes().to_vec();
    earlier.extend(at(5).as_millisecond().to_le_bytes());
    for (bytes, gap) in
        [(earlier.as_slice(), Some((at(2), at(5)))), (&[0; 16], None), (&earlier[..9], None), (&[], None)]
    {
        std::fs::write(beside(&path), bytes).expect("written");
        assert_eq!(super::left(&path, at(60)).expect("readable"), gap);
        let unrecorded = Unrecorded::open(&path, at(60));
        assert_eq!(unrecorded.lost_span(), gap);
        assert!(!unrecorded.remembers("00000000000000000000000000000000", at(-100)));
        assert_eq!(super::left(&path, at(60)).expect("readable"), gap, "as it was");
    }
    // And a version of then finds the gap in the new form.
    let unrecorded = Unrecorded::open(&path, at(0));
    unrecorded.begin(at(2)).await;
    unrecorded.begin(at(5)).await;
    unrecorded.written(change(&unrecorded)).await.expect("written");
    let bytes = std::fs::read(beside(&path)).expect("there");
    assert_eq!((&bytes[..16], bytes.len()), (earlier.as_slice(), BYTES));
}

#[tokio::test]
async fn a_stop_after_which_nothing_is_missing_leaves_no_gap_behind() {
    let (_dir, path) = folder();
    let unrecorded = Unrecorded::open(&path, at(0));
    unrecorded.begin(at(2)).await;
    // With a row still missing it says so.
    unrecorded.close().await;
    settled(&unrecorded).await;
    assert!(left(&path).is_some());
    unrecorded.recorded();
    unrecorded.close().await;
    settled(&unrecorded).await;
    assert_eq!(left(&path), None);
}
