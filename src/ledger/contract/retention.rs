//! Pruning, and what comes back after it.

use super::*;
use crate::ledger::Pruned;
use crate::settlement::attribution;

const DAY: i64 = 86_400;

async fn prune<S: Store>(fixture: &Fixture<S>, before: i64) -> Pruned {
    fixture.ledger().prune(at(before), at(before + 90 * DAY)).await.expect("committed").expect("not too early")
}

/// Alice's workflow of two tasks, one of them posted and one that cost nothing, and nothing left to ask.
async fn billed<S: Store>() -> Fixture<S> {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.post("tsk-1", "wfl-1", 5).await;
    fixture.ledger().settle("tsk-2", Some("wfl-1"), &Settlement::Nothing, at(5)).await.expect("committed");
    fixture.settle_workflows(10).await;
    fixture
}

async fn is_there<S: Store>(fixture: &Fixture<S>, workflow: &str) -> bool {
    fixture.books().workflow(workflow).await.expect("read").is_some()
}

pub async fn what_is_over_and_old_goes_with_all_of_its_rows<S: Store>() {
    let fixture = billed::<S>().await;
    let refused = fixture.submit(&bob(), "r2", 3).await;
    let refused = Event::SubmissionRefused { over: over(&refused, "bob", 3, 3) };
    fixture.ledger().record(&[refused], at(3)).await.expect("committed");
    fixture.submit(&bob(), "r3", 3).await;
    fixture.ledger().settle("tsk-gone", None, &Settlement::Gone, at(3)).await.expect("committed");
    assert_eq!(prune(&fixture, DAY).await, Pruned::default(), "FlowMesh's clock may be a little apart");
    let pruned = prune(&fixture, 2 * DAY).await;
    assert_eq!(pruned, Pruned { charges: 1, tasks: 3, workflows: 1, submissions: 3 });
    assert!(!is_there(&fixture, "wfl-1").await);
    assert_eq!(fixture.books().charge("tsk-1").await.expect("read"), None);
    assert_eq!(fixture.books().task("tsk-2").await.expect("read"), None);
    assert_eq!(fixture.books().submission("sub-wfl-1").await.expect("read"), None);
    assert_eq!(fixture.backlog().await, Backlog::default());
    assert_eq!(fixture.ledger().ours_since().await.expect("read"), at(2 * DAY));
    assert_eq!(fixture.ledger().born_at().await.expect("read"), at(0));
}

pub async fn nothing_unposted_unsettled_or_young_goes<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    // Each has a posted charge that is old enough, and something that keeps it.
    for (workflow, task) in [("wfl-1", "tsk-1"), ("wfl-2", "tsk-2"), ("wfl-3", "tsk-3"), ("wfl-4", "tsk-4")] {
        fixture.workflow(workflow, &alice()).await;
        fixture.post(task, workflow, 5).await;
    }
    fixture.settle("tsk-pending", "wfl-1", "wrk-1").await;
    fixture.settle("tsk-rejected", "wfl-2", "wrk-2").await;
    fixture.rejected("tsk-rejected", "no").await;
    fixture.ledger().note_tasks("wfl-3", &[("tsk-open", false)], at(5)).await.expect("noted");
    fixture.post("tsk-young", "wfl-4", 3 * DAY).await;
    fixture.workflow("wfl-5", &principal("carol", None)).await;
    fixture.settle("tsk-held", "wfl-5", "wrk-5").await;
    fixture.held_workflow("wfl-6", 5).await;
    fixture.settle("tsk-held-too", "wfl-6", "wrk-6").await;
    fixture.ledger().settle("tsk-of-none", None, &usage("wrk-8"), at(5)).await.expect("committed");
    fixture.settle_workflows(10).await;
    // Not settled itself.
    fixture.workflow("wfl-7", &alice()).await;
    fixture.post("tsk-7", "wfl-7", 5).await;
    assert_eq!(prune(&fixture, 2 * DAY).await, Pruned::default());
    for task in ["tsk-pending", "tsk-rejected", "tsk-held", "tsk-held-too", "tsk-of-none", "tsk-1", "tsk-7"] {
        fixture.charge(task).await;
    }
    // What kept them is over: they go, too.
    fixture.posted("tsk-pending", 2 * DAY).await;
    assert_eq!(prune(&fixture, 3 * DAY).await, Pruned { charges: 2, tasks: 2, workflows: 1, submissions: 1 });
    assert_eq!(prune(&fixture, 4 * DAY).await, Pruned { charges: 2, tasks: 2, workflows: 1, submissions: 1 });
    assert!(!is_there(&fixture, "wfl-1").await && !is_there(&fixture, "wfl-4").await);
}

