use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::access_log::Intake;
use crate::drive::News;
use crate::ledger::Usage;
use crate::principal::Principal;
use crate::telemetry::Metrics;

const LEASE: Duration = Duration::from_mins(1);

struct Fixture {
    ledger: SqliteLedger,
    dir: tempfile::TempDir,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("valid")
}

fn principal(id: &str, email: Option<&str>) -> Principal {
    Principal { id: id.to_owned(), email: email.map(str::to_owned), scopes: String::new() }
}

fn usage(worker: &str) -> Settlement {
    Settlement::Usage(Usage {
        cost: "0.42".into(),
        duration_sec: 12,
        cost_per_hour: "1.5".into(),
        task_status: "DONE".into(),
        assigned_worker: Some(worker.into()),
        started_at: Some("2026-11-22T08:00:02Z".into()),
        finished_at: Some("2026-11-22T08:01:14.5Z".into()),
        supplier_id: Some("acme".into()),
    })
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        Self { ledger: Self::open_in(&dir).await, dir }
    }

    async fn open_in(dir: &tempfile::TempDir) -> SqliteLedger {
        SqliteLedger::open(&dir.path().join("ledger.db"), at(0)).await.expect("opens")
    }

    async fn submit(&self, principal: &Principal, request: &str, second: i64) -> String {
        let row =
            NewSubmission { submission_id: &format!("sub-{request}"), principal, request_id: request, at: at(second) };
        self.ledger.open_submission(row).await.expect("committed")
    }

    async fn submitted(&self, submission: &str, principal: &str, workflow: &str, second: i64) {
        let event = Event::Submitted {
            submission_id: submission.into(),
            principal_id: principal.into(),
            workflow_id: workflow.into(),
            at: at(second),
        };
        self.ledger.record(&[event], at(second)).await.expect("committed");
    }

    /// A principal's workflow, known from the log.
    async fn workflow(&self, id: &str, principal: &Principal) {
        let submission = self.submit(principal, id, 1).await;
        self.submitted(&submission, &principal.id, id, 2).await;
    }

    async fn settle(&self, task: &str, workflow: &str, worker: &str) -> Settled {
        self.ledger.settle(task, Some(workflow), &usage(worker), at(10)).await.expect("committed")
    }

    async fn due_charges(&self, second: i64) -> Vec<DueCharge> {
        self.ledger.claim_charges(at(second), LEASE, 10).await.expect("claimed")
    }

    async fn backlog(&self) -> Backlog {
        self.ledger.backlog().await.expect("counted")
    }
}

fn alice() -> Principal {
    principal("alice", Some("alice@example.com"))
}

fn charged(principal: &str) -> Settled {
    Settled::Charged { principal_id: principal.into() }
}

#[tokio::test]
async fn a_repeated_check_finds_its_own_submission_and_another_request_does_not() {
    let fixture = Fixture::new().await;
    let first = fixture.submit(&alice(), "r1", 1).await;
    let row = NewSubmission { submission_id: "sub-other", principal: &alice(), request_id: "r1", at: at(2) };
    assert_eq!(fixture.ledger.open_submission(row).await.expect("committed"), first);
    assert_ne!(fixture.submit(&alice(), "r2", 3).await, first);

    assert_eq!(fixture.backlog().await.open_submissions, 2);
}

#[tokio::test]
async fn a_request_id_that_is_used_up_does_not_hide_another_submission() {
    let fixture = Fixture::new().await;
    fixture.submit(&alice(), "r1", 1).await;
    fixture.submitted("sub-r1", "alice", "wfl-1", 2).await;
    // Resolved; and then open, but far too old to be repeated.
    let resolved = NewSubmission { submission_id: "sub-2", principal: &alice(), request_id: "r1", at: at(3) };
    assert_eq!(fixture.ledger.open_submission(resolved).await.expect("committed"), "sub-2");
    fixture.submit(&alice(), "r2", 4).await;
    let late = NewSubmission { submission_id: "sub-3", principal: &alice(), request_id: "r2", at: at(65) };
    assert_eq!(fixture.ledger.open_submission(late).await.expect("committed"), "sub-3");
    assert_eq!(fixture.backlog().await.open_submissions, 3);
}

