//! Settling, posting, leases.

use super::*;

pub async fn a_settled_task_is_one_pending_charge_of_the_workflows_owner_however_often_it_is_settled<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Already);
    let due = fixture.due_charges(10).await;
    let [charge] = due.as_slice() else { panic!("{due:?}") };
    assert_eq!((charge.email.as_str(), charge.cost.as_str(), charge.attempts), ("alice@example.com", "0.42", 0));
    assert_eq!(charge.workflow_id.as_deref(), Some("wfl-1"));
}

pub async fn an_execution_that_several_tasks_show_is_charged_once<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
    assert_eq!(fixture.settle("tsk-2", "wfl-1", "wrk-1").await, Settled::Merged);
    assert_eq!(fixture.settle("tsk-3", "wfl-1", "wrk-2").await, charged("alice"));
    assert_eq!(fixture.backlog().await.pending_charges, 2);
}

pub async fn executions_that_flowmesh_does_not_name_are_never_taken_for_one<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let Settlement::Usage(mut usage) = usage("wrk-1") else { unreachable!() };
    usage.started_at = None;
    for task in ["tsk-1", "tsk-2"] {
        let settled = fixture.ledger().settle(task, Some("wfl-1"), &Settlement::Usage(usage.clone()), at(10)).await;
        assert_eq!(settled.expect("committed"), charged("alice"));
    }
}

pub async fn an_execution_whose_name_is_too_long_for_an_index_is_charged_once_all_the_same<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    // Nothing that a database could compress.
    let mut seed = 1_u64;
    let mut long = || -> String {
        let mut draw = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'!' + u8::try_from((seed >> 40) % 90).expect("small"))
        };
        (0..3000).map(|_| draw()).collect()
    };
    let Settlement::Usage(mut usage) = usage(&long()) else { unreachable!() };
    (usage.started_at, usage.finished_at) = (Some(long()), Some(long()));
    let other = Usage { finished_at: Some(long()), ..usage.clone() };
    for (task, usage, expected) in
        [("tsk-1", &usage, charged("alice")), ("tsk-2", &usage, Settled::Merged), ("tsk-3", &other, charged("alice"))]
    {
        let settled = fixture.ledger().settle(task, Some("wfl-1"), &Settlement::Usage(usage.clone()), at(10)).await;
        assert_eq!(settled.expect("committed"), expected, "{task}");
    }
}

pub async fn a_charge_without_an_e_mail_is_held_until_its_owner_shows_up_with_one<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &principal("carol", None)).await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Held { reason: "no_email" });
    assert!(fixture.due_charges(20).await.is_empty());
    fixture.submit(&principal("carol", None), "r2", 20).await;
    assert!(fixture.due_charges(20).await.is_empty());
    fixture.submit(&principal("carol", Some("carol@example.com")), "r3", 30).await;
    assert_eq!(
        fixture.due_charges(30).await.first().map(|due| due.email.clone()).as_deref(),
        Some("carol@example.com")
    );
}

pub async fn claimed_work_belongs_to_its_claimer_until_the_lease_ends<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    assert_eq!(fixture.due_charges(10).await.len(), 1);
    assert!(fixture.due_charges(69).await.is_empty());
    assert_eq!(fixture.ledger().next_due(Work::Charges).await.expect("read"), Some(at(70)));
    assert_eq!(fixture.due_charges(70).await.len(), 1);
}

pub async fn a_kill_keeps_everything_and_the_work_of_the_dead_is_taken_over<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    assert_eq!(fixture.due_charges(10).await.len(), 1);
    let fixture = Fixture { store: fixture.store.killed_and_restarted().await };
    assert_eq!(fixture.due_charges(10 + S::TAKEN_OVER_AFTER).await.len(), 1);
    assert_eq!(fixture.ledger().born_at().await.expect("read"), at(0));
}

