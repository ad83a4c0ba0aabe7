//! A batch of log events is what its events are one by one.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use super::*;

fn task_ended(task: &str) -> Event {
    Event::TaskEnded { task_id: task.into() }
}

fn used(task: &str, worker: &str) -> Event {
    let Settlement::Usage(usage) = usage(worker) else { unreachable!() };
    Event::UsageReported { task_id: task.into(), usage: Box::new(usage) }
}

fn submitted(submission: &str, principal: &str, workflow: &str) -> Event {
    Event::Submitted {
        submission_id: submission.into(),
        principal_id: principal.into(),
        workflow_id: workflow.into(),
        at: at(2),
    }
}

fn opened(submission: &str, principal: Principal, request: &str) -> Event {
    Event::SubmissionOpened {
        submission_id: submission.into(),
        principal: std::sync::Arc::new(principal),
        request_id: request.into(),
        began: at(2),
        at: at(2),
    }
}

pub async fn one_task_in_a_batch_in_several_kinds_is_asked_after_as_if_they_came_one_by_one<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let touched = |task: &str| Event::TaskTouched { task_id: task.into() };
    let events = [
        touched("tsk-1"),
        task_ended("tsk-1"),
        touched("tsk-1"),
        task_ended("tsk-1"),
        touched("tsk-2"),
        touched("tsk-2"),
        used("tsk-3", "wrk-1"),
        task_ended("tsk-3"),
    ];
    assert_eq!(fixture.ledger().record(&events, at(5)).await.expect("committed"), []);
    let due = fixture.ledger().claim_tasks(at(6), LEASE, Pick::Due(10)).await.expect("claimed");
    let mut due: Vec<_> = due.iter().map(|due| (due.task_id.as_str(), due.eager, due.heard)).collect();
    due.sort_unstable();
    // The evidence that made the row is not counted.
    assert_eq!(due, [("tsk-1", true, 2), ("tsk-2", false, 0), ("tsk-3", true, 1)]);
}

pub async fn a_submission_and_all_that_follows_from_it_may_come_in_one_batch<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let seen = Event::WorkflowSeen { workflow_id: "wfl-1".into() };
    let made = submitted("sub-1", "alice", "wfl-1");
    let events = [
        seen.clone(),
        opened("sub-1", alice(), "r1"),
        made.clone(),
        seen,
        task_ended("tsk-1"),
        made,
        Event::SubmissionEnded { over: over("sub-1", "alice", 2, 3), failed: true },
        Event::SubmissionRefused { over: over("sub-2", "alice", 2, 3) },
    ];
    for _ in 0..2 {
        fixture.ledger().record(&events, at(5)).await.expect("committed");
        let backlog = fixture.backlog().await;
        assert_eq!((backlog.open_submissions, backlog.open_workflows, backlog.due_tasks), (0, 1, 1));
        assert_eq!(
            fixture.books().workflow("wfl-1").await.expect("read").expect("a row").principal_id.as_deref(),
            Some("alice")
        );
    }
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
}

pub async fn of_usage_in_one_batch_each_execution_is_charged_once_and_to_whom_it_belongs<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.workflow("wfl-2", &principal("carol", None)).await;
    fixture.ledger().note_workflows(&[("wfl-3".into(), Some(at(3)))], at(3)).await.expect("noted");
    for (workflow, tasks) in
        [("wfl-1", ["tsk-1", "tsk-2"]), ("wfl-2", ["tsk-3", "tsk-4"]), ("wfl-3", ["tsk-5", "tsk-6"])]
    {
        fixture.ledger().note_tasks(workflow, &tasks.map(|task| (task, false)), at(4)).await.expect("noted");
    }
    let events = [
        used("tsk-2", "wrk-1"),
        used("tsk-1", "wrk-1"),
        used("tsk-3", "wrk-3"),
        used("tsk-2", "wrk-1"),
        used("tsk-5", "wrk-5"),
        submitted("sub-3", "alice", "wfl-3"),
        used("tsk-6", "wrk-6"),
        used("tsk-5", "wrk-5"),
    ];
    let written = fixture.ledger().record(&events, at(5)).await.expect("committed");
    let written: Vec<_> = written.iter().map(|charge| (charge.task_id.as_str(), charge.settled.clone())).collect();
    let (alices, carols) = (charged("alice"), Settled::Held { reason: "no_email" });
    let expected = [("tsk-2", alices.clone()), ("tsk-3", carols), ("tsk-6", alices.clone()), ("tsk-5", alices.clone())];
    assert_eq!(written, expected);
    assert_eq!(fixture.ledger().record(&events, at(6)).await.expect("committed"), []);
}

