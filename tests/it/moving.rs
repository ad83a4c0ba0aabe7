//! `tollgate ledger migrate-from`: one machine's ledger becomes that of several.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tollgate_local::stack::{ALICE, BOB};
use tollgate_local::standin::{Fault, Outcome};

use crate::harness::{Edge, binary, postgres_database};

fn command(ledger: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("ledger").args(arguments).env_clear().env("TOLLGATE_LEDGER", ledger);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(ledger: &str, arguments: &[&str]) -> String {
    let output = command(ledger, arguments).output().expect("tollgate runs");
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    said
}

#[tokio::test]
async fn a_ledger_that_is_moved_through_kills_goes_on_billing_and_bills_nothing_twice() {
    let Some(database) = postgres_database().await else { return };
    let mut edge = Edge::start().await;
    let file = format!("sqlite:{}", edge.dir.path().join("ledger.db").display());
    let (_, posted) = edge.submit(ALICE.token, 2).await;
    for task in &posted {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    }
    edge.entries(2).await;
    edge.stack.runmesh.fail_entries_with(Fault::status(503));
    let (_, pending) = edge.submit(BOB.token, 3).await;
    for task in &pending {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    }
    edge.metric("tollgate_charges_pending", 3.0).await;
    let (_, running) = edge.submit(ALICE.token, 1).await;

    assert!(refused(&database, &["migrate-from", &file]).contains("another tollgate process uses it"));
    assert!(refused(&file, &["migrate-from", &file]).contains("has to be the postgres://"));
    assert!(refused(&database, &["migrate-from", &database]).contains("such as sqlite:tollgate.db"));
    edge.stack.tollgate.terminate().await.expect("stopped");
    // Another moment of its short life each time.
    for round in 0..12_u64 {
        let mut killed = command(&database, &["migrate-from", &file])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        tokio::time::sleep(Duration::from_millis(round * 12)).await;
        killed.kill().expect("killed");
        killed.wait().expect("ended");
    }
    let told = printed(&command(&database, &["migrate-from", &file]).output().expect("runs"));
    assert!(told.contains("is moved into") || told.contains("was moved into"), "{told}");
    let told = printed(&command(&database, &["migrate-from", &file]).output().expect("runs"));
    assert!(told.contains("nothing is left to do") && !told.contains(password(&database)), "{told}");
    let status = printed(&command(&database, &["status", "--json"]).output().expect("runs"));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!((&status["charges"]["posted"]["count"], &status["charges"]["pending"]["count"]), (&2.into(), &3.into()));

    let error = edge.stack.tollgate.restart().await.expect_err("given away").to_string();
    assert!(error.contains("it was moved to postgres://") && !error.contains(password(&database)), "{error}");
    edge.stack.tollgate.set("TOLLGATE_LEDGER", &database);
    edge.stack.tollgate.restart().await.expect("restarted");
    edge.stack.runmesh.heal();
    for task in &running {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    }
    edge.entries(6).await;
    // Each once, and each of them as FlowMesh has it.
    edge.finish().await;
}

fn password(url: &str) -> &str {
    let (_, rest) = url.split_once("://").expect("a URL");
    rest.split(['@', ':']).nth(1).expect("a password")
}