pub async fn a_charge_leaves_pending_by_runmeshs_word_alone<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    for (task, worker) in [("tsk-1", "wrk-1"), ("tsk-2", "wrk-2"), ("tsk-3", "wrk-3")] {
        fixture.settle(task, "wfl-1", worker).await;
    }
    let claimed = fixture.due_charges(10).await;
    let [first, second, third] = claimed.as_slice() else { panic!("{claimed:?}") };
    assert_eq!(fixture.ledger().posted(first, at(11)).await.expect("committed"), Posted::Theirs);
    fixture.ledger().post_failed(second, "status 503", at(30), at(11)).await.expect("committed");
    fixture.ledger().post_rejected(third, "status 422: no").await.expect("committed");
    let backlog = fixture.backlog().await;
    assert_eq!((backlog.pending_charges, backlog.rejected_charges, fixture.posted_charges().await), (1, 1, 1));
    assert!(fixture.due_charges(29).await.is_empty());
    let due = fixture.due_charges(30).await;
    assert_eq!(due.iter().map(|due| (due.task_id.as_str(), due.attempts)).collect::<Vec<_>>(), [("tsk-2", 1)]);
    // A late word changes nothing any more.
    fixture.ledger().post_failed(first, "late", at(40), at(40)).await.expect("committed");
    assert_eq!(fixture.posted_charges().await, 1);
}

pub async fn the_supplier_and_the_execution_are_kept_with_the_charge<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    let charge = fixture.charge("tsk-1").await;
    assert_eq!((charge.supplier_id.as_deref(), charge.assigned_worker.as_deref()), (Some("acme"), Some("wrk-1")));
    assert_eq!(charge.started_at.as_deref(), Some("2026-11-22T08:00:02Z"));
    assert_eq!(charge.finished_at.as_deref(), Some("2026-11-22T08:01:14.5Z"));
}

pub async fn a_repeated_word_of_runmeshs_changes_nothing<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    for task in ["tsk-1", "tsk-2"] {
        fixture.settle(task, "wfl-1", task).await;
    }
    for _ in 0..2 {
        fixture.posted("tsk-1", 11).await;
        fixture.rejected("tsk-2", "status 422: no").await;
        // And the other's word comes too late.
        fixture.rejected("tsk-1", "late").await;
        fixture.posted("tsk-2", 12).await;
        fixture.ledger().post_failed(&unclaimed("tsk-2"), "late", at(40), at(12)).await.expect("committed");
        let (posted, rejected) = (fixture.charge("tsk-1").await, fixture.charge("tsk-2").await);
        assert_eq!((posted.state, posted.posted_at, posted.attempts), (ChargeState::Posted, Some(at(11)), 1));
        assert_eq!((rejected.state, rejected.attempts), (ChargeState::Rejected, 1));
        assert_eq!(rejected.last_error.as_deref(), Some("status 422: no"));
    }
    assert!(fixture.due_charges(50).await.is_empty());
}

/// Bob's charge was claimed, and then nothing was heard of whoever claimed it; the log says meanwhile that its workflow is Alice's, whose
/// it becomes.
async fn claimed_by_who_fell_silent<S: Store>() -> (Fixture<S>, DueCharge, DueCharge) {
    let fixture = super::owners::corrected_while_posted::<S>().await;
    let mut bobs = unclaimed("tsk-1");
    (bobs.principal_id, bobs.leased_until) = ("bob".to_owned(), at(10) + LEASE);
    // The first claim after the lease finds that it is not Bob's, and gives it to Alice.
    let taken_over = 11 + i64::try_from(LEASE.as_secs()).expect("short");
    assert!(fixture.due_charges(taken_over).await.is_empty());
    let alices = fixture.due_charges(taken_over).await.remove(0);
    assert_eq!(alices.principal_id, "alice");
    (fixture, bobs, alices)
}

