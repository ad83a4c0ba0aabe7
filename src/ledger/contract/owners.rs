//! Whose a workflow is, and what that does to its charges.

use std::sync::Arc;

use super::*;
use crate::ledger::books::Retry;

pub async fn a_task_waits_until_its_workflows_owner_has_been_looked_for<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Deferred);
    let due = fixture.ledger().claim_workflows(at(10), LEASE, Pick::Due(10)).await.expect("claimed");
    assert!(matches!(due.as_slice(), [DueWorkflow { is_new: true, needs_owner: true, .. }]), "{due:?}");
    fixture.submitted("sub-x", "alice", "wfl-1", 11).await;
    // Nobody has told Alice's e-mail yet.
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Held { reason: "no_email" });
    fixture.submit(&alice(), "r1", 12).await;
    assert_eq!(fixture.due_charges(12).await.len(), 1);
}

pub async fn a_held_workflow_is_freed_by_its_own_log_entry_however_late<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let submission = fixture.submit(&alice(), "r1", 1).await;
    fixture.ledger().note_workflows(&[("wfl-1".into(), Some(at(2)))], at(2)).await.expect("noted");
    let held = Attribution::Held { reason: "several".into() };
    fixture.ledger().attribute("wfl-1", &held, None, at(3)).await.expect("committed");
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Held { reason: "no_owner" });
    assert_eq!(fixture.backlog().await.held_workflows, 1);
    fixture.submitted(&submission, "alice", "wfl-1", 20).await;
    let due = fixture.due_charges(20).await;
    assert_eq!(due.first().map(|due| due.principal_id.as_str()), Some("alice"));
    assert_eq!(fixture.backlog().await.held_workflows, 0);
}

pub async fn a_match_uses_up_its_submission_and_yields_to_the_log<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let submission = fixture.submit(&alice(), "r1", 1).await;
    let workflows = [("wfl-1".into(), Some(at(2))), ("wfl-2".into(), Some(at(2)))];
    fixture.ledger().note_workflows(&workflows, at(2)).await.expect("noted");
    let matched = Attribution::Matched { submission_id: submission.clone(), principal_id: "alice".into() };
    for workflow in ["wfl-1", "wfl-2"] {
        fixture.ledger().attribute(workflow, &matched, None, at(3)).await.expect("committed");
    }
    assert!(fixture.ledger().open_submissions(at(0), at(10)).await.expect("read").is_empty());
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
    assert_eq!(fixture.settle("tsk-2", "wfl-2", "wrk-2").await, Settled::Deferred, "one submission makes one workflow");
    // The log knows better, as long as nothing was posted.
    fixture.submit(&principal("bob", Some("bob@example.com")), "r2", 4).await;
    fixture.submitted("sub-r2", "bob", "wfl-1", 5).await;
    assert_eq!(fixture.due_charges(20).await.first().map(|due| due.email.clone()).as_deref(), Some("bob@example.com"));
}

pub async fn what_is_older_than_the_ledger_is_not_billed_unless_the_log_says_it_is_ours<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    assert_eq!(fixture.ledger().note_workflows(&[("wfl-1".into(), None)], at(1)).await.expect("noted"), 1);
    assert_eq!(fixture.ledger().note_workflows(&[("wfl-1".into(), None)], at(1)).await.expect("noted"), 0);
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Ignored);
    assert_eq!(fixture.backlog().await, Backlog::default());
    fixture.workflow("wfl-1", &alice()).await;
    let due = fixture.ledger().claim_tasks(at(10), LEASE, Pick::Due(10)).await.expect("claimed");
    assert_eq!(due.first().map(|due| due.task_id.as_str()), Some("tsk-1"));
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
}

/// Bob's charge is being posted when the log says that its workflow is Alice's.
pub(super) async fn corrected_while_posted<S: Store>() -> Fixture<S> {
    let fixture = Fixture::<S>::new().await;
    let submission = fixture.submit(&bob(), "r1", 1).await;
    fixture.ledger().note_workflows(&[("wfl-1".into(), Some(at(2)))], at(2)).await.expect("noted");
    let matched = Attribution::Matched { submission_id: submission, principal_id: "bob".into() };
    fixture.ledger().attribute("wfl-1", &matched, None, at(3)).await.expect("committed");
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("bob"));
    assert_eq!(fixture.due_charges(10).await[0].principal_id, "bob");
    fixture.submit(&alice(), "r2", 11).await;
    fixture.submitted("sub-r2", "alice", "wfl-1", 12).await;
    fixture
}

