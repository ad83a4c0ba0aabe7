//! What the operator reads.

use super::*;
use crate::ledger::books::{Filter, Tally};

/// One charge in every state but posted, and one posted: `tsk-pending` and so on, each of 0.42.
pub async fn one_of_each<S: Store>() -> Fixture<S> {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.held_workflow("wfl-2", 5).await;
    fixture.settle("tsk-held", "wfl-2", "wrk-1").await;
    fixture.settle("tsk-rejected", "wfl-1", "wrk-2").await;
    fixture.rejected("tsk-rejected", "status 422: no").await;
    fixture.post("tsk-posted", "wfl-1", 11).await;
    fixture.settle("tsk-pending", "wfl-1", "wrk-3").await;
    fixture
}

pub async fn everything_is_counted_by_state_with_its_oldest_and_summed_exactly<S: Store>() {
    let fixture = one_of_each::<S>().await;
    for (task, cost) in [("tsk-a", "0.1"), ("tsk-b", "0.200000000000000000000000000000000000001")] {
        let settlement = costing(cost, task);
        fixture.ledger().settle(task, Some("wfl-1"), &settlement, at(20)).await.expect("committed");
    }
    fixture.submit(&bob(), "r2", 7).await;
    let ended = [Event::TaskEnded { task_id: "tsk-due".into() }];
    fixture.ledger().record(&ended, at(8)).await.expect("committed");
    fixture.ledger().note_tasks("wfl-1", &[("tsk-waiting", false)], at(8)).await.expect("noted");
    fixture.ledger().settle("tsk-gone", None, &Settlement::Gone, at(9)).await.expect("committed");
    let standing = fixture.books().standing().await.expect("counted");
    let tally = |rows, oldest| Tally { rows, oldest: Some(at(oldest)) };
    assert_eq!((standing.born_at, standing.compared_at), (at(0), None));
    assert_eq!(standing.open_submissions, tally(1, 7));
    assert_eq!((standing.open_workflows, standing.held_workflows), (tally(2, 2), tally(1, 5)));
    assert_eq!(standing.due_tasks.rows, 1);
    assert_eq!(standing.waiting_tasks, Tally { rows: 1, oldest: None });
    assert_eq!(standing.gone_tasks, tally(1, 9));
    assert_eq!(standing.charges, [tally(3, 10), tally(1, 10), tally(1, 10), tally(1, 11)]);
    let pending = fixture.books().sum(ChargeState::Pending).await.expect("summed");
    assert_eq!(pending.to_string(), "0.720000000000000000000000000000000000001");
    assert_eq!(fixture.books().sum(ChargeState::Posted).await.expect("summed").to_string(), "0.42");
}

pub async fn charges_are_listed_newest_first_page_by_page_and_filtered<S: Store>() {
    let fixture = one_of_each::<S>().await;
    let listed = async |filter: Filter| {
        let (mut found, mut below) = (Vec::new(), None);
        loop {
            let page = fixture.books().charges(&filter, below, 2).await.expect("read");
            let Some(last) = page.last() else { return found };
            below = Some(last.number);
            found.extend(page.into_iter().map(|charge| charge.task_id));
        }
    };
    let all = Filter::default();
    assert_eq!(listed(all.clone()).await, ["tsk-pending", "tsk-posted", "tsk-rejected", "tsk-held"]);
    let states = vec![ChargeState::Held, ChargeState::Posted];
    assert_eq!(listed(Filter { states, ..all.clone() }).await, ["tsk-posted", "tsk-held"]);
    let of = |workflow: &str| Filter { workflow_id: Some(workflow.into()), ..Filter::default() };
    assert_eq!(listed(of("wfl-2")).await, ["tsk-held"]);
    let alices = Filter { principal_id: Some("alice".into()), ..all.clone() };
    assert_eq!(listed(alices.clone()).await.len(), 3);
    assert_eq!(listed(Filter { since: Some(at(11)), ..alices.clone() }).await, ["tsk-posted"]);
    assert_eq!(listed(Filter { until: Some(at(11)), ..alices }).await, ["tsk-pending", "tsk-rejected"]);
    assert_eq!(listed(Filter { since: Some(at(12)), ..all }).await, Vec::<String>::new());
}

