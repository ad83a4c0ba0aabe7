//! The process itself: start, errors at start, stop, and its subcommands.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tollgate_local::stack::{ACME, ALICE, Envoy, Tollgate, wait_for};
use tollgate_local::standin::{Fault, Outcome};

use crate::harness::{Edge, SOON, binary, envoy_binary};
use crate::identity::sha256;

/// Runs a command that ends by itself, with nothing but these settings.
fn tollgate(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    Command::new(binary()).args(arguments).env_clear().envs(settings.iter().copied()).output().expect("tollgate runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn start(settings: &[(&str, &str)]) -> anyhow::Result<Tollgate> {
    let settings: Vec<(&str, String)> = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Tollgate::start(binary(), &settings, None).await
}

fn socket(dir: &Path) -> String {
    format!("unix:{}", dir.join("grpc.sock").display())
}

#[test]
fn a_wrong_setting_stops_the_start_with_one_line_that_names_it() {
    let settings = [("TOLLGATE_GRPC_LISTEN", "0.0.0.0:9001")];
    for arguments in [&["serve"][..], &[], &["check-config"], &["healthcheck"]] {
        let output = tollgate(arguments, &settings);
        assert!(!output.status.success());
        let said = stderr(&output);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("TOLLGATE_GRPC_LISTEN") && said.contains("TOLLGATE_INSECURE_LISTEN"), "{said}");
    }
}

#[test]
fn help_and_version_name_what_there_is() {
    let help = tollgate(&["--help"], &[]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in [
        "serve",
        "check-config",
        "envoy-config",
        "healthcheck",
        "purge",
        "ledger",
        "LUM_ID_BASE_URL",
        "TOLLGATE_LEDGER",
    ] {
        assert!(text.contains(word), "{word} is not in the help");
    }
    let version = tollgate(&["--version"], &[]);
    let expected = concat!("tollgate ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
}

#[tokio::test]
async fn healthcheck_tells_a_ready_tollgate_from_none() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let tollgate = start(&[("TOLLGATE_GRPC_LISTEN", &socket(dir.path())), ("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0")])
        .await
        .expect("starts");
    let admin = tollgate.admin_url().trim_start_matches("http://").to_owned();
    // A proxy for the rest of the world is none for this machine.
    let proxy = ("HTTP_PROXY", "http://127.0.0.1:1");
    let check = || self::tollgate(&["healthcheck"], &[("TOLLGATE_ADMIN_LISTEN", &admin), proxy]);
    let output = check();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains(r#""ready":true"#));
    tollgate.kill_hard().await.expect("killed");
    let output = check();
    assert!(!output.status.success());
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
}

#[tokio::test]
async fn purge_makes_the_running_tollgate_forget_and_its_exit_code_tells() {
    let edge = Edge::start().await;
    let admin = edge.stack.tollgate.admin_url().trim_start_matches("http://").to_owned();
    let hash = sha256(ALICE.token);
    let purge = |arguments: &[&str], admin: &str| {
        let output = tollgate(&[&["purge"], arguments].concat(), &[("TOLLGATE_ADMIN_LISTEN", admin)]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), stderr(&output))
    };
    for (arguments, forgotten) in [
        (&["--principal", ALICE.sub][..], "1 forgotten\n"),
        (&["--token-sha256", &hash], "1 forgotten\n"),
        (&["--all"], "2 forgotten\n"),
        (&["--principal", "nobody"], "0 forgotten\n"),
    ] {
        assert_eq!(purge(&["--all"], &admin).0, Some(0));
        for token in [ALICE.token, ACME.token] {
            assert_eq!(crate::harness::answer(edge.get("/api/v1/tasks").bearer_auth(token)).await.status, 200);
        }
        assert_eq!(purge(arguments, &admin), (Some(0), forgotten.to_owned(), String::new()), "{arguments:?}");
    }
    for arguments in [&[][..], &["--all", "--principal", "x"], &["--token-sha256", ALICE.token]] {
        let (code, _, said) = purge(arguments, &admin);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(!said.contains(ALICE.token), "what may be a token is not shown: {said}");
    }
    let (code, _, said) = purge(&["--all"], "127.0.0.1:1");
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    edge.finish().await;
}

#[tokio::test]
async fn a_taken_port_or_socket_is_an_error_that_names_its_setting() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let taken = listener.local_addr().expect("an address").to_string();
    let error = start(&[("TOLLGATE_ADMIN_LISTEN", &taken), ("TOLLGATE_GRPC_LISTEN", &socket(dir.path()))]).await;
    let error = error.expect_err("taken").to_string();
    assert!(error.contains("TOLLGATE_ADMIN_LISTEN: cannot listen on"), "{error}");
    let error = start(&[("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0"), ("TOLLGATE_GRPC_LISTEN", &taken)]).await;
    let error = error.expect_err("taken").to_string();
    assert!(error.contains("TOLLGATE_GRPC_LISTEN: cannot listen on"), "{error}");

    let settings = [("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0"), ("TOLLGATE_GRPC_LISTEN", &socket(dir.path()))];
    let first = start(&settings).await.expect("starts");
    let error = start(&settings).await.expect_err("somebody answers there").to_string();
    assert!(error.contains("TOLLGATE_GRPC_LISTEN"), "{error}");
    // What a killed process leaves behind is in nobody's way.
    first.kill_hard().await.expect("killed");
    assert!(dir.path().join("grpc.sock").exists());
    let second = start(&settings).await.expect("starts in its place");
    assert!(second.terminate().await.expect("stopped").success());
    assert!(!dir.path().join("grpc.sock").exists(), "an orderly stop leaves no socket");
}