pub async fn an_owner_that_the_log_corrects_while_the_charge_is_posted_gets_it_with_the_next_try<S: Store>() {
    let fixture = corrected_while_posted::<S>().await;
    let bobs = DueCharge { principal_id: "bob".to_owned(), leased_until: at(10) + LEASE, ..unclaimed("tsk-1") };
    fixture.ledger().post_failed(&bobs, "status 503", at(20), at(13)).await.expect("committed");
    assert_eq!(fixture.due_charges(20).await[0].principal_id, "alice");
}

pub async fn a_task_of_a_workflow_that_flowmesh_forgot_is_held_and_not_asked_after_for_ever<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.ledger().note_workflows(&[("wfl-1".into(), Some(at(1)))], at(1)).await.expect("noted");
    let due = fixture.ledger().claim_workflows(at(1), LEASE, Pick::Due(10)).await.expect("claimed").remove(0);
    fixture.ledger().swept(&due, NextSweep::Gone, Existence::Unknown, at(2)).await.expect("committed");
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Held { reason: "no_owner" });
}

pub async fn a_comparison_brings_up_who_was_held_lately_and_is_remembered<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    assert_eq!(fixture.ledger().compared_at().await.expect("read"), None);
    fixture.held_workflow("wfl-old", 10).await;
    fixture.held_workflow("wfl-new", 20).await;
    fixture.settle_workflows(20).await;
    assert_eq!(fixture.ledger().next_due(Work::Workflows).await.expect("read"), None);
    for _ in 0..2 {
        fixture.ledger().compared(at(15), at(30)).await.expect("committed");
        assert_eq!(fixture.ledger().compared_at().await.expect("read"), Some(at(30)));
        assert_eq!(fixture.backlog().await.open_workflows, 1);
    }
    fixture.ledger().compared(at(25), at(29)).await.expect("committed");
    assert_eq!(fixture.ledger().compared_at().await.expect("read"), Some(at(30)), "it does not go back");
}

pub async fn every_repeated_move_on_a_workflow_changes_nothing<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let submission = fixture.submit(&alice(), "r1", 1).await;
    fixture.submit(&bob(), "r2", 1).await;
    for attribution in [
        held("several"),
        Attribution::Matched { submission_id: submission.clone(), principal_id: "alice".into() },
        // What comes later than an owner changes nothing.
        held("nobody"),
        Attribution::Ignored,
        Attribution::Matched { submission_id: "sub-r2".into(), principal_id: "bob".into() },
    ] {
        let mut seen = Vec::new();
        for _ in 0..2 {
            fixture.ledger().note_workflows(&[("wfl-1".into(), Some(at(2)))], at(2)).await.expect("noted");
            fixture.ledger().attribute("wfl-1", &attribution, Some(at(1)), at(3)).await.expect("committed");
            seen.push(fixture.books().workflow("wfl-1").await.expect("read").expect("a workflow"));
        }
        assert_eq!(seen[0], seen[1], "{attribution:?}");
    }
    let workflow = fixture.books().workflow("wfl-1").await.expect("read").expect("a workflow");
    assert_eq!((workflow.principal_id.as_deref(), workflow.submission_id), (Some("alice"), Some(submission)));
    assert_eq!((workflow.attribution.as_deref(), workflow.submitted_at), (Some("matched"), Some(at(1))));
    assert_eq!(fixture.backlog().await.open_submissions, 1, "bob's");
    for _ in 0..2 {
        fixture.submitted("sub-r1", "alice", "wfl-1", 5).await;
    }
    let workflow = fixture.books().workflow("wfl-1").await.expect("read").expect("a workflow");
    assert_eq!((workflow.attribution.as_deref(), workflow.state.as_str()), (Some("log"), "open"));
}

pub async fn a_gap_is_noted_once_and_concerns_its_own_time<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let ledger = fixture.ledger();
    assert!(!ledger.has_gap(at(0), at(100)).await.expect("read"));
    for _ in 0..2 {
        ledger.note_gap(at(10), at(20)).await.expect("committed");
    }
    for (since, until, expected) in [(0, 9, false), (0, 10, true), (12, 13, true), (20, 30, true), (21, 30, false)] {
        assert_eq!(ledger.has_gap(at(since), at(until)).await.expect("read"), expected, "{since} to {until}");
    }
}

