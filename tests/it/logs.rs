//! What the log says, and what it never says; the filter in a file; one id from the client to FlowMesh.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tollgate_local::stack::{ACME, ALICE, PAUPER, PEOPLE, free_port, wait_for};
use tollgate_local::standin::{Fault, Outcome};

use crate::harness::{Edge, Recorder, SOON, WebSocket, answer, binary};
use crate::mtls::{self, Pki};

const SECRET: &str = "local-bridge-secret";

/// The lines of Tollgate's log; each is one JSON object.
fn lines(edge: &Edge) -> Vec<Value> {
    let lines = edge.stack.tollgate.lines().into_iter();
    lines.map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn message(line: &Value) -> &str {
    line["message"].as_str().unwrap_or_default()
}

/// Lines whose message has this text.
fn with(edge: &Edge, text: &str) -> Vec<Value> {
    lines(edge).into_iter().filter(|line| message(line).contains(text)).collect()
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(new, path).expect("renamed");
}

/// The rows of the table of fields in `docs/LOGGING.md`.
fn documented_fields() -> BTreeSet<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/LOGGING.md")).expect("documented");
    let (_, section) = text.split_once("\n## Fields\n").expect("it has a section on fields");
    let section = section.split("\n## ").next().expect("its text");
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let names: Vec<&str> = cells.flat_map(|cell| cell.split([',', ' ', '`'])).filter(|name| !name.is_empty()).collect();
    let fields: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(fields.len(), names.len(), "each field is there once");
    fields
}

/// What stands in the parentheses of each call of a log macro in the sources.
fn log_calls(text: &str) -> Vec<String> {
    let mut calls = Vec::new();
    for level in ["trace", "debug", "info", "warn", "error"] {
        for (at, found) in text.match_indices(&format!("tracing::{level}!(")) {
            let (mut depth, mut quoted, mut escaped) = (1, false, false);
            let inside = text[at + found.len()..].chars().take_while(|&letter| {
                match letter {
                    _ if escaped => escaped = false,
                    '\\' if quoted => escaped = true,
                    '"' => quoted = !quoted,
                    '(' | '{' | '[' if !quoted => depth += 1,
                    ')' | '}' | ']' if !quoted => depth -= 1,
                    _ => {}
                }
                depth > 0
            });
            calls.push(inside.collect());
        }
    }
    calls
}

/// The names of the fields of such a call: what stands before its text.
fn fields(call: &str) -> Vec<String> {
    let before = call.split('"').next().unwrap_or_default();
    let mut depth = 0;
    let parts = before.split(|letter| {
        match letter {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    });
    let names = parts.map(|part| part.split('=').next().unwrap_or_default().trim().trim_start_matches(['%', '?']));
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(std::fs::read_to_string(path).expect("text"));
        }
    }
}

#[test]
fn the_fields_of_the_log_are_those_that_are_documented() {
    let mut texts = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
    let calls: Vec<String> = texts.iter().flat_map(|text| log_calls(text)).collect();
    assert!(calls.len() > 50, "{}", calls.len());
    let used: BTreeSet<String> = calls.iter().flat_map(|call| fields(call)).collect();
    assert_eq!(used, documented_fields());
}