#[tokio::test]
async fn a_settled_task_is_one_pending_charge_of_the_workflows_owner_however_often_it_is_settled() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Already);
    let due = fixture.due_charges(10).await;
    let [charge] = due.as_slice() else { panic!("{due:?}") };
    assert_eq!((charge.email.as_str(), charge.cost.as_str(), charge.attempts), ("alice@example.com", "0.42", 0));
    assert_eq!(charge.workflow_id.as_deref(), Some("wfl-1"));
}

#[tokio::test]
async fn an_execution_that_several_tasks_show_is_charged_once() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
    assert_eq!(fixture.settle("tsk-2", "wfl-1", "wrk-1").await, Settled::Merged);
    assert_eq!(fixture.settle("tsk-3", "wfl-1", "wrk-2").await, charged("alice"));
    assert_eq!(fixture.backlog().await.pending_charges, 2);
}

#[tokio::test]
async fn executions_that_flowmesh_does_not_name_are_never_taken_for_one() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let Settlement::Usage(mut usage) = usage("wrk-1") else { unreachable!() };
    usage.started_at = None;
    for task in ["tsk-1", "tsk-2"] {
        let settled = fixture.ledger.settle(task, Some("wfl-1"), &Settlement::Usage(usage.clone()), at(10)).await;
        assert_eq!(settled.expect("committed"), charged("alice"));
    }
}

#[tokio::test]
async fn a_charge_without_an_e_mail_is_held_until_its_owner_shows_up_with_one() {
    let fixture = Fixture::new().await;
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

#[tokio::test]
async fn a_task_waits_until_its_workflows_owner_has_been_looked_for() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Deferred);
    let due = fixture.ledger.claim_workflows(at(10), LEASE, 10).await.expect("claimed");
    assert!(matches!(due.as_slice(), [DueWorkflow { is_new: true, needs_owner: true, .. }]), "{due:?}");
    fixture.submitted("sub-x", "alice", "wfl-1", 11).await;
    // Nobody has told Alice's e-mail yet.
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Held { reason: "no_email" });
    fixture.submit(&alice(), "r1", 12).await;
    assert_eq!(fixture.due_charges(12).await.len(), 1);
}

#[tokio::test]
async fn a_held_workflow_is_freed_by_its_own_log_entry_however_late() {
    let fixture = Fixture::new().await;
    let submission = fixture.submit(&alice(), "r1", 1).await;
    fixture.ledger.note_workflows(&[("wfl-1".into(), Some(at(2)))], at(2)).await.expect("noted");
    let held = Attribution::Held { reason: "several".into() };
    fixture.ledger.attribute("wfl-1", &held, at(3)).await.expect("committed");
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Held { reason: "no_owner" });
    assert_eq!(fixture.backlog().await.held_workflows, 1);
    fixture.submitted(&submission, "alice", "wfl-1", 20).await;
    let due = fixture.due_charges(20).await;
    assert_eq!(due.first().map(|due| due.principal_id.as_str()), Some("alice"));
    assert_eq!(fixture.backlog().await.held_workflows, 0);
}

#[tokio::test]
async fn a_match_uses_up_its_submission_and_yields_to_the_log() {
    let fixture = Fixture::new().await;
    let submission = fixture.submit(&alice(), "r1", 1).await;
    let workflows = [("wfl-1".into(), Some(at(2))), ("wfl-2".into(), Some(at(2)))];
    fixture.ledger.note_workflows(&workflows, at(2)).await.expect("noted");
    let matched = Attribution::Matched { submission_id: submission.clone(), principal_id: "alice".into() };
    for workflow in ["wfl-1", "wfl-2"] {
        fixture.ledger.attribute(workflow, &matched, at(3)).await.expect("committed");
    }
    assert!(fixture.ledger.open_submissions(at(0), at(10)).await.expect("read").is_empty());
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
    assert_eq!(fixture.settle("tsk-2", "wfl-2", "wrk-2").await, Settled::Deferred, "one submission makes one workflow");
    // The log knows better, as long as nothing was posted.
    fixture.submit(&principal("bob", Some("bob@example.com")), "r2", 4).await;
    fixture.submitted("sub-r2", "bob", "wfl-1", 5).await;
    assert_eq!(fixture.due_charges(20).await.first().map(|due| due.email.clone()).as_deref(), Some("bob@example.com"));
}