pub async fn what_was_pruned_and_is_seen_again_is_never_billed_again<S: Store>() {
    let fixture = billed::<S>().await;
    // Bob's, of the same time: nothing else would speak against it.
    fixture.held_workflow("wfl-held", 3).await;
    fixture.settle("tsk-held", "wfl-held", "wrk-1").await;
    fixture.submit(&bob(), "r2", 2).await;
    prune(&fixture, 2 * DAY).await;
    assert!(!is_there(&fixture, "wfl-1").await);
    let now = 100 * DAY;
    let seen = [Event::TaskEnded { task_id: "tsk-1".into() }, Event::WorkflowSeen { workflow_id: "wfl-1".into() }];
    fixture.ledger().record(&seen, at(now)).await.expect("committed");
    let settle = async || fixture.ledger().settle("tsk-1", Some("wfl-1"), &usage("tsk-1"), at(now)).await;
    assert_eq!(settle().await.expect("committed"), Settled::Deferred);
    // As the sweep does, with FlowMesh's word that it took the workflow at 2.
    let ours_since = fixture.ledger().ours_since().await.expect("read");
    let open = fixture.ledger().open_submissions(at(0), at(10)).await.expect("read");
    assert_eq!(open.len(), 1);
    let decided = attribution::decide(Some(at(2)), &open, false, ours_since);
    assert_eq!(decided, Attribution::Ignored);
    fixture.ledger().attribute("wfl-1", &decided, Some(at(2)), at(now)).await.expect("committed");
    assert_eq!(settle().await.expect("committed"), Settled::Ignored);
    // As the comparison does.
    fixture.ledger().note_workflows(&[("wfl-1".into(), None)], at(now)).await.expect("noted");
    assert_eq!(fixture.books().charge("tsk-1").await.expect("read"), None);
    assert_eq!(fixture.backlog().await.pending_charges, 0);
    // And the next time it is old enough it goes again.
    assert_eq!(prune(&fixture, now + 2 * DAY).await.workflows, 1);
}

pub async fn a_replayed_log_entry_of_a_pruned_workflow_changes_nothing<S: Store>() {
    let fixture = billed::<S>().await;
    prune(&fixture, 2 * DAY).await;
    for _ in 0..2 {
        fixture.submitted("sub-wfl-1", "alice", "wfl-1", 2).await;
        assert!(!is_there(&fixture, "wfl-1").await);
        fixture.ledger().note_workflows(&[("wfl-1".into(), None)], at(100 * DAY)).await.expect("noted");
        fixture.submitted("sub-wfl-1", "alice", "wfl-1", 2).await;
        let workflow = fixture.books().workflow("wfl-1").await.expect("read").expect("a workflow");
        assert_eq!((workflow.state.as_str(), workflow.principal_id), ("ignored", None));
        prune(&fixture, 200 * DAY).await;
    }
    // Of a workflow that is held until today it is as good as ever.
    fixture.held_workflow("wfl-2", 3).await;
    fixture.settle("tsk-held", "wfl-2", "wrk-1").await;
    fixture.submitted("sub-2", "alice", "wfl-2", 3).await;
    assert_eq!(fixture.due_charges(201 * DAY).await.len(), 1);
}

