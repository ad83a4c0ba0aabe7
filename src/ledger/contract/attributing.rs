//! The operator says whose a workflow is.

use super::*;
use crate::ledger::books::{Named, Naming};

async fn name<S: Store>(fixture: &Fixture<S>, workflow_id: &str, principal_id: &str, email: Option<&str>) -> Named {
    let naming = Naming { workflow_id, principal_id, email, submission_id: None, at: at(20) };
    fixture.books().name_owner(naming).await.expect("committed")
}

fn done(released: u64, held: u64) -> Named {
    Named::Done { released, held, used_submission: false }
}

/// A held workflow with two held charges.
async fn held_with_charges<S: Store>() -> Fixture<S> {
    let fixture = Fixture::<S>::new().await;
    fixture.held_workflow("wfl-1", 5).await;
    for task in ["tsk-1", "tsk-2"] {
        assert_eq!(fixture.settle(task, "wfl-1", task).await, Settled::Held { reason: "no_owner" });
    }
    fixture
}

pub async fn a_held_workflow_that_is_named_releases_its_charges_and_uses_up_the_submission<S: Store>() {
    let fixture = held_with_charges::<S>().await;
    let (alices, bobs) = (fixture.submit(&alice(), "r1", 4).await, fixture.submit(&bob(), "r2", 4).await);
    let naming = |submission| Naming {
        workflow_id: "wfl-1",
        principal_id: "alice",
        email: None,
        submission_id: submission,
        at: at(20),
    };
    let named = fixture.books().name_owner(naming(Some(&alices))).await.expect("committed");
    assert_eq!(named, Named::Done { released: 2, held: 0, used_submission: true });
    let due = fixture.due_charges(20).await;
    assert_eq!(due.iter().map(|due| due.principal_id.as_str()).collect::<Vec<_>>(), ["alice", "alice"]);
    assert_eq!(fixture.backlog().await.held_workflows, 0);
    let workflow = fixture.books().workflow("wfl-1").await.expect("read").expect("a workflow");
    assert_eq!((workflow.attribution.as_deref(), workflow.hold_reason), (Some("operator"), None));
    assert_eq!(workflow.submission_id.as_deref(), Some(alices.as_str()));
    let open = fixture.ledger().open_submissions(at(0), at(10)).await.expect("read");
    assert_eq!(open.iter().map(|open| &open.submission_id).collect::<Vec<_>>(), [&bobs]);
    // Another principal's submission is never used up.
    fixture.held_workflow("wfl-2", 5).await;
    let naming = Naming { workflow_id: "wfl-2", ..naming(Some(&bobs)) };
    let named = fixture.books().name_owner(naming).await.expect("committed");
    assert_eq!(named, done(0, 0));
    assert_eq!(fixture.backlog().await.open_submissions, 1);
}

pub async fn naming_the_owner_again_changes_nothing<S: Store>() {
    let fixture = held_with_charges::<S>().await;
    fixture.submit(&alice(), "r1", 4).await;
    assert_eq!(name(&fixture, "wfl-1", "alice", None).await, done(2, 0));
    let before = fixture.books().workflow("wfl-1").await.expect("read");
    fixture.posted("tsk-1", 21).await;
    assert_eq!(name(&fixture, "wfl-1", "alice", None).await, done(0, 0));
    assert_eq!(fixture.books().workflow("wfl-1").await.expect("read"), before);
    // One that the log named stays the log's.
    fixture.workflow("wfl-2", &bob()).await;
    assert_eq!(name(&fixture, "wfl-2", "bob", None).await, done(0, 0));
    let workflow = fixture.books().workflow("wfl-2").await.expect("read").expect("a workflow");
    assert_eq!(workflow.attribution.as_deref(), Some("log"));
}

pub async fn a_principal_without_an_e_mail_is_named_with_one_or_waits_for_it<S: Store>() {
    let fixture = held_with_charges::<S>().await;
    fixture.submit(&principal("carol", None), "r1", 4).await;
    assert_eq!(name(&fixture, "wfl-1", "carol", None).await, done(0, 2));
    assert_eq!(fixture.charge("tsk-1").await.hold_reason.as_deref(), Some("no_email"));
    assert_eq!(name(&fixture, "wfl-1", "carol", Some("carol@example.com")).await, done(2, 0));
    assert_eq!(fixture.due_charges(20).await[0].email, "carol@example.com");
    // lum.id knows better than the operator.
    assert_eq!(name(&fixture, "wfl-1", "carol", Some("other@example.com")).await, Named::OtherEmail);
    assert_eq!(fixture.charge("tsk-1").await.email.as_deref(), Some("carol@example.com"));
}

