//! Submissions and what repeats them.

use super::*;

pub async fn a_repeated_check_finds_its_own_submission_and_another_request_does_not<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let first = fixture.submit(&alice(), "r1", 1).await;
    let row = NewSubmission { submission_id: "sub-other", principal: &alice(), request_id: "r1", at: at(2) };
    assert_eq!(fixture.ledger().open_submission(row).await.expect("committed"), first);
    assert_ne!(fixture.submit(&alice(), "r2", 3).await, first);

    assert_eq!(fixture.backlog().await.open_submissions, 2);
}

pub async fn a_request_id_that_is_used_up_does_not_hide_another_submission<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.submit(&alice(), "r1", 1).await;
    fixture.submitted("sub-r1", "alice", "wfl-1", 2).await;
    // Begun when the other one was over; and while it is open, but far too late to be a repeat.
    assert_eq!(fixture.submit_begun("sub-2", "r1", 2, 3).await, "sub-2");
    fixture.submit(&alice(), "r2", 4).await;
    assert_eq!(fixture.submit_begun("sub-3", "r2", 65, 65).await, "sub-3");
    assert_eq!(fixture.backlog().await.open_submissions, 3);
    // Nor one whose end did not tell what it made.
    let ended = Event::SubmissionEnded { over: over("sub-r2", "alice", 4, 5), failed: false };
    fixture.ledger().record(&[ended], at(5)).await.expect("committed");
    assert_eq!(fixture.submit_begun("sub-4", "r2", 6, 6).await, "sub-4");
    // Both are billed, one of them by elimination.
    let matched = Attribution::Matched { submission_id: "sub-2".into(), principal_id: "alice".into() };
    fixture.ledger().note_workflows(&[("wfl-2".into(), Some(at(3)))], at(3)).await.expect("noted");
    fixture.ledger().attribute("wfl-2", &matched, Some(at(3)), at(40)).await.expect("committed");
    for (task, workflow) in [("tsk-1", "wfl-1"), ("tsk-2", "wfl-2")] {
        assert_eq!(fixture.settle(task, workflow, task).await, charged("alice"));
    }
}

pub async fn a_request_id_that_a_client_uses_twice_at_once_is_one_submission_and_both_workflows_are_billed<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let first = fixture.submit(&alice(), "r1", 1).await;
    fixture.submitted(&first, "alice", "wfl-1", 5).await;
    // It began while the first was under way, so nothing tells it from a repeat.
    assert_eq!(fixture.submit_begun("sub-2", "r1", 4, 6).await, first);
    fixture.submitted(&first, "alice", "wfl-2", 7).await;
    for (task, workflow) in [("tsk-1", "wfl-1"), ("tsk-2", "wfl-2")] {
        assert_eq!(fixture.settle(task, workflow, task).await, charged("alice"));
    }
}

pub async fn a_check_that_is_repeated_elsewhere_finds_its_submission_whatever_has_come_of_it<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    for kind in ["made", "refused", "ended"] {
        let first = fixture.submit_begun(&format!("sub-{kind}"), kind, 1, 2).await;
        let event = match kind {
            "made" => Event::Submitted {
                submission_id: first.clone(),
                principal_id: "alice".into(),
                workflow_id: "wfl-1".into(),
                at: at(3),
            },
            "refused" => Event::SubmissionRefused { over: over(&first, "alice", 1, 3) },
            _ => Event::SubmissionEnded { over: over(&first, "alice", 1, 3), failed: true },
        };
        fixture.ledger().record(&[event], at(3)).await.expect("committed");
        let before = fixture.books().submission(&first).await.expect("read");
        // A Tollgate was frozen in it, longer than any Check is repeated; and the ledger did not answer it in time, either.
        let other = format!("sub-other-{kind}");
        assert_eq!(fixture.submit_begun(&other, kind, 1, 300).await, first, "{kind}");
        let late = Event::SubmissionOpened {
            submission_id: other.clone(),
            principal: std::sync::Arc::new(alice()),
            request_id: kind.into(),
            began: at(1),
            at: at(301),
        };
        fixture.ledger().record(&[late], at(302)).await.expect("committed");
        assert_eq!(fixture.books().submission(&other).await.expect("read"), None, "{kind}");
        assert_eq!(fixture.books().submission(&first).await.expect("read"), before, "{kind}");
    }
    assert_eq!(fixture.backlog().await.open_submissions, 1, "the one that ended");
}

