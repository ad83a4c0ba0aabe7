//! Tasks and workflows to ask FlowMesh after.

use super::*;

pub async fn evidence_of_an_end_brings_a_task_up_soon_and_a_touch_only_when_nothing_is_planned<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let touched = [Event::TaskTouched { task_id: "tsk-1".into() }];
    let ended = [Event::TaskEnded { task_id: "tsk-1".into() }];
    fixture.ledger().record(&touched, at(1)).await.expect("committed");
    let due = fixture.ledger().claim_tasks(at(2), LEASE, Pick::Due(10)).await.expect("claimed");
    assert!(matches!(due.as_slice(), [DueTask { eager: false, attempts: 0, .. }]), "{due:?}");
    fixture.ledger().unsettled(&due[0], None, Existence::Known, at(2)).await.expect("committed");
    fixture.ledger().record(&touched, at(3)).await.expect("committed");
    assert_eq!(
        fixture.ledger().next_due(Work::Tasks).await.expect("read"),
        Some(at(7)),
        "no more than every five seconds"
    );
    fixture.ledger().record(&ended, at(4)).await.expect("committed");
    let soon = at(4) + SignedDuration::from_millis(250);
    assert_eq!(fixture.ledger().next_due(Work::Tasks).await.expect("read"), Some(soon));
    let due = fixture.ledger().claim_tasks(soon, LEASE, Pick::Due(10)).await.expect("claimed");
    assert!(matches!(due.as_slice(), [DueTask { eager: true, attempts: 0, .. }]), "{due:?}");
    fixture.ledger().settle("tsk-1", None, &Settlement::Nothing, at(5)).await.expect("committed");
    fixture.ledger().record(&ended, at(6)).await.expect("committed");
    assert_eq!(fixture.ledger().next_due(Work::Tasks).await.expect("read"), None, "a settled task stays settled");
}

pub async fn a_sweep_plans_the_tasks_that_ended_and_does_not_reset_their_growing_interval<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let tasks = [("tsk-1", true), ("tsk-2", false)];
    let open = fixture.ledger().note_tasks("wfl-1", &tasks, at(5)).await.expect("noted");
    assert_eq!(open, 2);
    let due = fixture.ledger().claim_tasks(at(5), LEASE, Pick::Due(10)).await.expect("claimed");
    assert_eq!(due.iter().map(|due| due.task_id.as_str()).collect::<Vec<_>>(), ["tsk-1"]);
    fixture.ledger().unsettled(&due[0], Some(at(50)), Existence::Known, at(5)).await.expect("committed");
    fixture.ledger().note_tasks("wfl-1", &tasks, at(6)).await.expect("noted");
    assert_eq!(fixture.ledger().next_due(Work::Tasks).await.expect("read"), Some(at(50)));
    fixture.ledger().settle("tsk-1", Some("wfl-1"), &Settlement::Nothing, at(51)).await.expect("committed");
    assert_eq!(fixture.ledger().note_tasks("wfl-1", &[("tsk-2", true)], at(52)).await.expect("noted"), 1);
}

pub async fn what_flowmesh_forgot_is_given_up_only_after_it_said_so_for_long_and_comes_back_when_it_is_seen<
    S: Store,
>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let claim = async |second| {
        fixture.ledger().claim_workflows(at(second), LEASE, Pick::Due(10)).await.expect("claimed").remove(0)
    };
    let due = claim(10).await;
    assert_eq!(due.unknown_since, None);
    let again = NextSweep::At(at(20));
    fixture.ledger().swept(&due, again, Existence::Unknown, at(10)).await.expect("committed");
    let due = claim(20).await;
    assert_eq!(due.unknown_since, Some(at(10)));
    fixture.ledger().swept(&due, NextSweep::At(at(30)), Existence::Unsaid, at(20)).await.expect("committed");
    let due = claim(30).await;
    assert_eq!(due.unknown_since, Some(at(10)), "an outage says nothing");
    fixture.ledger().swept(&due, NextSweep::At(at(40)), Existence::Known, at(30)).await.expect("committed");
    let due = claim(40).await;
    assert_eq!(due.unknown_since, None);
    fixture.ledger().swept(&due, NextSweep::Gone, Existence::Unknown, at(40)).await.expect("committed");
    assert_eq!(fixture.ledger().next_due(Work::Workflows).await.expect("read"), None);
    fixture.ledger().note_workflows(&[("wfl-1".into(), Some(at(50)))], at(50)).await.expect("noted");
    assert_eq!(fixture.ledger().next_due(Work::Workflows).await.expect("read"), Some(at(50)));

    fixture.ledger().record(&[Event::TaskEnded { task_id: "tsk-1".into() }], at(50)).await.expect("committed");
    let due = fixture.ledger().claim_tasks(at(51), LEASE, Pick::Due(10)).await.expect("claimed").remove(0);
    fixture.ledger().unsettled(&due, Some(at(60)), Existence::Unknown, at(51)).await.expect("committed");
    let due = fixture.ledger().claim_tasks(at(60), LEASE, Pick::Due(10)).await.expect("claimed").remove(0);
    assert_eq!(due.unknown_since, Some(at(51)));
    let gone = fixture.ledger().settle("tsk-1", None, &Settlement::Gone, at(61)).await.expect("committed");
    assert_eq!((gone, fixture.backlog().await.gone_tasks), (Settled::Gone, 1));
    fixture.ledger().record(&[Event::TaskEnded { task_id: "tsk-1".into() }], at(70)).await.expect("committed");
    assert_eq!(fixture.backlog().await.gone_tasks, 0);
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
}