pub async fn who_comes_after_their_lease_changes_nothing_of_who_has_it_now<S: Store>() {
    let (fixture, bobs, alices) = claimed_by_who_fell_silent::<S>().await;
    let before = fixture.charge("tsk-1").await;
    fixture.ledger().post_failed(&bobs, "late", at(400), at(90)).await.expect("committed");
    fixture.ledger().post_rejected(&bobs, "late").await.expect("committed");
    assert_eq!(fixture.charge("tsk-1").await, before);
    assert!(fixture.due_charges(91).await.is_empty(), "the lease that holds is the later one");
    assert_eq!(fixture.ledger().posted(&alices, at(92)).await.expect("committed"), Posted::Theirs);
    assert_eq!(fixture.charge("tsk-1").await.principal_id.as_deref(), Some("alice"));
}

pub async fn what_was_posted_for_somebody_else_after_its_lease_is_said_and_recorded_as_it_is<S: Store>() {
    let (fixture, bobs, alices) = claimed_by_who_fell_silent::<S>().await;
    let astray = Posted::Astray { owner: Some("alice".to_owned()) };
    assert_eq!(fixture.ledger().posted(&bobs, at(90)).await.expect("committed"), astray);
    let charge = fixture.charge("tsk-1").await;
    assert_eq!((charge.state, charge.principal_id.as_deref()), (ChargeState::Posted, Some("bob")), "he has paid");
    assert_eq!(charge.posted_at, Some(at(90)));
    // Runmesh has the task already, so this moved no money.
    let astray = Posted::Astray { owner: Some("bob".to_owned()) };
    assert_eq!(fixture.ledger().posted(&alices, at(91)).await.expect("committed"), astray);
    assert_eq!(fixture.charge("tsk-1").await.posted_at, Some(at(90)));
    assert!(fixture.due_charges(500).await.is_empty());
}

/// What an answer reports of a task.
async fn report<S: Store>(fixture: &Fixture<S>, task: &str, worker: &str) {
    let Settlement::Usage(usage) = usage(worker) else { unreachable!() };
    let event = Event::UsageReported { task_id: task.into(), usage: Box::new(usage) };
    fixture.ledger().record(&[event], at(10)).await.expect("committed");
}

pub async fn usage_that_an_answer_reports_is_a_charge_at_once_and_each_execution_one<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let tasks = [("tsk-1", false), ("tsk-2", false), ("tsk-3", false)];
    fixture.ledger().note_tasks("wfl-1", &tasks, at(5)).await.expect("noted");
    for _ in 0..2 {
        report(&fixture, "tsk-1", "wrk-1").await;
        report(&fixture, "tsk-2", "wrk-1").await;
    }
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Already);
    assert_eq!(fixture.settle("tsk-3", "wfl-1", "wrk-1").await, Settled::Merged);
    assert_eq!(fixture.backlog().await.pending_charges, 1);
}

pub async fn usage_reported_of_a_task_that_nobody_knows_or_that_was_given_up_is_not_lost<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    report(&fixture, "tsk-0", "wrk-0").await;
    let backlog = fixture.backlog().await;
    assert_eq!((backlog.due_tasks, backlog.held_charges), (1, 0), "FlowMesh is asked whose it is");
    fixture.workflow("wfl-1", &alice()).await;
    fixture.ledger().settle("tsk-1", Some("wfl-1"), &Settlement::Gone, at(6)).await.expect("committed");
    report(&fixture, "tsk-1", "wrk-1").await;
    let backlog = fixture.backlog().await;
    assert_eq!((backlog.gone_tasks, backlog.pending_charges), (0, 1));
}

pub async fn a_probe_is_what_was_tried_least<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    for (task, tries) in [("tsk-1", 3), ("tsk-2", 1)] {
        fixture.settle(task, "wfl-1", task).await;
        for _ in 0..tries {
            fixture.ledger().post_failed(&unclaimed(task), "no", at(11), at(11)).await.expect("committed");
        }
    }
    let claimed = fixture.ledger().claim_charges(at(12), LEASE, Pick::LeastTried).await.expect("claimed");
    assert_eq!(claimed.iter().map(|due| due.task_id.as_str()).collect::<Vec<_>>(), ["tsk-2"]);
}
