use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
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
    let share = Place::Share(Arc::new(Share::new(1)));
    let _held = join_at(&flights, share.clone(), "a", &never, 1);
    let over = join_at(&flights, share, "b", &never, 2);
    now.notify_one();
    let other = join_at(&flights, Place::Share(Arc::new(Share::new(1))), "c", &now, 3);
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

#[tokio::test(start_paused = true)]
async fn whoever_asks_too_much_fills_no_queue_but_their_own() {
    let (wait, limit) = (Duration::from_secs(1), Duration::from_secs(5));
    let flights: Flights<usize, u32> = Flights::new(Bounds { in_flight: 4, reserved: 1, waiting: 16, wait, limit });
    let share = Place::Share(Arc::new(Share::new(2)));
    let ask = |key: usize, place: Place, hangs: bool| {
        let call = move || async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok(1)
        };
        match flights.join(key, place, || None, call, |_| {}) {
            Joined::Waits(ticket) => ticket,
            Joined::Known(_) => panic!("nothing is known"),
        }
    };
    let mut over = 0;
    for key in 0..1000 {
        let ticket = ask(key, share.clone(), true);
        tokio::task::yield_now().await;
        if let Some(Err(error)) = ticket.answer().now_or_never() {
            over += usize::from(matches!(*error, CallError::OverShare));
        }
    }
    assert_eq!(over, 1000 - 2 - 8, "two in flight, eight wait");
    assert_eq!(ask(2000, Place::Share(Arc::new(Share::new(2))), false).answer().await.expect("another's"), 1);
    assert_eq!(ask(2001, Place::Reserved, false).answer().await.expect("reserved"), 1);
}