#[tokio::test]
async fn what_is_older_than_the_ledger_is_not_billed_unless_the_log_says_it_is_ours() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.ledger.note_workflows(&[("wfl-1".into(), None)], at(1)).await.expect("noted"), 1);
    assert_eq!(fixture.ledger.note_workflows(&[("wfl-1".into(), None)], at(1)).await.expect("noted"), 0);
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Ignored);
    assert_eq!(fixture.backlog().await, Backlog::default());
    fixture.workflow("wfl-1", &alice()).await;
    let due = fixture.ledger.claim_tasks(at(10), LEASE, 10).await.expect("claimed");
    assert_eq!(due.first().map(|due| due.task_id.as_str()), Some("tsk-1"));
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
}

#[tokio::test]
async fn claimed_work_belongs_to_its_claimer_until_the_lease_ends() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    assert_eq!(fixture.due_charges(10).await.len(), 1);
    assert!(fixture.due_charges(69).await.is_empty());
    assert_eq!(fixture.ledger.next_due(Work::Charges).await.expect("read"), Some(at(70)));
    assert_eq!(fixture.due_charges(70).await.len(), 1);
}

#[tokio::test]
async fn a_restart_lifts_the_leases_of_the_dead_and_keeps_everything_else() {
    let Fixture { ledger, dir } = Fixture::new().await;
    let fixture = Fixture { ledger, dir };
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    assert_eq!(fixture.due_charges(10).await.len(), 1);
    let Fixture { ledger, dir } = fixture;
    // Dropped without a close, as a kill would.
    drop(ledger);
    let fixture = Fixture { ledger: Fixture::open_in(&dir).await, dir };
    assert_eq!(fixture.due_charges(11).await.len(), 1);
    assert_eq!(fixture.ledger.born_at().await.expect("read"), at(0));
}

#[tokio::test]
async fn a_charge_leaves_pending_by_runmeshs_word_alone() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    for (task, worker) in [("tsk-1", "wrk-1"), ("tsk-2", "wrk-2"), ("tsk-3", "wrk-3")] {
        fixture.settle(task, "wfl-1", worker).await;
    }
    assert_eq!(fixture.due_charges(10).await.len(), 3);
    fixture.ledger.posted("tsk-1", at(11)).await.expect("committed");
    fixture.ledger.post_failed("tsk-2", "status 503", at(30), at(11)).await.expect("committed");
    fixture.ledger.post_rejected("tsk-3", "status 422: no").await.expect("committed");
    let backlog = fixture.backlog().await;
    assert_eq!((backlog.posted_charges, backlog.pending_charges, backlog.rejected_charges), (1, 1, 1));
    assert!(fixture.due_charges(29).await.is_empty());
    let due = fixture.due_charges(30).await;
    assert_eq!(due.iter().map(|due| (due.task_id.as_str(), due.attempts)).collect::<Vec<_>>(), [("tsk-2", 1)]);
    // A late word changes nothing any more.
    fixture.ledger.post_failed("tsk-1", "late", at(40), at(40)).await.expect("committed");
    assert_eq!(fixture.backlog().await.posted_charges, 1);
}

