//! A stand-in as a process of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

use std::process::{Command, Output};
use std::time::Duration;

use tollgate_local::control::{FlowMesh, LumId, Runmesh};
use tollgate_local::stack::{Process, http_client, wait_for};
use tollgate_local::standin::{Outcome, Status};

const SOON: Duration = Duration::from_secs(20);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-local"));
    // As in an image that has next to nothing, not even CA certificates.
    command.args(arguments).env_clear().envs([("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")]);
    command
}

/// Starts one on free ports. Where it serves and where its control is, as URLs.
async fn standin(kind: &str, environment: &[(&str, &str)]) -> (Process, String, String) {
    let mut command = command(&["standin", kind]);
    command.envs([("STANDIN_LISTEN", "127.0.0.1:0"), ("STANDIN_CONTROL", "127.0.0.1:0")]);
    command.envs(environment.iter().copied());
    let process = Process::start(kind, command.into(), None).unwrap();
    let serving = wait_for("the line that says where it serves", SOON, async || {
        process.lines().iter().find_map(|line| {
            let (_, rest) = line.split_once("│ serving on ")?;
            let (listen, control) = rest.split_once(", control on ")?;
            Some((format!("http://{listen}"), format!("http://{control}")))
        })
    });
    let (url, control) = serving.await.unwrap_or_else(|error| panic!("{error}; {}", process.last_lines()));
    (process, url, control)
}

async fn run(arguments: &[&str]) -> Output {
    tokio::process::Command::from(command(arguments)).output().await.unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn flowmesh_as_a_process_serves_is_controlled_tells_what_it_sees_and_stops_with_0_on_sigterm() {
    let (process, url, control) = standin("flowmesh", &[]).await;
    let http = http_client().unwrap();
    let submitted =
        http.post(format!("{url}/api/v1/workflows")).header("content-type", "text/plain").body("- name: a\n");
    let submitted = submitted.send().await.unwrap();
    assert_eq!(submitted.status(), 201);
    let submitted: serde_json::Value = submitted.json().await.unwrap();
    let task = submitted["tasks"][0]["task_id"].as_str().unwrap().to_owned();
    let flowmesh = FlowMesh::new(&http, &control);
    assert_eq!(flowmesh.complete(std::slice::from_ref(&task), Outcome::done(12.5, 2.4)).await.unwrap(), 1);
    assert_eq!(flowmesh.task(&task).await.unwrap().unwrap().status, Status::Done);
    let told =
        ["flowmesh │ POST /api/v1/workflows → 201, no principal".to_owned(), format!("{task} DONE after 12.5 s")];
    wait_for("both to be told", SOON, async || {
        let lines = process.lines();
        told.iter().all(|wanted| lines.iter().any(|line| line.contains(wanted))).then_some(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error}; {}", process.last_lines()));

    let healthy = run(&["probe", &format!("{control}/healthz")]).await;
    assert!(healthy.status.success() && healthy.stdout.is_empty(), "{}", stderr(&healthy));
    assert_eq!(process.terminate(SOON).await.unwrap().code(), Some(0), "{}", process.last_lines());
    assert!(process.lines().last().unwrap().ends_with("stopped"));
    let gone = run(&["probe", &format!("{control}/healthz")]).await;
    assert_eq!(gone.status.code(), Some(1));
    let said = stderr(&gone);
    assert!(said.starts_with(&format!("{control}/healthz does not answer: ")) && said.lines().count() == 1, "{said}");
}

#[tokio::test]
async fn a_probe_fails_on_every_status_but_success() {
    let (_process, url, control) = standin("lum-id", &[]).await;
    LumId::new(&http_client().unwrap(), &control).introspection_count().await.unwrap();
    let refused = run(&["probe", &format!("{url}/healthz")]).await;
    assert_eq!(
        (refused.status.code(), stderr(&refused)),
        (Some(1), format!("{url}/healthz answers 400 Bad Request\n"))
    );
}

#[tokio::test]
async fn runmesh_as_a_process_knows_the_secret_that_it_is_given() {
    let (_process, url, control) = standin("runmesh", &[("FLOWMESH_BRIDGE_SECRET", "another")]).await;
    let http = http_client().unwrap();
    let ask = async |secret: &str| {
        let request = http.post(format!("{url}/Runmesh/billing/check-balance")).header("x-bridge-secret", secret);
        let body = serde_json::json!({"userEmail": "alice@example.com", "requiredAmount": "0.01"});
        let answer = request.json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(ask("local-bridge-secret").await.0, 401);
    let (status, body) = ask("another").await;
    assert!(status == 200 && body.contains(r#""balance":"250.00""#), "{status} {body}");
    assert_eq!(Runmesh::new(&http, &control).checks().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_taken_port_is_one_line_that_names_its_setting_and_exit_code_1() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for (listen, control, owner) in
        [(&*taken, "127.0.0.1:0", "flowmesh) is taken"), ("127.0.0.1:0", &*taken, "its control) is taken")]
    {
        let output = run(&["standin", "flowmesh", "--listen", listen, "--control", control]).await;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with(&format!("{taken} ({owner}: choose another with STANDIN_")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
