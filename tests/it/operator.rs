//! `tollgate ledger …` beside a running `serve`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::str::FromStr;
use std::time::Duration;

use bigdecimal::BigDecimal;
use serde_json::Value;
use tollgate_local::stack::{ACME, ALICE, BOB, wait_for};
use tollgate_local::standin::{Entry, Fault, Outcome};

use crate::harness::{Edge, SOON, binary};

/// A command on the ledger at a path, with no other setting.
fn command(ledger: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("ledger").args(arguments).env_clear().env("TOLLGATE_LEDGER", format!("sqlite:{}", ledger.display()));
    command
}

fn run(ledger: &Path, arguments: &[&str]) -> Output {
    command(ledger, arguments).output().expect("tollgate runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// What a command that must work prints.
fn printed(edge: &Edge, arguments: &[&str]) -> String {
    let output = run(&edge.dir.path().join("ledger.db"), arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// One JSON object a line.
fn objects(edge: &Edge, arguments: &[&str]) -> Vec<Value> {
    let printed = printed(edge, arguments);
    printed.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// What a command that must not work says, in one line, with this exit code.
fn refused(ledger: &Path, arguments: &[&str]) -> String {
    let output = run(ledger, arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    said
}

fn sum<'a>(costs: impl IntoIterator<Item = &'a str>) -> BigDecimal {
    costs.into_iter().map(|cost| BigDecimal::from_str(cost).expect("a decimal")).sum()
}

#[tokio::test]
async fn two_who_submitted_at_once_and_whose_log_entries_are_lost_are_told_apart_by_the_operator() {
    let mut edge = Edge::start().await;
    edge.replace_envoy(r#"string_match: {exact: "yes"}"#, r#"string_match: {exact: "never"}"#).await;
    let ((alices, alices_tasks), (bobs, bobs_tasks)) =
        tokio::join!(edge.submit(ALICE.token, 2), edge.submit(BOB.token, 1));
    for task in alices_tasks.iter().chain(&bobs_tasks) {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    }
    edge.metric("tollgate_charges_held", 3.0).await;
    edge.metric("tollgate_held_workflows", 2.0).await;

    let held = objects(&edge, &["list", "--held", "--json"]);
    assert_eq!(held.len(), 2, "{held:?}");
    for workflow in &held {
        let candidates = workflow["candidates"].as_array().expect("candidates");
        let mut principals: Vec<&str> =
            candidates.iter().map(|candidate| candidate["principal_id"].as_str().expect("a principal")).collect();
        principals.sort_unstable();
        assert_eq!(principals, [ALICE.sub, BOB.sub]);
        assert!(workflow["reason"].as_str().is_some_and(|reason| reason.contains(ALICE.sub)), "{workflow}");
        let expected = if workflow["workflow_id"] == alices.as_str() { 2 } else { 1 };
        assert_eq!(workflow["held_charges"], expected);
    }
    let told = printed(&edge, &["list", "--held"]);
    assert!(told.contains(&alices) && told.contains(&format!("candidate {}: submission", BOB.sub)), "{told}");
    let told = printed(&edge, &["show", &alices]);
    assert!(told.contains("nobody: submissions of several") && told.contains(&alices_tasks[1]), "{told}");

    let told = printed(&edge, &["attribute", &alices, ALICE.sub]);
    assert!(told.contains("2 charges released") && told.contains("is what made it"), "{told}");
    // Bob's is the only submission that is left now, so a sweep may be faster than this.
    printed(&edge, &["attribute", &bobs, BOB.sub]);
    let entries = edge.entries(3).await;
    for entry in &entries {
        let owner = if bobs_tasks.contains(&entry.task_id) { BOB } else { ALICE };
        assert_eq!(entry.user_sub, owner.sub);
    }
    edge.metric("tollgate_held_workflows", 0.0).await;
    edge.metric("tollgate_open_submissions", 0.0).await;
    assert_eq!(edge.stack.runmesh.posts().len(), 3, "each once");
    // It is too late for another opinion; and the same one again changes nothing.
    let said = refused(&edge.dir.path().join("ledger.db"), &["attribute", &alices, BOB.sub]);
    assert!(said.contains("charges of it are posted"), "{said}");
    assert!(printed(&edge, &["attribute", &alices, ALICE.sub]).contains("0 charges released"));
    edge.finish().await;
}

#[tokio::test]
async fn a_charge_that_runmesh_refused_is_posted_after_a_retry() {
    let edge = Edge::start().await;
    let ledger = edge.dir.path().join("ledger.db");
    let refusal = format!(r#"{{"msg": "no account of {}"}}"#, ALICE.email);
    edge.stack.runmesh.fail_entries_with(Fault::Status(422, refusal, Vec::new()));
    let (_, tasks) = edge.submit(ALICE.token, 2).await;
    for task in &tasks {
        edge.post_result(ACME.token, task).await;
    }
    edge.metric("tollgate_charges_rejected", 2.0).await;
    edge.stack.runmesh.heal();
    let rejected = objects(&edge, &["list", "--state", "rejected", "--json"]);
    for arguments in [&["list"][..], &["list", "--json"], &["show", &tasks[0]], &["show", &tasks[0], "--json"]] {
        assert!(!printed(&edge, arguments).contains('@'), "{arguments:?}");
    }
    assert!(printed(&edge, &["show", &tasks[0], "--emails"]).contains(&format!("no account of {}", ALICE.email)));
    assert!(rejected[0]["last_error"].as_str().is_some_and(|error| error.contains("422")), "{rejected:?}");
    let told = printed(&edge, &["show", &tasks[0]]);
    assert!(told.contains("rejected, 1 post tried") && told.contains("status 422"), "{told}");
    let told = printed(&edge, &["retry", &tasks[0]]);
    assert!(told.contains(&format!("{}  $", tasks[0])) && told.contains("1 charge to be posted"), "{told}");
    assert_eq!(edge.entries(1).await[0].task_id, tasks[0]);
    let told = printed(&edge, &["retry", "--rejected"]);
    assert!(told.contains(&tasks[1]) && told.contains("1 charge to be posted"), "{told}");
    edge.entries(2).await;
    edge.quiet().await;
    let said = refused(&ledger, &["retry", &tasks[0], "tsk-none"]);
    assert!(said.contains("Runmesh has it already") && said.contains("tsk-none: there is no charge"), "{said}");
    assert!(printed(&edge, &["retry", "--all"]).starts_with("0 charges"));
    assert!(printed(&edge, &["show", &tasks[0]]).contains("posted, 2 posts tried"));
    edge.finish().await;
}

#[tokio::test]
async fn an_export_is_what_runmesh_has_and_its_totals_are_exact() {
    let edge = Edge::start().await;
    for (person, seconds) in [(ALICE, 0.1), (BOB, 72.5), (ALICE, 1234.567)] {
        let (_, tasks) = edge.submit(person.token, 2).await;
        for (task, rate) in tasks.iter().zip([1.5, 0.7]) {
            edge.stack.flowmesh.complete(task, Outcome::done(seconds, rate));
        }
    }
    let entries = edge.entries(6).await;
    edge.quiet().await;
    let rows = objects(&edge, &["export", "--json"]);
    let of = |kind: &str| rows.iter().filter(|row| row["row"] == kind).collect::<Vec<_>>();
    let cost = |row: &Value| row["cost"].as_str().expect("text").to_owned();
    assert_eq!(of("charge").len(), entries.len());
    for row in of("charge") {
        let same = |entry: &&Entry| row["task_id"] == entry.task_id.as_str();
        let entry = entries.iter().find(same).unwrap_or_else(|| panic!("{row} is not at Runmesh"));
        assert_eq!((cost(row), row["principal_id"].as_str()), (entry.cost.clone(), Some(entry.user_sub.as_str())));
    }
    for person in [ALICE, BOB] {
        let at_runmesh = sum(entries.iter().filter(|e| e.user_sub == person.sub).map(|entry| entry.cost.as_str()));
        let row = of("principal_total").into_iter().find(|row| row["principal_id"] == person.sub).expect("a total");
        assert_eq!(sum([cost(row).as_str()]), at_runmesh);
    }
    let everything = sum(entries.iter().map(|entry| entry.cost.as_str()));
    assert_eq!(sum([cost(of("total")[0]).as_str()]), everything);
    let suppliers: Vec<String> = of("supplier_total").into_iter().map(cost).collect();
    assert_eq!(sum(suppliers.iter().map(String::as_str)), everything);

    let csv = printed(&edge, &["export", "--since", "2026-01-01"]);
    let header = "row,task_id,workflow_id,principal_id,supplier_id,cost,charges,duration_sec,cost_per_hour,task_status,posted_at";
    assert_eq!(csv.lines().next(), Some(header));
    assert_eq!(csv.lines().count(), 1 + rows.len());
    assert_eq!(csv.lines().last(), Some(format!("total,,,,,{},6,,,,", cost(of("total")[0])).as_str()));
    assert_eq!(printed(&edge, &["export", "--until", "2020-01-01", "--json"]).lines().count(), 1, "the total alone");

    let status = objects(&edge, &["status", "--json"]).remove(0);
    assert_eq!(status["charges"]["posted"]["count"], 6);
    assert_eq!(status["charges"]["posted"]["cost"], cost(of("total")[0]));
    assert_eq!(status["charges"]["pending"]["count"], 0);
    assert!(printed(&edge, &["status"]).contains("US dollars"));
    // Who pays is told by name; where they read their mail is not, unless asked for.
    for arguments in [&["list", "--json"][..], &["list"], &["list", "--csv"], &["export"], &["export", "--json"]] {
        assert!(!printed(&edge, arguments).contains('@'), "{arguments:?}");
    }
    for arguments in [&["list", "--json", "--emails"][..], &["export", "--emails"]] {
        assert!(printed(&edge, arguments).contains(ALICE.email), "{arguments:?}");
    }
    let alices = printed(&edge, &["list", "--principal", ALICE.sub, "--csv", "--limit", "3"]);
    assert_eq!(alices.lines().count(), 4, "{alices}");
    edge.finish().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_one_line_and_changes_nothing() {
    let edge = Edge::start().await;
    let (workflow, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    let ledger = edge.dir.path().join("ledger.db");
    for (arguments, said) in [
        (&["list", "--state", "lost"][..], "--state"),
        (&["list", "--since", "yesterday"], "--since"),
        (&["list", "--emails"], "--emails"),
        (&["export", "--until", "2026-13-01"], "--until"),
        (&["show", "tsk-none"], "no task and no workflow tsk-none"),
        (&["retry"], "--rejected or --all"),
        (&["retry", &tasks[0]], "Runmesh has it already"),
        (&["attribute", "wfl-none", ALICE.sub], "no workflow wfl-none"),
        (&["attribute", &workflow, "user-nobody"], "charges of it are posted"),
        (&["attribute", &workflow, ALICE.sub, "--email", "nowhere"], "--email"),
        (&["attribute", &workflow, ALICE.sub, "--email", "other@example.com"], "--email"),
    ] {
        let line = refused(&ledger, arguments);
        assert!(line.contains(said), "{arguments:?}: {line}");
        assert!(!line.contains('@'), "{line}");
    }
    let nowhere = edge.dir.path().join("no-ledger.db");
    let line = refused(&nowhere, &["status"]);
    assert!(line.contains("no-ledger.db") && line.contains("there is no such file"), "{line}");
    assert!(!nowhere.exists());
    let foreign = edge.dir.path().join("notes.txt");
    std::fs::write(&foreign, "nothing of Tollgate's".repeat(100)).expect("written");
    assert!(refused(&foreign, &["status"]).contains("notes.txt"));
    // The command line itself.
    assert_eq!(run(&ledger, &["list", "--held", "--state", "held"]).status.code(), Some(2));
    edge.finish().await;
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let edge = Edge::start().await;
    let mut list =
        command(&edge.dir.path().join("ledger.db"), &["status"]).stdout(Stdio::piped()).spawn().expect("runs");
    drop(list.stdout.take());
    assert!(list.wait().expect("ended").success());
    edge.finish().await;
}

#[tokio::test]
async fn commands_killed_half_way_beside_a_busy_serve_harm_nothing() {
    let edge = Edge::start().await;
    let ledger = edge.dir.path().join("ledger.db");
    edge.stack.runmesh.fail_entries_with(Fault::status(422));
    let (workflow, tasks) = edge.submit(ALICE.token, 40).await;
    for task in &tasks {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    }
    edge.metric("tollgate_charges_rejected", 40.0).await;
    for round in 0..30_u64 {
        let arguments = [&["retry", "--all"][..], &["attribute", &workflow, ALICE.sub], &["list"], &["export"]];
        let mut killed = command(&ledger, arguments[usize::try_from(round).expect("small") % arguments.len()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        // Another moment of its short life each time.
        tokio::time::sleep(Duration::from_millis(round % 15)).await;
        killed.kill().expect("killed");
        killed.wait().expect("ended");
    }
    edge.stack.runmesh.heal();
    wait_for("everything to be posted", SOON, async || {
        assert!(run(&ledger, &["retry", "--rejected"]).status.success());
        (edge.stack.runmesh.entries().len() == 40).then_some(())
    })
    .await
    .expect("posted");
    edge.finish().await;
}

/// By SQLite's rules the last one to close the ledger takes its WAL away, and who else has it open is told by locks that a process
/// loses when it closes the file anywhere. Without them `sqlite3 ledger.db .backup` ends what a kill would not have ended.
#[tokio::test]
async fn serve_keeps_its_locks_on_the_ledger_so_that_a_backup_takes_no_wal_away() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    let page = edge.http.get(edge.stack.tollgate.admin_url()).send().await.expect("the console, which reads it, too");
    assert!(page.status().is_success());
    let inode = std::fs::metadata(edge.dir.path().join("ledger.db")).expect("there").ino();
    let locks = std::fs::read_to_string("/proc/locks").expect("Linux tells");
    let held = locks.lines().any(|line| line.contains(" POSIX ") && line.contains(&format!(":{inode} ")));
    assert!(held, "{inode} is in none of\n{locks}");
    edge.finish().await;
}