pub async fn posted_charges_come_in_the_order_of_posting_page_by_page<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    for (task, second) in [("tsk-5", 30), ("tsk-1", 20), ("tsk-3", 20), ("tsk-2", 20), ("tsk-4", 10), ("tsk-6", 40)] {
        fixture.post(task, "wfl-1", second).await;
    }
    fixture.settle("tsk-7", "wfl-1", "wrk-7").await;
    for limit in 1..5 {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = fixture.books().posted(at(20), at(40), after.as_ref(), limit).await.expect("read");
            let Some(last) = page.last() else { break };
            after = Some((last.posted_at.expect("posted"), last.task_id.clone()));
            found.extend(page.into_iter().map(|charge| charge.task_id));
        }
        assert_eq!(found, ["tsk-1", "tsk-2", "tsk-3", "tsk-5"], "from 20 to before 40");
    }
}

pub async fn a_glance_has_the_newest_of_each_kind_and_no_more_than_was_asked_for<S: Store>() {
    let fixture = one_of_each::<S>().await;
    let tasks = |charges: &[Charge]| charges.iter().map(|charge| charge.task_id.clone()).collect::<Vec<_>>();
    let glance = fixture.books().glance(10).await.expect("read");
    assert_eq!(tasks(&glance.latest), ["tsk-pending", "tsk-posted", "tsk-rejected", "tsk-held"]);
    assert_eq!((tasks(&glance.held), tasks(&glance.rejected)), (vec!["tsk-held".into()], vec!["tsk-rejected".into()]));
    assert_eq!(glance.rejected[0].last_error.as_deref(), Some("status 422: no"));
    let workflows: Vec<&str> = glance.held_workflows.iter().map(|held| held.workflow_id.as_str()).collect();
    assert_eq!((workflows, glance.held_tasks), (vec!["wfl-2"], Vec::new()));

    fixture.held_workflow("wfl-0", 6).await;
    for (task, second) in [("tsk-a", 20), ("tsk-c", 30), ("tsk-b", 40)] {
        let usage = costing("1", task);
        fixture.ledger().settle(task, Some("wfl-2"), &usage, at(second)).await.expect("committed");
        let ended = [Event::TaskEnded { task_id: format!("{task}-held") }];
        fixture.ledger().record(&ended, at(second)).await.expect("committed");
        let due = fixture.ledger().claim_tasks(at(second + 5), LEASE, Pick::Due(1)).await.expect("claimed").remove(0);
        fixture.ledger().hold_task(&due, "no cost", at(second + 100), at(second + 5)).await.expect("held");
    }
    let glance = fixture.books().glance(2).await.expect("read");
    assert_eq!(tasks(&glance.latest), ["tsk-b", "tsk-c"]);
    assert_eq!(tasks(&glance.held), ["tsk-b", "tsk-c"]);
    let workflows: Vec<&str> = glance.held_workflows.iter().map(|held| held.workflow_id.as_str()).collect();
    assert_eq!(workflows, ["wfl-0", "wfl-2"]);
    let held: Vec<&str> = glance.held_tasks.iter().map(|task| task.task_id.as_str()).collect();
    assert_eq!(held, ["tsk-b-held", "tsk-c-held"], "asked after last");
    assert_eq!(glance.held_tasks[0].hold_reason.as_deref(), Some("no cost"));
}

pub async fn held_workflows_are_listed_with_those_who_may_have_made_them<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.submit(&alice(), "r1", 100).await;
    fixture.submit(&bob(), "r2", 101).await;
    fixture.submit(&bob(), "late", 200).await;
    fixture.submit(&bob(), "early", -2000).await;
    fixture.held_workflow("wfl-2", 103).await;
    fixture.held_workflow("wfl-1", 300).await;
    fixture.workflow("wfl-3", &alice()).await;
    let held = fixture.books().held_workflows("", 10).await.expect("read");
    let ids: Vec<&str> = held.iter().map(|held| held.workflow_id.as_str()).collect();
    assert_eq!(ids, ["wfl-1", "wfl-2"]);
    assert_eq!((held[1].hold_reason.as_deref(), held[1].submitted_at), (Some("several"), Some(at(103))));
    assert_eq!(fixture.books().held_workflows("", 1).await.expect("read").len(), 1);
    assert_eq!(fixture.books().held_workflows("wfl-1", 10).await.expect("read").len(), 1);
    let candidates = fixture.books().candidates(at(103)).await.expect("read");
    let ids: Vec<&str> = candidates.iter().map(|open| open.submission_id.as_str()).collect();
    assert_eq!(ids, ["sub-r1", "sub-r2"]);
}