pub async fn news_that_come_while_somebody_asks_are_acted_on_at_once<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.ledger().record(&[Event::TaskTouched { task_id: "tsk-1".into() }], at(5)).await.expect("committed");
    let task = fixture.ledger().claim_tasks(at(10), LEASE, Pick::Due(10)).await.expect("claimed").remove(0);
    let workflow = fixture.ledger().claim_workflows(at(10), LEASE, Pick::Due(10)).await.expect("claimed").remove(0);
    let news = [Event::TaskEnded { task_id: "tsk-1".into() }, Event::WorkflowSeen { workflow_id: "wfl-1".into() }];
    fixture.ledger().record(&news, at(11)).await.expect("committed");
    fixture.ledger().unsettled(&task, None, Existence::Known, at(12)).await.expect("committed");
    fixture.ledger().swept(&workflow, NextSweep::Settled, Existence::Known, at(12)).await.expect("committed");
    for work in [Work::Tasks, Work::Workflows] {
        let due = fixture.ledger().next_due(work).await.expect("read");
        assert!(due.is_some_and(|due| due <= at(12)), "{work:?}: {due:?}");
    }
}

pub async fn however_often_clients_look_flowmesh_is_asked_now_and_then<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let workflow = fixture.ledger().claim_workflows(at(10), LEASE, Pick::Due(10)).await.expect("claimed").remove(0);
    fixture.ledger().swept(&workflow, NextSweep::At(at(300)), Existence::Known, at(10)).await.expect("committed");
    let seen = [Event::WorkflowSeen { workflow_id: "wfl-1".into() }];
    for _ in 0..10 {
        fixture.ledger().record(&seen, at(11)).await.expect("committed");
    }
    assert_eq!(fixture.ledger().next_due(Work::Workflows).await.expect("read"), Some(at(15)));
}

pub async fn a_long_list_of_workflows_is_noted_once<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let list: Vec<(String, Option<Timestamp>)> = (0..1203).map(|n| (format!("wfl-{n}"), Some(at(5)))).collect();
    assert_eq!(fixture.ledger().note_workflows(&list, at(1)).await.expect("noted"), 1203);
    assert_eq!(fixture.ledger().note_workflows(&list, at(2)).await.expect("noted"), 0);
    assert_eq!(fixture.backlog().await.open_workflows, 1203);
    assert_eq!(fixture.ledger().claim_workflows(at(4), LEASE, Pick::Due(10)).await.expect("claimed"), []);
    assert_eq!(fixture.ledger().claim_workflows(at(5), LEASE, Pick::Due(10)).await.expect("claimed").len(), 10);
}

pub async fn a_repeated_answer_of_flowmeshs_changes_nothing_but_how_often_it_was_asked<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.ledger().note_tasks("wfl-1", &[("tsk-1", true)], at(5)).await.expect("noted");
    let task = fixture.ledger().claim_tasks(at(10), LEASE, Pick::Due(10)).await.expect("claimed").remove(0);
    let workflow = fixture.ledger().claim_workflows(at(10), LEASE, Pick::Due(10)).await.expect("claimed").remove(0);
    for _ in 0..2 {
        fixture.ledger().unsettled(&task, Some(at(40)), Existence::Unknown, at(11)).await.expect("committed");
        assert_eq!(fixture.ledger().next_due(Work::Tasks).await.expect("read"), Some(at(40)));
        let next = NextSweep::At(at(50));
        fixture.ledger().swept(&workflow, next, Existence::Unknown, at(11)).await.expect("committed");
        assert_eq!(fixture.ledger().next_due(Work::Workflows).await.expect("read"), Some(at(50)));
    }
    // What is over stays so, whatever comes late.
    fixture.ledger().settle("tsk-1", Some("wfl-1"), &Settlement::Nothing, at(12)).await.expect("committed");
    fixture.ledger().swept(&workflow, NextSweep::Settled, Existence::Known, at(12)).await.expect("committed");
    fixture.ledger().unsettled(&task, Some(at(40)), Existence::Known, at(13)).await.expect("committed");
    fixture.ledger().swept(&workflow, NextSweep::At(at(50)), Existence::Known, at(13)).await.expect("committed");
    for work in [Work::Tasks, Work::Workflows] {
        assert_eq!(fixture.ledger().next_due(work).await.expect("read"), None);
    }
}

pub async fn a_sweep_that_waits_for_somebodys_word_does_not_make_the_next_ones_rarer<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.ledger().note_workflows(&[("wfl-1".into(), Some(at(1)))], at(1)).await.expect("noted");
    let claim = async |second| {
        fixture.ledger().claim_workflows(at(second), LEASE, Pick::Due(10)).await.expect("claimed").remove(0)
    };
    for second in 1..5 {
        let due = claim(second).await;
        assert_eq!(due.sweeps, 0);
        let wait = NextSweep::Wait(at(second + 1));
        fixture.ledger().swept(&due, wait, Existence::Known, at(second)).await.expect("committed");
    }
    let due = claim(5).await;
    fixture.ledger().swept(&due, NextSweep::At(at(6)), Existence::Known, at(5)).await.expect("committed");
    assert_eq!(claim(6).await.sweeps, 1);
}