pub async fn a_replayed_end_of_a_pruned_submission_does_not_bring_it_back<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.submit(&bob(), "r1", 3).await;
    fixture.submit(&bob(), "r2", 3).await;
    let ends = [
        Event::SubmissionRefused { over: over("sub-r1", "bob", 3, 4) },
        Event::SubmissionEnded { over: over("sub-r2", "bob", 3, 4), failed: false },
    ];
    fixture.ledger().record(&ends, at(4)).await.expect("committed");
    assert_eq!(prune(&fixture, 2 * DAY).await.submissions, 2);
    fixture.ledger().record(&ends, at(100 * DAY)).await.expect("committed");
    for id in ["sub-r1", "sub-r2"] {
        assert_eq!(fixture.books().submission(id).await.expect("read"), None);
    }
}

pub async fn an_open_submission_stays_while_a_held_workflow_has_it_for_a_candidate<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let (candidate, other) = (fixture.submit(&alice(), "r1", 100).await, fixture.submit(&alice(), "r2", 2000).await);
    fixture.held_workflow("wfl-1", 103).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    assert_eq!(prune(&fixture, 2 * DAY).await.submissions, 1);
    let left = fixture.books().candidates(at(103)).await.expect("read");
    assert_eq!(left.iter().map(|open| &open.submission_id).collect::<Vec<_>>(), [&candidate]);
    assert_eq!(fixture.books().submission(&other).await.expect("read"), None);
    let naming = crate::ledger::books::Naming {
        workflow_id: "wfl-1",
        principal_id: "alice",
        email: None,
        submission_id: Some(&candidate),
        at: at(2 * DAY),
    };
    fixture.books().name_owner(naming).await.expect("committed");
    assert_eq!(fixture.due_charges(2 * DAY).await.len(), 1);
}

pub async fn nothing_goes_while_an_owner_is_still_to_be_looked_for<S: Store>() {
    let fixture = billed::<S>().await;
    // Heard of only now, though FlowMesh may have had it for long: the open submission may be its own.
    fixture.submit(&alice(), "r1", 3).await;
    let now = 100 * DAY;
    fixture.ledger().note_workflows(&[("wfl-2".into(), Some(at(now)))], at(now)).await.expect("noted");
    assert_eq!(fixture.ledger().prune(at(2 * DAY), at(now + 301)).await.expect("read"), None);
    assert!(is_there(&fixture, "wfl-1").await);
    assert_eq!(fixture.ledger().ours_since().await.expect("read"), at(0));
    fixture.ledger().attribute("wfl-2", &held("nobody"), Some(at(now)), at(now)).await.expect("committed");
    assert!(fixture.ledger().prune(at(2 * DAY), at(now + 301)).await.expect("committed").is_some());
    assert!(!is_there(&fixture, "wfl-1").await);
}

pub async fn a_workflow_of_many_tasks_goes_in_parts<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let ids: Vec<String> = (0..1203).map(|n| format!("tsk-{n}")).collect();
    for id in &ids {
        fixture.ledger().settle(id, Some("wfl-1"), &Settlement::Nothing, at(5)).await.expect("committed");
    }
    fixture.settle_workflows(10).await;
    assert_eq!(prune(&fixture, 2 * DAY).await, Pruned { charges: 0, tasks: 1203, workflows: 1, submissions: 1 });
}

pub async fn pruning_again_changes_nothing<S: Store>() {
    let fixture = billed::<S>().await;
    prune(&fixture, 2 * DAY).await;
    assert_eq!(prune(&fixture, 2 * DAY).await, Pruned::default());
    assert_eq!(prune(&fixture, DAY).await, Pruned::default());
    assert_eq!(fixture.ledger().ours_since().await.expect("read"), at(2 * DAY), "it does not go back");
}