pub async fn one_thing_is_shown_with_all_that_is_known_of_it<S: Store>() {
    let fixture = one_of_each::<S>().await;
    let books = fixture.books();
    let charge = fixture.charge("tsk-rejected").await;
    assert_eq!((charge.cost.as_str(), charge.attempts, charge.state), ("0.42", 1, ChargeState::Rejected));
    assert_eq!(charge.last_error.as_deref(), Some("status 422: no"));
    assert_eq!(charge.email.as_deref(), Some("alice@example.com"));
    let task = books.task("tsk-rejected").await.expect("read").expect("a task");
    assert_eq!(
        (task.state.as_str(), task.outcome.as_deref(), task.asked_at),
        ("settled", Some("charged"), Some(at(10)))
    );
    let workflow = books.workflow("wfl-1").await.expect("read").expect("a workflow");
    assert_eq!((workflow.attribution.as_deref(), workflow.email.as_deref()), (Some("log"), Some("alice@example.com")));
    let submission = books.submission("sub-wfl-1").await.expect("read").expect("a submission");
    assert_eq!((submission.state.as_str(), submission.request_id.as_str()), ("resolved", "wfl-1"));
    let tasks = books.tasks("wfl-1", "", 2).await.expect("read");
    assert_eq!(tasks.iter().map(|task| task.task_id.as_str()).collect::<Vec<_>>(), ["tsk-pending", "tsk-posted"]);
    assert_eq!(books.tasks("wfl-1", "tsk-posted", 2).await.expect("read").len(), 1);
    assert_eq!(books.charge("tsk-none").await.expect("read"), None);
    assert_eq!(books.task("tsk-none").await.expect("read"), None);
    assert_eq!(books.workflow("wfl-none").await.expect("read"), None);
    assert_eq!(books.submission("sub-none").await.expect("read"), None);
}

pub async fn the_oldest_of_everything_that_waits_is_told_and_nothing_of_what_is_over<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    assert_eq!(fixture.backlog().await, Backlog::default());
    fixture.workflow("wfl-1", &alice()).await;
    fixture.held_workflow("wfl-2", 5).await;
    let settled = async |task: &str, workflow: &str, second| {
        fixture.ledger().settle(task, Some(workflow), &usage(task), at(second)).await.expect("committed");
    };
    for (task, workflow, second) in [
        ("tsk-held", "wfl-2", 10),
        ("tsk-held-later", "wfl-2", 11),
        ("tsk-rejected", "wfl-1", 20),
        ("tsk-posted", "wfl-1", 9),
        ("tsk-pending-later", "wfl-1", 31),
        ("tsk-pending", "wfl-1", 30),
    ] {
        settled(task, workflow, second).await;
    }
    fixture.rejected("tsk-rejected", "status 422: no").await;
    fixture.posted("tsk-posted", 12).await;
    for (task, second) in [("tsk-due-later", 41), ("tsk-due", 40)] {
        fixture.ledger().record(&[Event::TaskEnded { task_id: task.into() }], at(second)).await.expect("committed");
    }
    let backlog = fixture.backlog().await;
    assert_eq!(
        [backlog.oldest_held, backlog.oldest_rejected, backlog.oldest_pending],
        [Some(at(10)), Some(at(20)), Some(at(30))]
    );
    // What has just been heard of is left in peace for a moment.
    let due = backlog.oldest_due_task.expect("one");
    assert!((at(40)..at(41)).contains(&due), "{due}");
    assert_eq!(backlog.oldest_open_workflow, Some(at(2)));
    fixture.settle_workflows(50).await;
    assert_eq!(fixture.backlog().await.oldest_open_workflow, None);
}
