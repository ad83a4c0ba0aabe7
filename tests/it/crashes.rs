//! Kill -9 at any moment after the 201, and lost log entries: nothing is lost and nothing doubled.

use std::time::Duration;

use tollgate_local::stack::{ACME, ALICE, BOB, wait_for};
use tollgate_local::standin::{Fault, Outcome};

use crate::harness::{Edge, SOON};

#[tokio::test]
async fn a_tollgate_killed_at_any_moment_after_the_201_bills_every_task_once() {
    let mut edge = Edge::start().await;
    // From before the log entry is flushed (50 ms) until after it is committed.
    for (round, delay) in [0, 20, 50, 60, 80, 150].into_iter().enumerate() {
        let person = [ALICE, BOB][round % 2];
        let (_, tasks) = edge.submit(person.token, 1).await;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        edge.stack.tollgate.kill_hard().await.expect("killed");
        // It ends while nobody listens.
        edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
        edge.stack.tollgate.restart().await.expect("restarted");
        edge.stack.envoy.wait_for_tollgate(SOON).await.expect("healthy again");
        let entries = edge.entries(round + 1).await;
        let entry = entries.iter().find(|entry| entry.task_id == tasks[0]).expect("billed");
        assert_eq!(entry.user_sub, person.sub);
    }
    edge.finish().await;
}

#[tokio::test]
async fn a_submission_whose_log_entry_never_comes_is_billed_by_the_sweep() {
    let mut edge = Edge::start().await;
    deafen(&mut edge).await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    assert_eq!(edge.entries(1).await[0].user_sub, ALICE.sub);
    assert_eq!(edge.stack.tollgate.metric("tollgate_log_entries_total").await, Some(0.0), "no entry came");
    edge.finish().await;
}

#[tokio::test]
async fn a_tollgate_killed_after_a_201_without_any_log_entry_bills_after_its_restart() {
    let mut edge = Edge::start().await;
    deafen(&mut edge).await;
    let (_, tasks) = edge.submit(ALICE.token, 2).await;
    edge.stack.tollgate.kill_hard().await.expect("killed");
    for task in &tasks {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    }
    edge.stack.tollgate.restart().await.expect("restarted");
    edge.entries(2).await;
    edge.finish().await;
}

/// Replaces Envoy by one that sends no log entry.
async fn deafen(edge: &mut Edge) {
    edge.replace_envoy(r#"string_match: {exact: "yes"}"#, r#"string_match: {exact: "never"}"#).await;
}

#[tokio::test]
async fn an_envoy_killed_with_entries_it_had_not_sent_loses_no_charge() {
    let mut edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.stack.envoy.kill_hard().await.expect("killed");
    edge.stack.flowmesh.complete(&tasks[0], Outcome::done(10.0, 1.5));
    assert_eq!(edge.entries(1).await[0].user_sub, ALICE.sub);
    edge.stack.envoy.restart().await.expect("restarted");
    edge.finish().await;
}

#[tokio::test]
async fn a_tollgate_killed_while_it_posts_posts_again_and_moves_money_once() {
    let mut edge = Edge::start().await;
    edge.stack.runmesh.fail_entries_with(Fault::AfterEffect(Box::new(Fault::Hang)));
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    wait_for("the first post", SOON, async || (!edge.stack.runmesh.posts().is_empty()).then_some(()))
        .await
        .expect("posted");
    edge.stack.tollgate.kill_hard().await.expect("killed");
    edge.stack.runmesh.heal();
    edge.stack.tollgate.restart().await.expect("restarted");
    wait_for("the second post", SOON, async || (edge.stack.runmesh.posts().len() == 2).then_some(()))
        .await
        .expect("posted again");
    edge.finish().await;
}

#[tokio::test]
async fn runmesh_down_for_a_while_and_a_restart_in_between_lose_nothing() {
    let mut edge = Edge::start().await;
    edge.stack.runmesh.stop().await;
    for person in [ALICE, BOB] {
        let (_, tasks) = edge.submit(person.token, 2).await;
        for task in &tasks {
            edge.post_result(ACME.token, task).await;
        }
    }
    edge.metric("tollgate_charges_pending", 4.0).await;
    edge.stack.tollgate.kill_hard().await.expect("killed");
    edge.stack.tollgate.restart().await.expect("restarted");
    edge.metric("tollgate_charges_pending", 4.0).await;
    edge.stack.runmesh.resume().await.expect("Runmesh is back");
    edge.entries(4).await;
    edge.finish().await;
}
