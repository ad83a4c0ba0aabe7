//! The whole harness, in its short form.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tollgate_benches::{
    report::{JSON, MARKDOWN, Report},
    sections,
};

const SOON: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
const PROGRAM: &str = env!("CARGO_BIN_EXE_tollgate-benches");

/// What is missing to run it, in words.
fn missing() -> Option<String> {
    let beside = |name: &str| Path::new(PROGRAM).with_file_name(name);
    let on_path = |name: &str| {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(name).is_file())
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let postgres = Command::new(root.join("scripts/postgres")).arg("version").output();
    let wanted: [(&str, bool, &str); 5] = [
        ("h2load", on_path("h2load"), "`scripts/install-test-tools` installs it"),
        ("wrk", on_path("wrk"), "`scripts/install-test-tools` installs it"),
        ("predecessor", root.join(".tools/predecessor/uvicorn").is_dir(), "`scripts/fetch-predecessor` fetches it"),
        (
            "PostgreSQL",
            postgres.is_ok_and(|output| output.status.success()),
            "`scripts/install-test-tools` installs it",
        ),
        ("tollgate", beside("tollgate").is_file(), "`cargo build` builds it"),
    ];
    let (name, _, how) = wanted.into_iter().find(|(_, is_there, _)| !is_there)?;
    Some(format!("there is no {name}: {how}"))
}

/// The processes that were started with this folder for temporary files, and so by whoever was given it.
fn processes(folder: &Path) -> Vec<String> {
    let wanted = format!("TMPDIR={}", folder.display());
    let entries = std::fs::read_dir("/proc").unwrap();
    let of_wanted = |path: &PathBuf| {
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(of_wanted);
    let lines = paths.map(|path| std::fs::read_to_string(path.join("cmdline")).unwrap_or_default());
    lines.map(|line| line.replace('\0', " ")).collect()
}

/// Nobody is left, or soon: who is killed is gone a moment later.
fn assert_nobody_is_left(folder: &Path) {
    let deadline = Instant::now() + SOON;
    while !processes(folder).is_empty() && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
    assert_eq!(processes(folder), Vec::<String>::new(), "still there after {SOON:?}");
}

#[test]
fn every_section_measures_something_and_leaves_nobody_behind() {
    if let Some(missing) = missing() {
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let output = tempfile::tempdir().unwrap();
    let scratch = tempfile::Builder::new().prefix("tollgate-smoke-").tempdir().unwrap();
    let done = Command::new(PROGRAM)
        .args(["--quick", "--output"])
        .arg(output.path())
        .env("TMPDIR", scratch.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}: {said}", done.status);
    assert_nobody_is_left(scratch.path());
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "the folders are gone, too");

    let read = |name: &str| std::fs::read_to_string(output.path().join(name)).unwrap();
    let report = Report::from_json(&read(JSON)).unwrap();
    assert_eq!(read(MARKDOWN), report.to_markdown());
    let measured: Vec<_> = report.sections.iter().map(|section| section.name.as_str()).collect();
    let all = sections::ALL.iter().map(|section| section.name);
    assert_eq!(
        measured,
        all.filter(|name| *name != "stages").collect::<Vec<_>>(),
        "cargo would have to build that one first"
    );
    for section in &report.sections {
        assert!(!section.figures.is_empty(), "{}", section.name);
        for figure in &section.figures {
            assert!(figure.id.starts_with(&format!("{}.", section.name)), "{}", figure.id);
            assert!(figure.samples.iter().all(|sample| sample.is_finite()) && figure.samples.len() == 1, "{figure:?}");
        }
    }
    assert!(!read(MARKDOWN).contains(&PathBuf::from(PROGRAM).parent().unwrap().display().to_string()));
}

#[test]
fn who_asks_it_to_stop_halfway_is_left_with_no_process_either() {
    if let Some(missing) = missing() {
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let scratch = tempfile::Builder::new().prefix("tollgate-smoke-").tempdir().unwrap();
    let mut program = Command::new(PROGRAM)
        .args(["--only", "check"])
        .env("TMPDIR", scratch.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first line is told when the servers run.
    let mut lines = BufReader::new(program.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("check, round 1 of 5"), "{first}");
    assert!(processes(scratch.path()).len() >= 3, "itself, the floor and Tollgate");
    assert!(Command::new("kill").arg(program.id().to_string()).status().unwrap().success());
    let last = lines.map_while(Result::ok).last();
    assert_eq!(program.wait().unwrap().code(), Some(1));
    assert_eq!(last.as_deref(), Some("tollgate-benches: terminated"));
    assert_nobody_is_left(scratch.path());
}

#[test]
fn an_unknown_section_is_one_line_that_says_how_to_list_them() {
    let done = Command::new(PROGRAM).args(["--only", "nonsense"]).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&done.stderr).trim_end(),
        "tollgate-benches: there is no section nonsense: --list shows all"
    );
}
