//! What an operator does: checks the settings before a start, and looks at a running Tollgate.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tollgate_local::stack::{ACME, ALICE, BOB, wait_for};
use tollgate_local::standin::Fault;

use crate::harness::{Edge, SOON, answer, binary};

const SECRET: &str = "local-bridge-secret";

/// Runs `check-config`, with nothing but these settings.
fn check_config(flags: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary());
    command.arg("check-config").args(flags).env_clear().envs(settings.iter().copied()).output().expect("tollgate runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ledger(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

/// The settings of billing for a ledger there.
fn billing(ledger: &str) -> [(&str, &str); 3] {
    [
        ("RUNMESH_BILLING_BASE_URL", "http://127.0.0.1:1/Runmesh"),
        ("FLOWMESH_BRIDGE_SECRET", "hunter2"),
        ("TOLLGATE_LEDGER", ledger),
    ]
}

/// What a page of the admin listener says, and its status.
async fn page(edge: &Edge, path: &str) -> (u16, Value) {
    let answer = answer(edge.http.get(format!("{}{path}", edge.stack.tollgate.admin_url()))).await;
    (answer.status, answer.json())
}

/// Waits until a part on `/readyz` begins so, and returns the whole page. Tollgate is ready all the while.
async fn until_part(edge: &Edge, part: &str, begins: &str) -> Value {
    let told = wait_for(format!("{part} to be {begins:?}"), SOON, async || {
        let (status, page) = page(edge, "/readyz").await;
        assert_eq!((status, &page["ready"]), (200, &Value::Bool(true)), "{page}");
        page["parts"][part].as_str().is_some_and(|text| text.starts_with(begins)).then_some(page)
    });
    told.await.unwrap_or_else(|error| panic!("{error}; {:#?}", edge.stack.tollgate.lines()))
}

/// The settings that name a stack's stand-ins.
fn upstreams(edge: &Edge) -> [(&'static str, String); 4] {
    [
        ("LUM_ID_BASE_URL", edge.stack.lum_id.url()),
        ("RUNMESH_BILLING_BASE_URL", edge.stack.runmesh.billing_url()),
        ("FLOWMESH_BASE_URL", edge.stack.flowmesh.url()),
        ("TOLLGATE_LEDGER", ledger(&edge.dir.path().join("ledger.db"))),
    ]
}

/// A secret in a file of its own, which is replaced as a whole or written in place.
struct SecretFile {
    dir: tempfile::TempDir,
}

impl SecretFile {
    fn with(secret: &str) -> Self {
        let file = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        file.replace(secret);
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    fn text(&self) -> String {
        self.path().to_str().expect("text").to_owned()
    }

    /// As a tool that renames does it.
    fn replace(&self, secret: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, secret).expect("written");
        std::fs::rename(new, self.path()).expect("renamed");
    }
}

/// How many changes of secrets came to that.
async fn reloads(edge: &Edge, outcome: &str, wanted: f64) {
    edge.metric(&format!("tollgate_secret_reloads_total{{outcome=\"{outcome}\"}}"), wanted).await;
}

/// Lines of Tollgate's log with this text.
fn count(edge: &Edge, text: &str) -> usize {
    edge.stack.tollgate.lines().iter().filter(|line| line.contains(text)).count()
}

#[test]
fn check_config_prints_what_would_run_with_each_origin_and_no_secret() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let key = dir.path().join("key");
    std::fs::write(&key, "hunter3\n").expect("written");
    let key = key.to_str().expect("text");
    let settings = [
        ("RUNMESH_BILLING_BASE_URL", "https://kv.run:8000/Runmesh/"),
        ("FLOWMESH_BRIDGE_SECRET", "hunter2"),
        ("FLOWMESH_API_KEY_FILE", key),
        ("LUMID_ORG_ID", "org-from-environment"),
        ("TOLLGATE_LOG", " "),
        ("TOLLGATE_RECONCILE_INTERVAL_SEC", "60"),
        ("TOLLGATE_SPEED", "fast"),
    ];
    let ledger = ledger(&dir.path().join("ledger.db"));
    let output = check_config(&["--lumid-org-id", "org-from-flag", "--ledger", &ledger], &settings);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for line in [
        "RUNMESH_BILLING_BASE_URL=https://kv.run:8000/Runmesh  # environment\n",
        "FLOWMESH_BRIDGE_SECRET=********  # environment\n",
        &format!("FLOWMESH_API_KEY=********  # file {key}\n"),
        "LUMID_ORG_ID=org-from-flag  # flag\n",
        "TOLLGATE_LOG=info  # default\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    let warned = stderr(&output);
    assert!(!text.contains("hunter") && !warned.contains("hunter"));
    assert!(warned.contains("TOLLGATE_RECONCILE_INTERVAL_SEC is set"), "{warned}");
    assert!(warned.contains("did you mean TOLLGATE_RECONCILE_INTERVAL_SECS?"), "{warned}");
    assert!(warned.contains("TOLLGATE_SPEED is set, but this version knows no such variable\n"), "{warned}");
}

#[test]
fn check_config_makes_no_ledger_and_says_when_there_is_none_or_none_could_be_made() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("ledger.db");
    let output = check_config(&[], &billing(&ledger(&file)));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("ledger: ok, there is none yet"), "{}", stdout(&output));
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0, "nothing was made");

    std::fs::write(&file, "a shopping list").expect("written");
    for path in [&file, &dir.path().join("missing/ledger.db")] {
        let output = check_config(&[], &billing(&ledger(path)));
        assert!(!output.status.success());
        assert!(stdout(&output).contains("ledger: FAILED, cannot open the ledger"), "{}", stdout(&output));
    }
    // Without billing there is nothing to open.
    let output = check_config(&[], &[("TOLLGATE_LEDGER", &ledger(&file))]);
    assert!(output.status.success() && stdout(&output).contains("ledger: ok, not used"), "{}", stdout(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_config_online_asks_everybody_and_tells_each_cause_while_tollgate_serves() {
    let edge = Edge::start().await;
    let (upstreams, dir) = (upstreams(&edge), edge.dir.path().join("secret"));
    let check = |secret: &str| {
        std::fs::write(&dir, secret).expect("written");
        let mut settings: Vec<(&str, &str)> = upstreams.iter().map(|(name, value)| (*name, value.as_str())).collect();
        settings.push(("FLOWMESH_BRIDGE_SECRET_FILE", dir.to_str().expect("text")));
        tokio::task::block_in_place(|| check_config(&["--online"], &settings))
    };
    let good = check(SECRET);
    assert!(good.status.success(), "{}{}", stdout(&good), stderr(&good));
    for line in ["ledger: ok, it can be opened", "lum.id: ok", "Runmesh: ok", "FlowMesh: ok"] {
        assert!(stdout(&good).contains(line), "{}", stdout(&good));
    }
    assert!(edge.stack.runmesh.posts().is_empty() && edge.stack.runmesh.entries().is_empty(), "no money moves");
    assert_eq!(edge.stack.runmesh.violations(), Vec::<String>::new());

    edge.stack.lum_id.fail_with(Fault::status(500));
    edge.stack.flowmesh.stop().await;
    let bad = check("wrong");
    assert!(!bad.status.success());
    for line in [
        "ledger: ok",
        "lum.id: FAILED, status 500",
        "Runmesh: FAILED, it does not accept FLOWMESH_BRIDGE_SECRET (status 401)",
        "FlowMesh: FAILED, error sending request: ",
    ] {
        assert!(stdout(&bad).contains(line), "{line}: {}", stdout(&bad));
    }
    edge.stack.kill_hard().await;
}

#[tokio::test]
async fn readiness_names_each_part_and_trouble_elsewhere_is_told_but_no_reason_to_be_unready() {
    let edge = Edge::start().await;
    let page = until_part(&edge, "lum.id", "not asked yet").await;
    assert_eq!(page["backlog_age_seconds"], 0);
    for part in ["listeners", "ledger", "posting", "asking"] {
        assert_eq!(page["parts"][part], "ok", "{page}");
    }
    edge.stack.runmesh.fail_entries_with(Fault::status(401));
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    until_part(&edge, "lum.id", "ok").await;
    edge.stack.lum_id.fail_with(Fault::status(500));
    assert_eq!(answer(edge.get("/api/v1/workers").bearer_auth(BOB.token)).await.status, 503);
    let page = until_part(&edge, "lum.id", "failed ").await;
    assert!(page["parts"]["lum.id"].as_str().is_some_and(|text| text.ends_with(" s ago: status 500")), "{page}");
    edge.stack.lum_id.heal();

    edge.post_result(ACME.token, &tasks[0]).await;
    until_part(&edge, "posting", "paused").await;
    let aged = async || self::page(&edge, "/readyz").await.1["backlog_age_seconds"].as_i64().filter(|age| *age > 0);
    wait_for("the backlog to age", SOON, aged).await.expect("a charge waits");
    edge.stack.runmesh.heal();
    until_part(&edge, "posting", "ok").await;

    // As many as it takes to fail in a row.
    for _ in 0..6 {
        edge.submit(ALICE.token, 1).await;
    }
    edge.stack.flowmesh.fail_with(Fault::status(503));
    until_part(&edge, "asking", "paused").await;
    edge.stack.flowmesh.heal();
    until_part(&edge, "asking", "ok").await;
    edge.finish().await;
}

#[tokio::test]
async fn a_stop_makes_it_unready_and_says_that_it_drains() {
    let edge = Edge::start().await;
    let unready = async {
        let unready = async || Some(page(&edge, "/readyz").await).filter(|(status, _)| *status == 503);
        wait_for("503 of /readyz", SOON, unready).await.expect("unready before the listeners close").1
    };
    let (status, page) = tokio::join!(edge.stack.tollgate.terminate(), unready);
    assert!(status.expect("stopped").success());
    assert_eq!((&page["ready"], &page["parts"]["listeners"]), (&Value::Bool(false), &Value::from("draining")));
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn a_running_tollgate_tells_what_it_runs_with_and_no_secret() {
    let edge = Edge::with(&[("LUMID_ORG_ID", "acme"), ("FLOWMESH_API_KEY", "hunter2")]).await;
    let (status, page) = page(&edge, "/config").await;
    assert_eq!(status, 200);
    let settings = page.as_array().expect("a list");
    let of = |variable: &str| settings.iter().find(|setting| setting["variable"] == variable).expect("described");
    let told = |variable: &str| (of(variable)["value"].as_str(), of(variable)["origin"].as_str());
    assert_eq!(told("LUMID_ORG_ID"), (Some("acme"), Some("environment")));
    assert_eq!(told("LUMID_BALANCE_GUARD").1, Some("environment"));
    assert_eq!(told("TOLLGATE_RETENTION_DAYS"), (Some("90"), Some("default")));
    for secret in ["FLOWMESH_API_KEY", "FLOWMESH_BRIDGE_SECRET"] {
        assert_eq!(told(secret), (Some("********"), Some("environment")));
    }
    assert!(!page.to_string().contains("hunter2") && !page.to_string().contains(SECRET));
    edge.finish().await;
}

#[tokio::test]
async fn a_wrong_bridge_secret_pauses_posting_until_its_file_is_corrected_without_a_restart() {
    let file = SecretFile::with("wrong");
    let settings = [("FLOWMESH_BRIDGE_SECRET", ""), ("FLOWMESH_BRIDGE_SECRET_FILE", &file.text())];
    let edge = Edge::with(&settings).await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    until_part(&edge, "posting", "paused").await;
    assert!(edge.stack.runmesh.posts().is_empty(), "Runmesh knows another secret");
    let streams = edge.stack.tollgate.metric("tollgate_log_streams").await;
    assert!(streams.is_some_and(|streams| streams > 0.0), "{streams:?}");

    file.replace(&format!("{SECRET}\n"));
    edge.entries(1).await;
    until_part(&edge, "posting", "ok").await;
    reloads(&edge, "ok", 1.0).await;
    assert_eq!(edge.stack.tollgate.metric("tollgate_log_streams").await, streams, "no stream was dropped");
    assert_eq!(count(&edge, "serving Envoy on"), 1, "it was not started anew");
    for secret in [SECRET, "\"wrong\""] {
        assert_eq!(count(&edge, secret), 0, "no secret is logged");
    }
    edge.quiet().await;
    edge.assert_billed_as_truth(&edge.stack.flowmesh.truth());
    // Not as politely as usual: the wrong secret was a violation.
    edge.stack.kill_hard().await;
}

#[tokio::test]
async fn a_bad_or_missing_secret_file_is_told_once_and_the_old_secret_stays_in_use() {
    let file = SecretFile::with(SECRET);
    let settings = [("FLOWMESH_BRIDGE_SECRET", ""), ("FLOWMESH_BRIDGE_SECRET_FILE", &file.text())];
    let edge = Edge::with(&settings).await;
    let process = edge.stack.tollgate.process();
    let looked = async |times: usize| {
        process.hang_up().expect("signalled");
        let looked = async || (count(&edge, "SIGHUP: looked at 1 secret files") >= times).then_some(());
        wait_for("Tollgate to look at its files", SOON, looked).await.expect("looked");
    };
    let told = || count(&edge, "FLOWMESH_BRIDGE_SECRET_FILE: ");
    file.replace("");
    looked(1).await;
    looked(2).await;
    reloads(&edge, "failed", 1.0).await;
    assert_eq!(told(), 1, "{:#?}", edge.stack.tollgate.lines());
    std::fs::remove_file(file.path()).expect("removed");
    looked(3).await;
    looked(4).await;
    reloads(&edge, "failed", 2.0).await;
    assert_eq!(told(), 2, "{:#?}", edge.stack.tollgate.lines());

    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    file.replace(SECRET);
    reloads(&edge, "ok", 1.0).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_changed_flowmesh_key_is_sent_from_then_on() {
    let file = SecretFile::with("first-key");
    let edge = Edge::with(&[("FLOWMESH_API_KEY_FILE", &file.text())]).await;
    let sent = async |key: &str| {
        let bearer = format!("Bearer {key}");
        let sent = async || {
            let requests = edge.stack.flowmesh.requests();
            requests.iter().any(|seen| seen.header("authorization") == Some(&bearer)).then_some(())
        };
        wait_for(format!("a question with {key}"), SOON, sent).await.expect("asked");
    };
    sent("first-key").await;
    file.replace("second-key");
    reloads(&edge, "ok", 1.0).await;
    edge.submit(ALICE.token, 1).await;
    sent("second-key").await;
    edge.finish().await;
}

#[tokio::test]
async fn a_hang_up_is_no_end_where_no_secret_is_in_a_file() {
    let edge = Edge::start().await;
    edge.stack.tollgate.process().hang_up().expect("signalled");
    edge.says("SIGHUP: looked at 0 secret files").await;
    assert!(edge.stack.tollgate.is_ready().await);
    edge.finish().await;
}