#[tokio::test]
async fn evidence_of_an_end_brings_a_task_up_soon_and_a_touch_only_when_nothing_is_planned() {
    let fixture = Fixture::new().await;
    let touched = [Event::TaskTouched { task_id: "tsk-1".into() }];
    let ended = [Event::TaskEnded { task_id: "tsk-1".into() }];
    fixture.ledger.record(&touched, at(1)).await.expect("committed");
    let due = fixture.ledger.claim_tasks(at(2), LEASE, 10).await.expect("claimed");
    assert!(matches!(due.as_slice(), [DueTask { eager: false, attempts: 0, .. }]), "{due:?}");
    fixture.ledger.unsettled(&due[0], None, Existence::Known, at(2)).await.expect("committed");
    fixture.ledger.record(&touched, at(3)).await.expect("committed");
    assert_eq!(
        fixture.ledger.next_due(Work::Tasks).await.expect("read"),
        Some(at(7)),
        "no more than every five seconds"
    );
    fixture.ledger.record(&ended, at(4)).await.expect("committed");
    let soon = at(4) + SignedDuration::from_millis(250);
    assert_eq!(fixture.ledger.next_due(Work::Tasks).await.expect("read"), Some(soon));
    let due = fixture.ledger.claim_tasks(soon, LEASE, 10).await.expect("claimed");
    assert!(matches!(due.as_slice(), [DueTask { eager: true, attempts: 0, .. }]), "{due:?}");
    fixture.ledger.settle("tsk-1", None, &Settlement::Nothing, at(5)).await.expect("committed");
    fixture.ledger.record(&ended, at(6)).await.expect("committed");
    assert_eq!(fixture.ledger.next_due(Work::Tasks).await.expect("read"), None, "a settled task stays settled");
}

#[tokio::test]
async fn a_sweep_plans_the_tasks_that_ended_and_does_not_reset_their_growing_interval() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let tasks = [("tsk-1", true), ("tsk-2", false)];
    let open = fixture.ledger.note_tasks("wfl-1", &tasks, at(5)).await.expect("noted");
    assert_eq!(open, 2);
    let due = fixture.ledger.claim_tasks(at(5), LEASE, 10).await.expect("claimed");
    assert_eq!(due.iter().map(|due| due.task_id.as_str()).collect::<Vec<_>>(), ["tsk-1"]);
    fixture.ledger.unsettled(&due[0], Some(at(50)), Existence::Known, at(5)).await.expect("committed");
    fixture.ledger.note_tasks("wfl-1", &tasks, at(6)).await.expect("noted");
    assert_eq!(fixture.ledger.next_due(Work::Tasks).await.expect("read"), Some(at(50)));
    fixture.ledger.settle("tsk-1", Some("wfl-1"), &Settlement::Nothing, at(51)).await.expect("committed");
    assert_eq!(fixture.ledger.note_tasks("wfl-1", &[("tsk-2", true)], at(52)).await.expect("noted"), 1);
}

#[tokio::test]
async fn only_its_owner_can_read_a_ledger() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let mut files = 0;
    for file in std::fs::read_dir(fixture.dir.path()).expect("listed") {
        let file = file.expect("an entry");
        let mode = file.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", file.path());
        files += 1;
    }
    assert!(files >= 3, "the database, its log and its lock");
}

#[tokio::test]
async fn a_second_process_is_kept_out_and_says_why() {
    let fixture = Fixture::new().await;
    let error = SqliteLedger::open(&fixture.dir.path().join("ledger.db"), at(1)).await.expect_err("in use");
    assert!(error.to_string().ends_with("another tollgate process uses it"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_ledger_is_an_error_that_names_it_and_is_left_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path: PathBuf = dir.path().join("ledger.db");
    std::fs::write(&path, "not a database, and long enough to be taken for one at first sight".repeat(20))
        .expect("written");
    let before = std::fs::read(&path).expect("read");
    let error = SqliteLedger::open(&path, at(0)).await.expect_err("no ledger").to_string();
    assert!(error.contains("ledger.db") && !error.contains('\n'), "{error}");
    assert_eq!(std::fs::read(&path).expect("read"), before);
    let error = SqliteLedger::open(&dir.path().join("no/such/dir.db"), at(0)).await.expect_err("no directory");
    assert!(error.to_string().contains("dir.db"), "{error}");
}

#[tokio::test]
async fn a_ledger_from_a_newer_version_is_refused() {
    let Fixture { ledger, dir } = Fixture::new().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time)
         VALUES (9999, 'from the future', 0, 1, x'00', 0)",
    )
    .execute(&ledger.write)
    .await
    .expect("inserted");
    drop(ledger);
    let error = SqliteLedger::open(&dir.path().join("ledger.db"), at(0)).await.expect_err("newer").to_string();
    assert!(error.contains("9999"), "{error}");
}