pub async fn an_owner_that_was_corrected_while_the_charge_was_posted_gets_it_after_a_kill<S: Store>() {
    let fixture = Fixture { store: corrected_while_posted::<S>().await.store.killed_and_restarted().await };
    let after = 20 + S::TAKEN_OVER_AFTER;
    assert_eq!(fixture.due_charges(after).await, []);
    assert_eq!(fixture.due_charges(after).await[0].principal_id, "alice");
}

pub async fn an_owner_that_was_corrected_while_the_charge_was_posted_gets_it_after_its_lease<S: Store>() {
    let fixture = corrected_while_posted::<S>().await;
    assert_eq!(fixture.due_charges(100).await, []);
    assert_eq!(fixture.due_charges(100).await[0].principal_id, "alice");
}

pub async fn a_row_that_comes_late_under_a_request_id_that_is_used_up_is_there_all_the_same<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let first = fixture.submit(&alice(), "r1", 1).await;
    fixture.submitted(&first, "alice", "wfl-1", 2).await;
    let event = Event::SubmissionOpened {
        submission_id: "sub-2".into(),
        principal: Arc::new(alice()),
        request_id: "r1".into(),
        began: at(300),
        at: at(300),
    };
    fixture.ledger().record(&[event], at(301)).await.expect("committed");
    assert!(fixture.books().submission("sub-2").await.expect("read").is_some());
}

pub async fn a_retry_ends_though_runmesh_goes_on_refusing<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    let claimed = fixture.due_charges(11).await.remove(0);
    fixture.ledger().post_rejected(&claimed, "status 400").await.expect("committed");
    let mut rounds = 0;
    // As `ledger retry --rejected` does, with one `now`, while `serve` posts and Runmesh goes on refusing.
    let mut after = i64::MIN;
    while let Some(last) = fixture.books().retry(Retry::Rejected, after, at(20), 100).await.expect("committed").last() {
        after = last.number;
        rounds += 1;
        assert!(rounds < 1000, "it never ends");
        let claimed = fixture.due_charges(20).await.remove(0);
        fixture.ledger().post_rejected(&claimed, "status 400").await.expect("committed");
    }
}

pub async fn a_match_whose_submission_made_another_workflow_is_undone<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let submission = fixture.submit(&alice(), "r1", 1).await;
    fixture.ledger().note_workflows(&[("wfl-x".into(), Some(at(2)))], at(2)).await.expect("noted");
    let matched = Attribution::Matched { submission_id: submission.clone(), principal_id: "alice".into() };
    fixture.ledger().attribute("wfl-x", &matched, Some(at(2)), at(3)).await.expect("committed");
    // The log: it made another one.
    fixture.submitted(&submission, "alice", "wfl-y", 30).await;
    let settled = fixture.settle("tsk-x", "wfl-x", "wrk-1").await;
    assert_eq!(settled, Settled::Held { reason: "no_owner" });
}

pub async fn evidence_during_a_question_that_ends_in_a_hold_is_acted_on<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let ended = [Event::TaskEnded { task_id: "tsk-1".into() }];
    fixture.ledger().record(&ended, at(1)).await.expect("committed");
    let due = fixture.ledger().claim_tasks(at(10), LEASE, Pick::Due(1)).await.expect("claimed").remove(0);
    fixture.ledger().record(&ended, at(11)).await.expect("committed");
    fixture.ledger().hold_task(&due, "odd", at(3600), at(12)).await.expect("committed");
    let next = fixture.ledger().next_due(Work::Tasks).await.expect("read").expect("due");
    assert!(next <= at(12), "{next}");
}

pub async fn a_charge_that_lost_its_owner_while_it_was_posted_is_held_after_its_lease<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let submission = fixture.submit(&alice(), "r1", 1).await;
    fixture.ledger().note_workflows(&[("wfl-x".into(), Some(at(2)))], at(2)).await.expect("noted");
    let matched = Attribution::Matched { submission_id: submission.clone(), principal_id: "alice".into() };
    fixture.ledger().attribute("wfl-x", &matched, Some(at(2)), at(3)).await.expect("committed");
    assert_eq!(fixture.settle("tsk-x", "wfl-x", "wrk-1").await, charged("alice"));
    assert_eq!(fixture.due_charges(10).await.len(), 1);
    fixture.submitted(&submission, "alice", "wfl-y", 11).await;
    assert_eq!(fixture.due_charges(100).await, []);
    assert_eq!(fixture.state_of("tsk-x").await, ChargeState::Held);
}
