//! The operator tries charges again.

use super::*;
use crate::ledger::books::Retry;

async fn retried<S: Store>(fixture: &Fixture<S>, which: Retry<'_>, second: i64) -> Vec<(String, ChargeState)> {
    let retried = fixture.books().retry(which, i64::MIN, at(second), 100).await.expect("committed");
    let mut retried: Vec<_> = retried.into_iter().map(|charge| (charge.task_id, charge.from)).collect();
    retried.sort_by(|left, right| left.0.cmp(&right.0));
    retried
}

pub async fn a_rejected_charge_is_pending_again_and_keeps_what_runmesh_said<S: Store>() {
    let fixture = super::books::one_of_each::<S>().await;
    let rejected = [("tsk-rejected".to_owned(), ChargeState::Rejected)];
    assert_eq!(retried(&fixture, Retry::Task("tsk-rejected"), 20).await, rejected);
    let charge = fixture.charge("tsk-rejected").await;
    assert_eq!((charge.state, charge.attempts, charge.post_at), (ChargeState::Pending, 1, at(20)));
    assert_eq!(charge.last_error.as_deref(), Some("status 422: no"));
    assert_eq!(retried(&fixture, Retry::Task("tsk-rejected"), 20).await, [], "it is due already");
    assert_eq!(fixture.due_charges(20).await.len(), 2);
    fixture.posted("tsk-rejected", 21).await;
    assert_eq!(fixture.charge("tsk-rejected").await.last_error, None);
}

pub async fn only_what_can_be_tried_again_is<S: Store>() {
    let fixture = super::books::one_of_each::<S>().await;
    for task in ["tsk-held", "tsk-posted", "tsk-pending", "tsk-none"] {
        assert_eq!(retried(&fixture, Retry::Task(task), 20).await, [], "{task}");
    }
    let claimed = fixture.due_charges(20).await;
    assert_eq!(claimed.len(), 1);
    // Being posted, and then far from due.
    assert_eq!(retried(&fixture, Retry::Task("tsk-pending"), 20).await, []);
    fixture.ledger().post_failed(&claimed[0], "status 503", at(500), at(21)).await.expect("committed");
    let later = ("tsk-pending".to_owned(), ChargeState::Pending);
    let rejected = ("tsk-rejected".to_owned(), ChargeState::Rejected);
    assert_eq!(retried(&fixture, Retry::All, 22).await, [later, rejected]);
    assert_eq!(retried(&fixture, Retry::All, 22).await, []);
    assert_eq!(fixture.due_charges(22).await.len(), 2);
}

pub async fn many_are_retried_in_parts_until_none_is_left<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    for n in 0..7 {
        let task = format!("tsk-{n}");
        fixture.settle(&task, "wfl-1", &task).await;
        fixture.rejected(&task, "no").await;
    }
    for expected in [3, 3, 1, 0] {
        assert_eq!(
            fixture.books().retry(Retry::Rejected, i64::MIN, at(20), 3).await.expect("committed").len(),
            expected
        );
    }
    assert_eq!(fixture.due_charges(20).await.len(), 7);
}

pub async fn a_rejected_charge_whose_owner_was_corrected_goes_to_the_new_one<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let submission = fixture.submit(&bob(), "r1", 1).await;
    fixture.ledger().note_workflows(&[("wfl-1".into(), Some(at(2)))], at(2)).await.expect("noted");
    let matched = Attribution::Matched { submission_id: submission, principal_id: "bob".into() };
    fixture.ledger().attribute("wfl-1", &matched, None, at(3)).await.expect("committed");
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    fixture.rejected("tsk-1", "no such user").await;
    fixture.submit(&alice(), "r2", 4).await;
    fixture.submitted("sub-r2", "alice", "wfl-1", 5).await;
    assert_eq!(fixture.state_of("tsk-1").await, ChargeState::Rejected);
    fixture.books().retry(Retry::Rejected, i64::MIN, at(20), 10).await.expect("committed");
    assert_eq!(fixture.due_charges(20).await[0].principal_id, "alice");
}