impl Fixture {
    /// Lets the database grow no further, or again; SQLite then fails as it does when the disk is full.
    async fn disk_is_full(&self, full: bool) {
        let limit = if full { "PRAGMA max_page_count = 1" } else { "PRAGMA max_page_count = 1073741823" };
        // On every connection that there may be: a full disk has only one.
        sqlx::query(limit).execute(&self.ledger.write).await.expect("set");
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_over_when_it_is_over() {
    let fixture = Fixture::new().await;
    fixture.disk_is_full(true).await;
    let mut failed = 0;
    for request in 0..2000 {
        let id = format!("request-{request}-{}", "x".repeat(100));
        let row = NewSubmission { submission_id: &id, principal: &alice(), request_id: &id, at: at(1) };
        failed += usize::from(fixture.ledger.open_submission(row).await.is_err());
        if failed == 3 {
            break;
        }
    }
    assert_eq!(failed, 3, "the disk was full");
    fixture.disk_is_full(false).await;
    fixture.workflow("wfl-1", &alice()).await;
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
}

#[tokio::test]
async fn the_intake_keeps_what_a_full_disk_did_not_take() {
    let Fixture { ledger, dir } = Fixture::new().await;
    let ledger = std::sync::Arc::new(ledger);
    sqlx::query("PRAGMA max_page_count = 1").execute(&ledger.write).await.expect("set");
    let (events, queue) = tokio::sync::mpsc::channel(4096);
    let metrics = Metrics::unread();
    let intake = Intake::new(ledger.clone(), queue, News::default(), 512, metrics.clone());
    let running = tokio::spawn(intake.run());
    for task in 0..3000 {
        let task_id = format!("tsk-{task}-{}", "x".repeat(100));
        events.send(Event::TaskEnded { task_id }).await.expect("queued");
    }
    let failures =
        || metrics.ledger_errors.get_or_create(&crate::telemetry::KindLabels { kind: "record_events" }).get();
    while failures() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sqlx::query("PRAGMA max_page_count = 1073741823").execute(&ledger.write).await.expect("set");
    drop(events);
    running.await.expect("no panic").expect("all committed");
    assert_eq!(ledger.backlog().await.expect("counted").due_tasks, 3000);
    drop(dir);
}

#[tokio::test]
async fn what_flowmesh_forgot_is_given_up_only_after_it_said_so_for_long_and_comes_back_when_it_is_seen() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let claim = async |second| fixture.ledger.claim_workflows(at(second), LEASE, 10).await.expect("claimed").remove(0);
    let due = claim(10).await;
    assert_eq!(due.unknown_since, None);
    let again = NextSweep::At(at(20));
    fixture.ledger.swept(&due, again, Existence::Unknown, at(10)).await.expect("committed");
    let due = claim(20).await;
    assert_eq!(due.unknown_since, Some(at(10)));
    fixture.ledger.swept(&due, NextSweep::At(at(30)), Existence::Unsaid, at(20)).await.expect("committed");
    let due = claim(30).await;
    assert_eq!(due.unknown_since, Some(at(10)), "an outage says nothing");
    fixture.ledger.swept(&due, NextSweep::At(at(40)), Existence::Known, at(30)).await.expect("committed");
    let due = claim(40).await;
    assert_eq!(due.unknown_since, None);
    fixture.ledger.swept(&due, NextSweep::Gone, Existence::Unknown, at(40)).await.expect("committed");
    assert_eq!(fixture.ledger.next_due(Work::Workflows).await.expect("read"), None);
    fixture.ledger.note_workflows(&[("wfl-1".into(), Some(at(50)))], at(50)).await.expect("noted");
    assert_eq!(fixture.ledger.next_due(Work::Workflows).await.expect("read"), Some(at(50)));

    fixture.ledger.record(&[Event::TaskEnded { task_id: "tsk-1".into() }], at(50)).await.expect("committed");
    let due = fixture.ledger.claim_tasks(at(51), LEASE, 10).await.expect("claimed").remove(0);
    fixture.ledger.unsettled(&due, Some(at(60)), Existence::Unknown, at(51)).await.expect("committed");
    let due = fixture.ledger.claim_tasks(at(60), LEASE, 10).await.expect("claimed").remove(0);
    assert_eq!(due.unknown_since, Some(at(51)));
    let gone = fixture.ledger.settle("tsk-1", None, &Settlement::Gone, at(61)).await.expect("committed");
    assert_eq!((gone, fixture.backlog().await.gone_tasks), (Settled::Gone, 1));
    fixture.ledger.record(&[Event::TaskEnded { task_id: "tsk-1".into() }], at(70)).await.expect("committed");
    assert_eq!(fixture.backlog().await.gone_tasks, 0);
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("alice"));
}