pub async fn a_row_that_comes_late_is_the_submission_it_would_have_been<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let late = |id: &str, request: &str| Event::SubmissionOpened {
        submission_id: id.into(),
        principal: std::sync::Arc::new(alice()),
        request_id: request.into(),
        began: at(1),
        at: at(1),
    };
    fixture.ledger().record(&[late("sub-1", "r1"), late("sub-1", "r1")], at(2)).await.expect("committed");
    let open = fixture.ledger().open_submissions(at(0), at(10)).await.expect("read");
    assert_eq!(open.iter().map(|open| open.submission_id.as_str()).collect::<Vec<_>>(), ["sub-1"]);
    // The log entry was faster; and it was committed in time after all.
    fixture.submitted("sub-2", "alice", "wfl-2", 3).await;
    let in_time = fixture.submit(&alice(), "r3", 1).await;
    fixture.ledger().record(&[late("sub-2", "r2"), late(&in_time, "r3")], at(4)).await.expect("committed");
    assert_eq!(fixture.backlog().await.open_submissions, 2);
    assert_eq!(fixture.settle("tsk-2", "wfl-2", "wrk-1").await, charged("alice"));
}

pub async fn a_submission_that_was_refused_is_no_candidate_and_one_that_ended_still_is<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let (refused, ended) = (fixture.submit(&alice(), "r1", 1).await, fixture.submit(&alice(), "r2", 2).await);
    let events = [
        Event::SubmissionRefused { over: over(&refused, "alice", 1, 3) },
        Event::SubmissionEnded { over: over(&ended, "alice", 2, 3), failed: true },
    ];
    for _ in 0..2 {
        fixture.ledger().record(&events, at(3)).await.expect("committed");
        let open = fixture.ledger().open_submissions(at(0), at(10)).await.expect("read");
        let [open] = open.as_slice() else { panic!("{open:?}") };
        assert_eq!((&open.submission_id, open.ended_at, open.failed), (&ended, Some(at(3)), true));
    }
    assert!(fixture.ledger().open_submissions(at(3), at(10)).await.expect("read").is_empty(), "it began before");
}

pub async fn a_row_that_comes_after_its_end_is_over_in_whatever_order_they_come<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let mut number = 0;
    for refused in [true, false] {
        let mut expected = None;
        // "r" for the row and "e" for the end.
        for order in ["re", "er", "ree", "ere", "err", "eer", "reer", "erre"] {
            for together in [false, true] {
                number += 1;
                let (id, request) = (format!("sub-{number}"), format!("r{number}"));
                // Nobody has heard of them before.
                let who = format!("dave-{number}");
                let row = Event::SubmissionOpened {
                    submission_id: id.clone(),
                    principal: std::sync::Arc::new(principal(&who, None)),
                    request_id: request.clone(),
                    began: at(1),
                    at: at(2),
                };
                let over = over(&id, &who, 1, 3);
                let end = if refused {
                    Event::SubmissionRefused { over }
                } else {
                    Event::SubmissionEnded { over, failed: true }
                };
                let events: Vec<Event> =
                    order.chars().map(|which| if which == 'r' { row.clone() } else { end.clone() }).collect();
                for part in events.chunks(if together { events.len() } else { 1 }) {
                    fixture.ledger().record(part, at(4)).await.expect("committed");
                }
                let shown = fixture.books().submission(&id).await.expect("read").expect("a row");
                assert_eq!((&shown.request_id, &shown.principal_id), (&request, &who), "{order}");
                let open = fixture.ledger().open_submissions(at(0), at(10)).await.expect("read");
                let failed = open.iter().find(|open| open.submission_id == id).map(|open| open.failed);
                let left = (shown.opened_at, shown.ended_at, shown.state, failed);
                assert_eq!(left, *expected.get_or_insert_with(|| left.clone()), "{order}");
            }
        }
        let (state, failed) = if refused { ("refused", None) } else { ("open", Some(true)) };
        assert_eq!(expected, Some((at(2), Some(at(3)), state.to_owned(), failed)));
    }
}

pub async fn a_row_that_came_late_and_then_in_time_all_the_same_is_one<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let late = Event::SubmissionOpened {
        submission_id: "sub-r1".into(),
        principal: std::sync::Arc::new(alice()),
        request_id: "r1".into(),
        began: at(1),
        at: at(1),
    };
    fixture.ledger().record(&[late], at(2)).await.expect("committed");
    assert_eq!(fixture.submit(&alice(), "r1", 1).await, "sub-r1");
    assert_eq!(fixture.ledger().open_submissions(at(0), at(10)).await.expect("read").len(), 1);
}

pub async fn a_row_that_is_committed_in_time_and_after_its_end_is_over<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let events = [
        Event::SubmissionRefused { over: over("sub-r1", "alice", 1, 3) },
        Event::SubmissionEnded { over: over("sub-r2", "alice", 1, 3), failed: false },
    ];
    fixture.ledger().record(&events, at(3)).await.expect("committed");
    for request in ["r1", "r2"] {
        assert_eq!(fixture.submit(&alice(), request, 2).await, format!("sub-{request}"));
    }
    let open = fixture.ledger().open_submissions(at(0), at(10)).await.expect("read");
    let [open] = open.as_slice() else { panic!("{open:?}") };
    assert_eq!((open.submission_id.as_str(), open.ended_at), ("sub-r2", Some(at(3))));
}
