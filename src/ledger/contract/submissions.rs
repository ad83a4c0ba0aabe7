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
    // Resolved; and then open, but far too old to be repeated.
    let resolved = NewSubmission { submission_id: "sub-2", principal: &alice(), request_id: "r1", at: at(3) };
    assert_eq!(fixture.ledger().open_submission(resolved).await.expect("committed"), "sub-2");
    fixture.submit(&alice(), "r2", 4).await;
    let late = NewSubmission { submission_id: "sub-3", principal: &alice(), request_id: "r2", at: at(65) };
    assert_eq!(fixture.ledger().open_submission(late).await.expect("committed"), "sub-3");
    assert_eq!(fixture.backlog().await.open_submissions, 3);
}

pub async fn a_row_that_comes_late_is_the_submission_it_would_have_been<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let late = |id: &str, request: &str| Event::SubmissionOpened {
        submission_id: id.into(),
        principal: std::sync::Arc::new(alice()),
        request_id: request.into(),
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
        Event::SubmissionRefused { submission_id: refused },
        Event::SubmissionEnded { submission_id: ended.clone(), at: at(3), failed: true },
    ];
    for _ in 0..2 {
        fixture.ledger().record(&events, at(3)).await.expect("committed");
        let open = fixture.ledger().open_submissions(at(0), at(10)).await.expect("read");
        let [open] = open.as_slice() else { panic!("{open:?}") };
        assert_eq!((&open.submission_id, open.ended_at, open.failed), (&ended, Some(at(3)), true));
    }
    assert!(fixture.ledger().open_submissions(at(3), at(10)).await.expect("read").is_empty(), "it began before");
}