pub async fn moves_that_are_committed_together_come_to_what_each_does<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let ledger = fixture.ledger();
    let usages: Vec<_> = (0..40).map(|n| usage(&format!("wrk-{n}"))).collect();
    let settling = (0..80).map(|n| {
        let (task, usage) = (format!("tsk-{n}"), &usages[n / 2]);
        async move { ledger.settle(&task, Some("wfl-1"), usage, at(10)).await.expect("committed") }
    });
    let settled = futures_util::future::join_all(settling).await;
    // Two tasks show each execution.
    assert_eq!(settled.iter().filter(|settled| **settled == charged("alice")).count(), 40);
    assert_eq!(settled.iter().filter(|settled| **settled == Settled::Merged).count(), 40);
    let due = ledger.claim_charges(at(10), LEASE, Pick::Due(100)).await.expect("claimed");
    assert_eq!(due.len(), 40);
    let posting = due.iter().enumerate().map(async |(n, due)| match n % 3 {
        0 => ledger.posted(due, at(11)).await.map(drop),
        1 => ledger.post_failed(due, &format!("failure {n}"), at(50), at(11)).await,
        _ => ledger.post_rejected(due, &format!("refusal {n}")).await,
    });
    for posted in futures_util::future::join_all(posting).await {
        posted.expect("committed");
    }
    for (n, due) in due.iter().enumerate() {
        let charge = fixture.charge(&due.task_id).await;
        let expected = match n % 3 {
            0 => (ChargeState::Posted, None),
            1 => (ChargeState::Pending, Some(format!("failure {n}"))),
            _ => (ChargeState::Rejected, Some(format!("refusal {n}"))),
        };
        assert_eq!((charge.state, charge.last_error, charge.attempts), (expected.0, expected.1, 1));
    }
}

/// Whatever text the other sides send comes through as it was.
pub async fn a_text_of_any_characters_is_kept_as_it_is<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    let odd = "a\u{0}b\"'\\\n\u{1f600}\u{7f}é \u{2028}";
    fixture.workflow("wfl-1", &principal(odd, Some("odd@example.com"))).await;
    for (task, started) in [("tsk-1", "\u{0}1"), ("tsk-2", "\u{0}2")] {
        let Settlement::Usage(mut usage) = usage("wrk-1") else { unreachable!() };
        (usage.started_at, usage.cost) = (Some(started.into()), "0.12345678901234567890".into());
        let settled = fixture.ledger().settle(task, Some("wfl-1"), &Settlement::Usage(usage), at(10)).await;
        assert_eq!(settled.expect("committed"), charged(odd), "another execution");
    }
    fixture.rejected("tsk-1", odd).await;
    assert_eq!(fixture.charge("tsk-1").await.last_error.as_deref(), Some(odd));
    let due = fixture.due_charges(10).await;
    assert_eq!((due[0].principal_id.as_str(), due[0].cost.as_str()), (odd, "0.12345678901234567890"));
}

/// Ids of one case: cases share a ledger.
#[derive(Debug, Clone)]
struct Case(String);

impl Case {
    fn id(&self, kind: &str, n: u8) -> String {
        format!("{kind}-{}-{n}", self.0)
    }

    fn who(&self, n: u8) -> Principal {
        match n {
            0 => principal(&self.id("alice", 0), Some("alice@example.com")),
            1 => principal(&self.id("bob", 0), Some("bob@example.com")),
            2 => principal(&self.id("carol", 0), None),
            _ => principal(&self.id("carol", 0), Some("carol@example.com")),
        }
    }

    fn event(&self, (kind, a, b, c): (u8, u8, u8, u8)) -> Event {
        let (submission_id, task_id, workflow_id) = (self.id("sub", a), self.id("tsk", a), self.id("wfl", b));
        let principal = std::sync::Arc::new(self.who(c));
        match kind {
            0..=3 => submitted(&submission_id, &principal.id, &workflow_id),
            4 => Event::SubmissionRefused { over: over(&submission_id, &principal.id, 2, 3 + i64::from(b)) },
            5 => Event::SubmissionEnded {
                over: over(&submission_id, &principal.id, 2, 3 + i64::from(b)),
                failed: b & 1 == 0,
            },
            // Some before those ended, and some after.
            6 | 7 => Event::SubmissionOpened {
                submission_id,
                principal,
                request_id: self.id("r", b),
                began: at(2 + 2 * i64::from(a & 1)),
                at: at(4),
            },
            8 => Event::PrincipalSeen { principal },
            9..=11 => Event::TaskEnded { task_id },
            12 | 13 => Event::TaskTouched { task_id },
            14..=16 => used(&task_id, &self.id("wrk", b)),
            _ => Event::WorkflowSeen { workflow_id },
        }
    }