#[tokio::test]
async fn a_ledger_in_use_by_another_process_is_an_error() {
    let edge = Edge::start().await;
    let ledger = format!("sqlite:{}", edge.dir.path().join("ledger.db").display());
    let error = start(&[
        ("RUNMESH_BILLING_BASE_URL", &edge.stack.runmesh.billing_url()),
        ("FLOWMESH_BRIDGE_SECRET", "x"),
        ("TOLLGATE_LEDGER", &ledger),
        ("TOLLGATE_GRPC_LISTEN", "127.0.0.1:0"),
        ("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0"),
    ])
    .await
    .expect_err("in use")
    .to_string();
    assert!(error.contains("TOLLGATE_LEDGER") && error.contains("another tollgate process"), "{error}");
    edge.finish().await;
}

#[tokio::test]
async fn a_hang_up_while_the_ledger_is_still_being_opened_ends_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (ledger, grpc) = (dir.path().join("ledger.db"), dir.path().join("grpc.sock"));
    let mut other =
        SqliteConnectOptions::new().filename(&ledger).create_if_missing(true).connect().await.expect("made");
    sqlx::query("BEGIN EXCLUSIVE").execute(&mut other).await.expect("locked");
    let mut tollgate = tokio::process::Command::new(binary())
        .env_clear()
        .envs([("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0"), ("RUNMESH_BILLING_BASE_URL", "http://127.0.0.1:9")])
        .envs([("FLOWMESH_BRIDGE_SECRET", "a-secret"), ("FLOWMESH_BASE_URL", "http://127.0.0.1:9")])
        .env("TOLLGATE_LEDGER", format!("sqlite:{}", ledger.display()))
        .env("TOLLGATE_GRPC_LISTEN", socket(dir.path()))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    let pid = tollgate.id().expect("it runs").to_string();
    wait_for("SIGHUP to be caught", SOON, async || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        // SIGHUP is the first of all signals.
        (u64::from_str_radix(caught.trim(), 16).ok()? & 1 == 1).then_some(())
    })
    .await
    .expect("caught");
    let sent = Command::new("kill").args(["-HUP", pid.as_str()]).status().expect("sent");
    assert!(sent.success() && !grpc.exists(), "sent before anything is served");
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("unlocked");
    wait_for("Tollgate to serve", SOON, async || UnixStream::connect(&grpc).await.ok()).await.expect("it serves");
    assert!(tollgate.try_wait().expect("asked").is_none(), "it runs");
}