pub async fn who_never_submitted_is_refused_unless_an_e_mail_is_given<S: Store>() {
    let fixture = held_with_charges::<S>().await;
    assert_eq!(name(&fixture, "wfl-1", "dave", None).await, Named::UnknownPrincipal);
    assert_eq!(fixture.backlog().await.held_workflows, 1);
    assert_eq!(name(&fixture, "wfl-1", "dave", Some("dave@example.com")).await, done(2, 0));
    assert_eq!(fixture.due_charges(20).await[0].email, "dave@example.com");
}

pub async fn another_owner_is_replaced_only_while_nothing_was_or_is_being_posted<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.submit(&alice(), "r1", 1).await;
    fixture.workflow("wfl-1", &bob()).await;
    fixture.settle("tsk-1", "wfl-1", "wrk-1").await;
    assert_eq!(name(&fixture, "wfl-1", "alice", None).await, done(1, 0));
    assert_eq!(name(&fixture, "wfl-1", "bob", None).await, done(1, 0));
    let claimed = fixture.due_charges(20).await.remove(0);
    assert_eq!(claimed.principal_id, "bob");
    let bobs = || "bob".to_owned();
    let refused = name(&fixture, "wfl-1", "alice", None).await;
    assert_eq!(refused, Named::BeingPosted { principal_id: bobs() });
    assert_eq!(fixture.ledger().posted(&claimed, at(20)).await.expect("committed"), Posted::Theirs);
    assert_eq!(name(&fixture, "wfl-1", "alice", None).await, Named::Posted { principal_id: bobs() });
    let workflow = fixture.books().workflow("wfl-1").await.expect("read").expect("a workflow");
    assert_eq!(workflow.principal_id.as_deref(), Some("bob"));
}

pub async fn an_unknown_or_ignored_workflow_has_no_owner_to_name<S: Store>() {
    let fixture = Fixture::<S>::new().await;
    fixture.submit(&alice(), "r1", 1).await;
    fixture.ledger().note_workflows(&[("wfl-old".into(), None)], at(1)).await.expect("noted");
    assert_eq!(name(&fixture, "wfl-old", "alice", None).await, Named::Ignored);
    assert_eq!(name(&fixture, "wfl-none", "alice", Some("alice@example.com")).await, Named::UnknownWorkflow);
    assert_eq!(fixture.books().workflow("wfl-none").await.expect("read"), None);
    assert_eq!(name(&fixture, "wfl-none", "dave", Some("dave@example.com")).await, Named::UnknownWorkflow);
    assert_eq!(name(&fixture, "wfl-old", "dave", None).await, Named::Ignored, "and nobody was made up");
}

pub async fn the_operators_word_stands_against_later_matches_and_log_entries<S: Store>() {
    let fixture = held_with_charges::<S>().await;
    let submission = fixture.submit(&bob(), "r1", 4).await;
    fixture.submit(&alice(), "r2", 4).await;
    assert_eq!(name(&fixture, "wfl-1", "alice", None).await, done(2, 0));
    let matched = Attribution::Matched { submission_id: submission.clone(), principal_id: "bob".into() };
    fixture.ledger().attribute("wfl-1", &matched, None, at(21)).await.expect("committed");
    fixture.ledger().attribute("wfl-1", &held("several"), None, at(21)).await.expect("committed");
    fixture.submitted(&submission, "bob", "wfl-1", 22).await;
    assert_eq!(fixture.due_charges(30).await.iter().filter(|due| due.principal_id == "alice").count(), 2);
    let workflow = fixture.books().workflow("wfl-1").await.expect("read").expect("a workflow");
    assert_eq!((workflow.attribution.as_deref(), workflow.principal_id.as_deref()), (Some("operator"), Some("alice")));
}