    /// Some of what the events name is there already, in different states.
    async fn begin<S: Store>(&self, fixture: &Fixture<S>, state: u8) {
        let ledger = fixture.ledger();
        for (n, who) in [(0, 0), (1, 2)] {
            let principal = self.who(who);
            let (submission_id, request_id) = (self.id("sub", n), self.id("r", n));
            let row = NewSubmission {
                submission_id: &submission_id,
                principal: &principal,
                request_id: &request_id,
                at: at(1),
            };
            ledger.open_submission(row).await.expect("committed");
        }
        let sweep_at = (!state.is_multiple_of(3)).then(|| at(1));
        let workflows = [(self.id("wfl", 0), Some(at(1))), (self.id("wfl", 1), sweep_at)];
        ledger.note_workflows(&workflows, at(1)).await.expect("noted");
        for n in 0..2 {
            let workflow = self.id("wfl", state & 1);
            ledger.note_tasks(&workflow, &[(&self.id("tsk", n), false)], at(1)).await.expect("noted");
        }
        let matched =
            |n, who| Attribution::Matched { submission_id: self.id("sub", n), principal_id: self.who(who).id };
        let attribution = match state % 4 {
            0 => matched(0, 0),
            1 => matched(1, 2),
            2 => held("several"),
            _ => Attribution::Ignored,
        };
        ledger.attribute(&self.id("wfl", 0), &attribution, Some(at(1)), at(1)).await.expect("committed");
        if state & 8 != 0 {
            let usage = usage(&self.id("wrk", 0));
            ledger.settle(&self.id("tsk", 0), Some(&self.id("wfl", 0)), &usage, at(1)).await.expect("committed");
        }
        if state & 16 != 0 {
            ledger.settle(&self.id("tsk", 1), None, &Settlement::Gone, at(1)).await.expect("committed");
            fixture.settle_workflows(2).await;
        }
    }

    /// All that there is of it in the ledger.
    async fn left<S: Store>(&self, fixture: &Fixture<S>) -> Vec<String> {
        let (books, mut all) = (fixture.books(), Vec::new());
        for n in 0..4 {
            all.push(format!("{:?}", books.task(&self.id("tsk", n)).await.expect("read")));
            all.push(format!("{:?}", books.workflow(&self.id("wfl", n)).await.expect("read")));
            all.push(format!("{:?}", books.submission(&self.id("sub", n)).await.expect("read")));
            all.push(format!("{:?}", books.charge(&self.id("tsk", n)).await.expect("read")));
        }
        all.push(format!("{:?}", fixture.backlog().await));
        let mut open = fixture.ledger().open_submissions(at(0), at(100)).await.expect("read");
        open.retain(|open| (0..4).any(|n| open.submission_id == self.id("sub", n)));
        open.sort_by(|left, right| left.submission_id.cmp(&right.submission_id));
        all.push(format!("{open:?}"));
        // What is not shown: how often something was heard of.
        let late = at(10_000);
        let mut tasks = fixture.ledger().claim_tasks(late, LEASE, Pick::Due(100)).await.expect("claimed");
        tasks.sort_by(|left, right| left.task_id.cmp(&right.task_id));
        let mut workflows = fixture.ledger().claim_workflows(late, LEASE, Pick::Due(100)).await.expect("claimed");
        workflows.sort_by(|left, right| left.workflow_id.cmp(&right.workflow_id));
        all.push(format!("{tasks:?} {workflows:?}"));
        all
    }

    async fn is_the_same<S: Store>(&self, [together, single]: &[Fixture<S>; 2], state: u8, kinds: &[Kind]) -> bool {
        let events: Vec<Event> = kinds.iter().map(|kind| self.event(*kind)).collect();
        self.begin(together, state).await;
        self.begin(single, state).await;
        together.ledger().record(&events, at(5)).await.expect("committed");
        for event in &events {
            single.ledger().record(std::slice::from_ref(event), at(5)).await.expect("committed");
        }
        let (together, single) = (self.left(together).await, self.left(single).await);
        for (left, right) in together.iter().zip(&single) {
            if left != right {
                eprintln!("{events:#?}\ntogether:\n{left}\none by one:\n{right}");
            }
        }
        together == single
    }
}

type Kind = (u8, u8, u8, u8);

pub async fn a_batch_leaves_what_its_events_leave_one_by_one<S: Store>() {
    const CASES: u32 = 150;
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let strategy = (0..32_u8, prop::collection::vec((0..19_u8, 0..4_u8, 0..4_u8, 0..4_u8), 1..16));
    let ledgers = [Fixture::<S>::new().await, Fixture::<S>::new().await];
    for case in 0..CASES {
        let mut tree = strategy.new_tree(&mut runner).expect("a case");
        let (state, kinds) = tree.current();
        if Case(case.to_string()).is_the_same(&ledgers, state, &kinds).await {
            continue;
        }
        // The least that is not the same.
        let mut least = (state, kinds);
        let mut simpler = tree.simplify();
        while simpler {
            let (state, kinds) = tree.current();
            let fresh = [Fixture::<S>::new().await, Fixture::<S>::new().await];
            simpler = if Case("x".to_owned()).is_the_same(&fresh, state, &kinds).await {
                tree.complicate()
            } else {
                least = (state, kinds);
                tree.simplify()
            };
        }
        panic!("not the same: {least:?}");
    }
}