#[tokio::test]
async fn news_that_come_while_somebody_asks_are_acted_on_at_once() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.ledger.record(&[Event::TaskTouched { task_id: "tsk-1".into() }], at(5)).await.expect("committed");
    let task = fixture.ledger.claim_tasks(at(10), LEASE, 10).await.expect("claimed").remove(0);
    let workflow = fixture.ledger.claim_workflows(at(10), LEASE, 10).await.expect("claimed").remove(0);
    let news = [Event::TaskEnded { task_id: "tsk-1".into() }, Event::WorkflowSeen { workflow_id: "wfl-1".into() }];
    fixture.ledger.record(&news, at(11)).await.expect("committed");
    fixture.ledger.unsettled(&task, None, Existence::Known, at(12)).await.expect("committed");
    fixture.ledger.swept(&workflow, NextSweep::Settled, Existence::Known, at(12)).await.expect("committed");
    for work in [Work::Tasks, Work::Workflows] {
        let due = fixture.ledger.next_due(work).await.expect("read");
        assert!(due.is_some_and(|due| due <= at(12)), "{work:?}: {due:?}");
    }
}

#[tokio::test]
async fn however_often_clients_look_flowmesh_is_asked_now_and_then() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    let workflow = fixture.ledger.claim_workflows(at(10), LEASE, 10).await.expect("claimed").remove(0);
    fixture.ledger.swept(&workflow, NextSweep::At(at(300)), Existence::Known, at(10)).await.expect("committed");
    let seen = [Event::WorkflowSeen { workflow_id: "wfl-1".into() }];
    for _ in 0..10 {
        fixture.ledger.record(&seen, at(11)).await.expect("committed");
    }
    assert_eq!(fixture.ledger.next_due(Work::Workflows).await.expect("read"), Some(at(15)));
}

#[tokio::test]
async fn an_owner_that_the_log_corrects_while_the_charge_is_posted_gets_it_with_the_next_try() {
    let fixture = Fixture::new().await;
    let bob = principal("bob", Some("bob@example.com"));
    let submission = fixture.submit(&bob, "r1", 1).await;
    fixture.ledger.note_workflows(&[("wfl-1".into(), Some(at(2)))], at(2)).await.expect("noted");
    let matched = Attribution::Matched { submission_id: submission, principal_id: "bob".into() };
    fixture.ledger.attribute("wfl-1", &matched, at(3)).await.expect("committed");
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, charged("bob"));
    assert_eq!(fixture.due_charges(10).await[0].principal_id, "bob");
    fixture.submit(&alice(), "r2", 11).await;
    fixture.submitted("sub-r2", "alice", "wfl-1", 12).await;
    fixture.ledger.post_failed("tsk-1", "status 503", at(20), at(13)).await.expect("committed");
    assert_eq!(fixture.due_charges(20).await[0].principal_id, "alice");
}