#[tokio::test]
async fn each_refusal_submission_charge_and_failure_has_one_line_that_a_machine_can_read() {
    // Everything that there is to say, of everybody.
    let edge = Edge::with(&[("TOLLGATE_LOG", "trace")]).await;
    let mut ids = BTreeMap::new();
    for (what, request, status) in [
        ("missing_bearer", edge.get("/api/v1/tasks"), 401),
        ("inactive_token", edge.get("/api/v1/tasks").bearer_auth("lm_pat_live_stranger"), 401),
        ("insufficient_balance", edge.submission(PAUPER.token, 1), 402),
        ("path", edge.get("/api/v1/tasks/a%0ab").bearer_auth(ALICE.token), 400),
        ("submission", edge.submission(ALICE.token, 1), 201),
    ] {
        let answer = answer(request).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        ids.insert(answer.header("x-request-id").expect("an id").to_owned(), (what, answer));
    }
    edge.stack.lum_id.fail_with(Fault::status(500));
    let refused = answer(edge.get("/api/v1/tasks").bearer_auth("lm_pat_live_another")).await;
    assert_eq!(refused.status, 503);
    ids.insert(refused.header("x-request-id").expect("an id").to_owned(), ("identity_unavailable", refused));
    edge.stack.lum_id.heal();
    edge.stack.runmesh.fail_entries_with(Fault::status(500).times(1));
    let (_, submitted) = ids.values().find(|(what, _)| *what == "submission").expect("made");
    let task = submitted.json()["tasks"][0]["task_id"].as_str().expect("an id").to_owned();
    edge.post_result(ACME.token, &task).await;
    edge.entries(1).await;
    edge.says("posted $").await;

    let known = documented_fields();
    for line in lines(&edge) {
        let timestamp = line["timestamp"].as_str().expect("text");
        assert!(timestamp.len() == 24 && timestamp.ends_with('Z'), "{line}");
        if line["target"].as_str().expect("text").starts_with("tollgate") {
            for name in line.as_object().expect("an object").keys() {
                let of_all = ["timestamp", "level", "target", "message"].contains(&name.as_str());
                assert!(of_all || known.contains(name), "{name}: {line}");
            }
            assert!(line["level"].is_string() && !message(&line).is_empty(), "{line}");
        }
        let text = line.to_string();
        for secret in PEOPLE.iter().flat_map(|person| [person.token, person.email]).chain([SECRET, "lm_pat", "task-0"])
        {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
    for (id, (what, answer)) in &ids {
        let of_request: Vec<Value> = lines(&edge).into_iter().filter(|line| line["request_id"] == **id).collect();
        let [line] = of_request.as_slice() else { panic!("{what}: {of_request:#?}") };
        match *what {
            "submission" => {
                assert_eq!((&line["level"], &line["principal"]), (&Value::from("INFO"), &Value::from(ALICE.sub)));
                assert!(message(line).contains(line["submission"].as_str().expect("an id")), "{line}");
            }
            refused => {
                assert_eq!((&line["reason"], &line["status"]), (&Value::from(refused), &Value::from(answer.status)));
                let level = if answer.status == 503 { "WARN" } else { "INFO" };
                assert_eq!(line["level"], level, "{line}");
            }
        }
    }
    for (text, level) in [("charge of $", "INFO"), ("posted $", "INFO"), ("not posted", "WARN")] {
        let said = with(&edge, text);
        let [line] = said.as_slice() else { panic!("{text}: {said:#?}") };
        assert_eq!((line["level"].as_str(), line["task"].as_str()), (Some(level), Some(task.as_str())), "{line}");
        assert_eq!(line["workflow"], submitted.json()["workflow_id"], "{line}");
        assert!(message(line).contains(&task), "the id is in the message, too: {line}");
    }
    edge.finish().await;
}

#[tokio::test]
async fn a_charge_that_an_answer_brings_about_has_the_line_of_every_charge_however_often_it_is_read() {
    let edge = Edge::start().await;
    let (workflow, tasks) = edge.submit(ALICE.token, 1).await;
    edge.metric("tollgate_open_submissions", 0.0).await;
    // Its tasks are noted by the sweep.
    let swept = async || (edge.stack.tollgate.metric("tollgate_sweeps_total").await? > 0.0).then_some(());
    wait_for("a sweep", SOON, swept).await.expect("swept");
    let path = format!("/api/v1/tasks/{}", tasks[0]);
    let headers = [
        ("x-flowmesh-task-id", tasks[0].as_str()),
        ("x-flowmesh-task-status", "DONE"),
        ("x-flowmesh-task-cost", "0.25"),
        ("x-flowmesh-task-runtime-sec", "600"),
        ("x-flowmesh-task-cost-per-hour", "1.5"),
    ];
    edge.stack.flowmesh.answer_with_headers(&format!("GET {path}"), &headers);
    for _ in 0..3 {
        assert_eq!(answer(edge.get(&path).bearer_auth(ALICE.token)).await.status, 200);
    }
    edge.entries(1).await;
    edge.says("posted $0.25").await;
    let said = with(&edge, "charge of $0.25");
    let [line] = said.as_slice() else { panic!("{said:#?}") };
    assert_eq!((line["workflow"].as_str(), line["principal"].as_str()), (Some(workflow.as_str()), Some(ALICE.sub)));
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn an_outage_of_runmesh_is_told_by_a_few_lines_that_count_the_charges_that_wait() {
    const CHARGES: usize = 100;
    let edge = Edge::with(&[("TOLLGATE_LOG", "info")]).await;
    // It answers, and takes nothing: so nothing keeps Tollgate from asking for each.
    edge.stack.runmesh.fail_entries_with(Fault::Body(r#"{"code": 500, "msg": "down"}"#.to_owned()));
    let (_, tasks) = edge.submit(ALICE.token, CHARGES).await;
    for task in &tasks {
        edge.stack.flowmesh.complete(task, Outcome::done(1.0, 1.5));
    }
    edge.metric("tollgate_charges_pending", f64::from(u32::try_from(CHARGES).expect("few"))).await;
    let failed = async || {
        let failed = edge.stack.tollgate.metric("tollgate_posts_total{outcome=\"envelope\"}").await?;
        (failed >= 2.0 * f64::from(u32::try_from(CHARGES).expect("few"))).then_some(())
    };
    wait_for("two tries for each charge", SOON * 2, failed).await.expect("tried");
    let told = with(&edge, "not posted");
    let began: jiff::Timestamp = told[0]["timestamp"].as_str().expect("a time").parse().expect("a time");
    let last: jiff::Timestamp = told[told.len() - 1]["timestamp"].as_str().expect("a time").parse().expect("a time");
    let periods = usize::try_from(last.duration_since(began).as_secs() / 10).expect("forward") + 1;
    assert!(told.len() <= 10 * periods, "{} lines in {periods} periods: {told:#?}", told.len());

    edge.stack.runmesh.heal();
    edge.entries(CHARGES).await;
    edge.quiet().await;
    let posted = async || (with(&edge, "posted $").len() == CHARGES).then_some(());
    wait_for("a line for each charge", SOON, posted).await.expect("told");
    edge.finish().await;
}

#[tokio::test]
async fn one_request_id_is_in_the_answer_at_flowmesh_in_tollgates_line_and_in_envoys_log() {
    let mut edge = Edge::start().await;
    let recorder = Recorder::instead_of_tollgate(&mut edge, &[]).await;
    for own in [None, Some("0b5e0b5e-0000-4000-8000-000000000001"), Some("of-the-client")] {
        let mut request = edge.get("/api/v1/tasks/tsk-1?view=status").bearer_auth(ALICE.token);
        if let Some(own) = own {
            request = request.header("x-request-id", own);
        }
        let answered = answer(request).await;
        let id = answered.header("x-request-id").expect("an id").to_owned();
        assert!(id.len() == 36 && own != Some(id.as_str()), "it is Envoy's own: {id}");
        assert_eq!(edge.seen().pop().expect("arrived").header_values("x-request-id"), [id.as_str()]);
        edge.says(&id).await;
        let said: Vec<Value> = lines(&edge).into_iter().filter(|line| line["request_id"] == id.as_str()).collect();
        assert!(said.iter().any(|line| message(line).contains("allowed as")), "{said:#?}");
        let logged = async || {
            let entries = recorder.entries();
            entries
                .iter()
                .any(|entry| entry.request.as_ref().is_some_and(|request| request.request_id == id))
                .then_some(())
        };
        wait_for("Envoy's entry", SOON, logged).await.expect("logged under the same id");
    }
    edge.finish().await;
}

#[tokio::test]
async fn one_hang_up_reloads_secret_certificates_and_log_filter_and_drops_no_stream() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let pki = Pki::write(dir.path());
    let (secret, filter) = (dir.path().join("secret"), dir.path().join("filter"));
    replace(&secret, SECRET);
    replace(&filter, "info");
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let settings = [
        ("FLOWMESH_BRIDGE_SECRET", String::new()),
        ("FLOWMESH_BRIDGE_SECRET_FILE", path(&secret)),
        ("TOLLGATE_LOG", String::new()),
        ("TOLLGATE_LOG_FILE", path(&filter)),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut edge = Edge::with(&settings).await;
    edge.stack.tollgate.kill_hard().await.expect("killed");
    let address = format!("127.0.0.1:{}", free_port().expect("a port"));
    edge.stack.tollgate.set("TOLLGATE_GRPC_LISTEN", &address);
    for (name, value) in mtls::settings(dir.path()) {
        edge.stack.tollgate.set(name, &value);
    }
    edge.stack.tollgate.restart().await.expect("restarted");
    let flags = [vec!["--tollgate".to_owned(), address], mtls::flags(dir.path())].concat();
    mtls::replace_envoy(&mut edge, &flags).await;

    let (_, tasks) = edge.submit(ALICE.token, 2).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    let proxy = format!("/api/v1/ssh/tasks/{}/proxy?token={}", tasks[1], ALICE.token);
    let mut socket = WebSocket::open(&edge, &proxy, "").await.expect("opened");
    let events = format!("/api/v1/tasks/{}/logs/stream", tasks[1]);
    let mut events = edge.get(&events).bearer_auth(ALICE.token).send().await.expect("an answer");
    assert!(events.chunk().await.expect("open").is_some());
    let streams = edge.stack.tollgate.metric("tollgate_log_streams").await;
    assert!(streams.is_some_and(|streams| streams > 0.0), "{streams:?}");

    // At once, and not because the files were looked at twice meanwhile: until one hang-up was the first to see each change.
    let mut tries = 0..10;
    let reloaded = loop {
        let n = tries.next().expect("a hang-up that takes all of it up");
        replace(&secret, &format!("{SECRET}{}", if n % 2 == 0 { "-next" } else { "" }));
        replace(&filter, if n % 2 == 0 { "info,tollgate::authz=debug" } else { "info" });
        pki.renew(dir.path());
        let (files, tls) =
            (with(&edge, "SIGHUP: looked at 1 secret").len(), with(&edge, "SIGHUP: looked at the TLS").len());
        edge.stack.tollgate.process().hang_up().expect("signalled");
        let looked = async || {
            let files = with(&edge, "SIGHUP: looked at 1 secret").into_iter().nth(files)?;
            Some((files, with(&edge, "SIGHUP: looked at the TLS").into_iter().nth(tls)?))
        };
        let (files, tls) = wait_for("a look at all files", SOON, looked).await.expect("looked");
        if n % 2 == 0 && files["changes"] == 2 && message(&tls).ends_with("they have changed") {
            break files;
        }
    };
    assert!(message(&reloaded).contains("and the log filter, 2 changed"), "{reloaded}");
    let changed = with(&edge, "log filter changed from info to info,tollgate::authz=debug");
    assert_eq!((&changed[0]["before"], &changed[0]["level"]), (&Value::from("info"), &Value::from("INFO")));
    assert!(with(&edge, "allowed as").is_empty(), "so far it was not asked for");
    assert_eq!(answer(edge.get("/api/v1/nodes").bearer_auth(ALICE.token)).await.status, 200);
    edge.says("GET /api/v1/nodes: allowed as").await;

    socket.assert_alive().await;
    assert!(events.chunk().await.expect("open").is_some());
    assert_eq!(edge.stack.tollgate.metric("tollgate_log_streams").await, streams, "no log stream was dropped");
    replace(&secret, SECRET);
    edge.stack.tollgate.process().hang_up().expect("signalled");
    edge.post_result(ACME.token, &tasks[1]).await;
    edge.entries(2).await;
    assert_eq!(with(&edge, "serving Envoy on").len(), 1, "it was not started anew");
    // Not as politely as usual: for a moment the secret was another.
    edge.quiet().await;
    edge.stack.kill_hard().await;
}

#[tokio::test]
async fn a_log_filter_that_changes_in_its_file_is_in_use_within_seconds_and_a_bad_one_is_told_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let filter = dir.path().join("filter");
    replace(&filter, "info");
    let text = filter.to_str().expect("text").to_owned();
    let edge = Edge::with(&[("TOLLGATE_LOG", ""), ("TOLLGATE_LOG_FILE", &text)]).await;
    let in_force = async || {
        let page = answer(edge.http.get(format!("{}/config", edge.stack.tollgate.admin_url()))).await.json();
        let setting = page.as_array()?.iter().find(|setting| setting["variable"] == "TOLLGATE_LOG")?.clone();
        assert_eq!(setting["origin"], format!("file {text}"));
        setting["value"].as_str().map(str::to_owned)
    };
    assert_eq!(in_force().await.as_deref(), Some("info"));
    // No SIGHUP.
    replace(&filter, "error\n");
    edge.says("log filter changed from info to error").await;
    assert_eq!(in_force().await.as_deref(), Some("error"));
    let refused = answer(edge.get("/api/v1/tasks")).await;
    let id = refused.header("x-request-id").expect("an id").to_owned();
    for bad in ["tollgate=loud", "", "info\ndebug"] {
        replace(&filter, bad);
        let before = with(&edge, "the log filter in use stays").len();
        let told = async || (with(&edge, "the log filter in use stays").len() > before).then_some(());
        wait_for(format!("{bad:?} to be told"), SOON, told).await.expect("told");
    }
    std::fs::remove_file(&filter).expect("removed");
    edge.says("TOLLGATE_LOG_FILE: cannot read").await;
    edge.stack.tollgate.process().hang_up().expect("signalled");
    assert_eq!(in_force().await.as_deref(), Some("error"));
    replace(&filter, "debug");
    edge.says("log filter changed from error to debug").await;
    let told = with(&edge, "the log filter in use stays");
    assert_eq!(told.len(), 4, "each once: {told:#?}");
    assert!(told.iter().all(|line| message(line).starts_with("TOLLGATE_LOG_FILE: ")), "{told:#?}");
    assert!(lines(&edge).iter().all(|line| line["request_id"] != id.as_str()), "a refusal is no error");
    edge.finish().await;
}

#[test]
fn check_config_judges_the_file_of_the_log_filter() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let filter = dir.path().join("filter");
    let check = |more: &[(&str, &str)]| {
        let mut command = Command::new(binary());
        command.arg("check-config").env_clear().env("TOLLGATE_LOG_FILE", &filter).envs(more.iter().copied());
        command.output().expect("tollgate runs")
    };
    replace(&filter, "warn,tollgate::authz=debug\n");
    let output = check(&[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!("TOLLGATE_LOG=warn,tollgate::authz=debug  # file {}\n", filter.display());
    assert!(output.status.success() && said.contains(&expected), "{said}");
    for (text, more) in [("loud=very", &[][..]), ("", &[]), ("info", &[("TOLLGATE_LOG", "info")])] {
        replace(&filter, text);
        let output = check(more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.lines().count() == 1, "{text}: {said}");
        assert!(said.contains("TOLLGATE_LOG_FILE"), "{said}");
    }
}

#[test]
fn text_is_for_people_and_has_no_colour_where_nobody_looks() {
    // It cannot serve there, which is a line of the log and then an error.
    let output = Command::new(binary())
        .env_clear()
        .envs([("LUMID_BALANCE_GUARD", "on"), ("TOLLGATE_GRPC_LISTEN", "unix:/nonexistent/tollgate.sock")])
        .output()
        .expect("tollgate runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = said.lines().next().expect("a line");
    let (time, rest) = line.split_at(24);
    assert!(time.parse::<jiff::Timestamp>().is_ok() && time.ends_with('Z'), "{line}");
    assert!(rest.starts_with("  WARN tollgate::cli: LUMID_BALANCE_GUARD is on"), "{line}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
}