#[tokio::test]
async fn an_orderly_stop_under_load_answers_everybody_and_loses_no_log_entry() {
    let edge = Edge::start().await;
    let mut submitted = Vec::new();
    let stop = async {
        wait_for("some load", SOON, async || (edge.stack.flowmesh.workflows().len() > 10).then_some(())).await?;
        edge.stack.tollgate.terminate().await
    };
    // Check is answered to the very end, so everything until then goes through.
    let submit = async {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) {
            let (_, tasks) = edge.submit(ALICE.token, 1).await;
            submitted.extend(tasks);
        }
    };
    let (status, ()) = tokio::join!(stop, submit);
    assert!(status.expect("stopped").success());
    assert!(submitted.len() > 20, "{}", submitted.len());
    let mut edge = edge;
    edge.stack.tollgate.restart().await.expect("restarted");
    edge.stack.envoy.wait_for_tollgate(SOON).await.expect("healthy again");
    edge.metric("tollgate_open_submissions", 0.0).await;
    for task in &submitted {
        edge.stack.flowmesh.complete(task, Outcome::done(1.0, 1.5));
    }
    edge.entries(submitted.len()).await;
    edge.finish().await;
}

#[tokio::test]
async fn an_orderly_stop_finishes_the_post_it_is_in() {
    let edge = Edge::start().await;
    // It has the entry at once, and is slow to say so.
    edge.stack.runmesh.fail_entries_with(Fault::AfterEffect(Box::new(Fault::Slow(Duration::from_secs(4)))));
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    wait_for("the post", SOON, async || (!edge.stack.runmesh.posts().is_empty()).then_some(())).await.expect("posted");
    assert!(edge.stack.tollgate.terminate().await.expect("stopped").success());
    assert_eq!(edge.stack.runmesh.posts().len(), 1);
    let posted = edge.stack.tollgate.lines().iter().any(|line| line.contains("posted $"));
    assert!(posted, "{:#?}", edge.stack.tollgate.lines());
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn peers_that_idle_do_not_make_an_orderly_stop_a_failure() {
    let edge = Edge::start().await;
    let socket = edge.dir.path().canonicalize().expect("a path").join("grpc.sock");
    // One never says a word, the other one begins a request and never ends it.
    let _silent = UnixStream::connect(socket).await.expect("connected");
    let admin = edge.stack.tollgate.admin_url().trim_start_matches("http://").to_owned();
    let mut half = TcpStream::connect(admin).await.expect("connected");
    half.write_all(b"GET /metrics HTTP/1.1\r\nhost:").await.expect("sent");
    let started = Instant::now();
    let status = edge.stack.tollgate.terminate().await.expect("stopped");
    assert!(status.success(), "{status}: {:#?}", edge.stack.tollgate.lines());
    assert!(started.elapsed() < Duration::from_secs(9), "within docker's patience: {:?}", started.elapsed());
    edge.finish_unbilled().await;
}

#[test]
fn a_machine_without_certificates_is_told_so_before_anything_is_served() {
    let settings = [("SSL_CERT_FILE", "/dev/null"), ("TOLLGATE_LEDGER", "sqlite:/dev/null/x")];
    for command in ["serve", "check-config"] {
        let output = tollgate(&[command], &settings);
        assert!(!output.status.success());
        let said = stderr(&output);
        assert!(said.contains("LUM_ID_BASE_URL: cannot speak TLS") && said.contains("CA certificates"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // Where nothing speaks TLS none is needed.
    let plain = [("SSL_CERT_FILE", "/dev/null"), ("LUM_ID_BASE_URL", "http://127.0.0.1:1")];
    let output = tollgate(&["check-config"], &plain);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[tokio::test]
async fn tollgate_over_tcp_and_by_host_name_works_like_over_a_socket() {
    let mut edge = Edge::start().await;
    edge.stack.tollgate.terminate().await.expect("stopped");
    let port = tollgate_local::stack::free_port().expect("a port");
    edge.stack.tollgate.set("TOLLGATE_GRPC_LISTEN", &format!("127.0.0.1:{port}"));
    edge.stack.tollgate.restart().await.expect("restarted");
    let upstream = edge.stack.flowmesh.url().trim_start_matches("http://").replace("127.0.0.1", "localhost");
    let output = self::tollgate(
        &[
            "envoy-config",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--upstream",
            &upstream,
            "--tollgate",
            &format!("localhost:{port}"),
        ],
        &[],
    );
    let bootstrap = String::from_utf8(output.stdout).expect("text");
    edge.stack.envoy.kill_hard().await.expect("killed");
    edge.stack.envoy = Envoy::start(&envoy_binary(), &bootstrap, edge.dir.path(), 2, None).await.expect("Envoy starts");
    edge.stack.envoy.wait_for_tollgate(SOON).await.expect("healthy");
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    edge.finish().await;
}