#[tokio::test]
async fn a_task_of_a_workflow_that_flowmesh_forgot_is_held_and_not_asked_after_for_ever() {
    let fixture = Fixture::new().await;
    fixture.ledger.note_workflows(&[("wfl-1".into(), Some(at(1)))], at(1)).await.expect("noted");
    let due = fixture.ledger.claim_workflows(at(1), LEASE, 10).await.expect("claimed").remove(0);
    fixture.ledger.swept(&due, NextSweep::Gone, Existence::Unknown, at(2)).await.expect("committed");
    assert_eq!(fixture.settle("tsk-1", "wfl-1", "wrk-1").await, Settled::Held { reason: "no_owner" });
}

#[tokio::test]
async fn a_row_that_comes_late_is_the_submission_it_would_have_been() {
    let fixture = Fixture::new().await;
    let late = |id: &str, request: &str| Event::SubmissionOpened {
        submission_id: id.into(),
        principal: std::sync::Arc::new(alice()),
        request_id: request.into(),
        at: at(1),
    };
    fixture.ledger.record(&[late("sub-1", "r1"), late("sub-1", "r1")], at(2)).await.expect("committed");
    let open = fixture.ledger.open_submissions(at(0), at(10)).await.expect("read");
    assert_eq!(open.iter().map(|open| open.submission_id.as_str()).collect::<Vec<_>>(), ["sub-1"]);
    // The log entry was faster; and it was committed in time after all.
    fixture.submitted("sub-2", "alice", "wfl-2", 3).await;
    let in_time = fixture.submit(&alice(), "r3", 1).await;
    fixture.ledger.record(&[late("sub-2", "r2"), late(&in_time, "r3")], at(4)).await.expect("committed");
    assert_eq!(fixture.backlog().await.open_submissions, 2);
    assert_eq!(fixture.settle("tsk-2", "wfl-2", "wrk-1").await, charged("alice"));
}

#[tokio::test]
async fn the_supplier_and_the_execution_are_kept_with_the_charge() {
    let fixture = Fixture::new().await;
    fixture.workflow("wfl-1", &alice()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    let row: (String, String, String) =
        sqlx::query_as("SELECT supplier_id, assigned_worker, started_at FROM charges WHERE task_id = 'tsk-1'")
            .fetch_one(&fixture.ledger.read)
            .await
            .expect("read");
    assert_eq!(row, ("acme".into(), "wrk-1".into(), "2026-11-22T08:00:02Z".into()));
}

#[tokio::test]
async fn what_runs_often_uses_an_index_however_many_rows_are_done() {
    let fixture = Fixture::new().await;
    for (query, index) in [
        ("SELECT * FROM tasks WHERE state = 'open' AND settle_at <= 1 ORDER BY settle_at", "tasks_due"),
        ("SELECT * FROM workflows WHERE state = 'open' AND sweep_at <= 1 ORDER BY sweep_at", "workflows_due"),
        ("SELECT * FROM charges WHERE state = 'pending' AND post_at <= 1 ORDER BY post_at", "charges_due"),
        (
            "SELECT * FROM charges WHERE workflow_id = 'w' AND (state = 'held' OR state = 'pending')",
            "charges_of_workflow",
        ),
        (
            "SELECT * FROM charges WHERE principal_id = 'p' AND state = 'held' AND hold_reason = 'no_email'",
            "charges_held_of",
        ),
        ("SELECT * FROM submissions WHERE state = 'open' AND opened_at BETWEEN 1 AND 2", "submissions_open"),
        ("SELECT * FROM workflows WHERE submission_id = 's'", "workflows_of_submission"),
        (
            "SELECT * FROM workflows WHERE attribution = 'held' AND state IN ('open', 'settled') AND noted_at >= 1",
            "workflows_held",
        ),
    ] {
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}")))
                .fetch_all(&fixture.ledger.read)
                .await
                .expect("explained");
        assert!(plan.iter().any(|(.., step)| step.contains(index)), "{query}: {plan:?}");
    }
}
