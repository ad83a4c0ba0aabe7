//! `tollgate envoy-config`, judged by every Envoy that `envoy/versions` lists.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::mtls;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The binaries of all listed versions, newest first, as `make envoy` leaves them.
fn envoys() -> Vec<PathBuf> {
    let listed = fs::read_to_string(root().join("envoy/versions")).expect("envoy/versions is there");
    let versions =
        listed.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next());
    let binaries: Vec<_> = versions.map(|version| root().join(".envoy").join(version).join("envoy")).collect();
    assert!(binaries.len() >= 3, "envoy/versions lists the reference and two older versions");
    for binary in &binaries {
        assert!(binary.is_file(), "{} is missing: run `make envoy` first", binary.display());
    }
    binaries
}

fn envoy_config(listen: &str, admin: &str, upstream: &str, tollgate: &str) -> Output {
    with_flags(&["--listen", listen, "--admin", admin, "--upstream", upstream, "--tollgate", tollgate])
}

fn with_flags(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).arg("envoy-config").args(flags).output().expect("tollgate runs")
}

fn assert_every_envoy_accepts(listen: &str, admin: &str, upstream: &str, tollgate: &str) {
    assert_every_envoy_accepts_what_is_printed(envoy_config(listen, admin, upstream, tollgate));
}

fn assert_every_envoy_accepts_what_is_printed(printed: Output) {
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("envoy.yaml");
    fs::write(&file, &printed.stdout).expect("the bootstrap is written");
    for envoy in envoys() {
        let judged = Command::new(&envoy)
            .args(["--mode", "validate", "--disable-hot-restart", "-l", "warning", "-c"])
            .arg(&file)
            .output()
            .expect("envoy runs");
        let said = format!("{}{}", String::from_utf8_lossy(&judged.stdout), String::from_utf8_lossy(&judged.stderr));
        assert!(judged.status.success(), "{} refuses the bootstrap:\n{said}", envoy.display());
        assert!(!said.contains("deprecated"), "{} will refuse the bootstrap one day:\n{said}", envoy.display());
    }
}

/// The one line on standard error of a call that must fail and print no bootstrap.
fn refusal(listen: &str, admin: &str, upstream: &str, tollgate: &str) -> String {
    let refused = envoy_config(listen, admin, upstream, tollgate);
    let said = String::from_utf8(refused.stderr).expect("the error is text");
    assert!(!refused.status.success(), "{listen} {admin} {upstream} {tollgate} was accepted");
    assert!(refused.stdout.is_empty(), "a refused call prints no bootstrap");
    assert_eq!(said.trim_end().lines().count(), 1, "one line, not: {said}");
    said
}

#[test]
fn every_envoy_accepts_the_bootstrap_for_ip_addresses() {
    assert_every_envoy_accepts("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:8000", "127.0.0.1:9001");
    assert_every_envoy_accepts("0.0.0.0:10000", "localhost:9901", "10.0.0.3:8000", "10.0.0.4:9001");
}

#[test]
fn every_envoy_accepts_the_bootstrap_for_host_names() {
    assert_every_envoy_accepts("127.0.0.1:0", "127.0.0.1:0", "flowmesh:8000", "toll_gate.internal:9001");
}

#[test]
fn every_envoy_accepts_the_bootstrap_for_ipv6() {
    assert_every_envoy_accepts("[::1]:0", "[::1]:0", "[fd00::3]:8000", "[::1]:9001");
    assert_every_envoy_accepts("[::]:0", "[::1]:0", "flowmesh:8000", "[::1]:9001");
}

#[test]
fn every_envoy_accepts_the_bootstrap_for_a_unix_socket() {
    assert_every_envoy_accepts("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:8000", "unix:/run/tollgate/grpc.sock");
}

#[test]
fn every_envoy_accepts_a_socket_path_full_of_yaml() {
    assert_every_envoy_accepts(
        "127.0.0.1:0",
        "127.0.0.1:0",
        "127.0.0.1:8000",
        r#"unix:/run/a"}}, b: {'c\#: &d *e ${admin} é"#,
    );
}

#[test]
fn every_envoy_accepts_the_bootstrap_for_several_tollgates() {
    for more in ["10.0.0.5:9001", "toll_gate.internal:9001", "[fd00::5]:9001"] {
        let flags = ["--tollgate", "10.0.0.4:9001", "--tollgate", "[::1]:9001", "--tollgate", more];
        assert_every_envoy_accepts_what_is_printed(with_flags(&flags));
    }
    assert_every_envoy_accepts_what_is_printed(with_flags(&[
        "--tollgate",
        "unix:/run/a.sock",
        "--tollgate",
        "unix:/run/b.sock",
    ]));
}

#[test]
fn every_envoy_accepts_the_bootstrap_with_mtls() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _pki = mtls::Pki::write(dir.path());
    mtls::write_sds(dir.path());
    let files = mtls::flags(dir.path());
    let sds = ["--tollgate-tls-sds".to_owned(), dir.path().to_str().expect("text").to_owned()];
    for tls in [files.as_slice(), &sds] {
        for more in [&["--tollgate-tls-name", "tollgate"][..], &["--tollgate-tls-name", "10.0.0.9"], &[]] {
            let mut flags = vec!["--tollgate", "10.0.0.4:9001", "--tollgate", "toll_gate.internal:9001"];
            flags.extend(tls.iter().map(String::as_str));
            flags.extend(more);
            assert_every_envoy_accepts_what_is_printed(with_flags(&flags));
        }
    }
}

#[test]
fn the_bootstrap_is_the_same_each_time() {
    let print = || envoy_config("127.0.0.1:0", "127.0.0.1:0", "flowmesh:8000", "unix:/run/t.sock").stdout;
    assert_eq!(print(), print());
}

#[test]
fn a_bad_address_is_refused_in_one_line_that_names_its_flag() {
    let good = ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:8000", "127.0.0.1:9001"];
    let bad = [
        ("--listen", 0, "edge.example:10000"),
        ("--listen", 0, "127.0.0.1"),
        ("--admin", 1, "[::1"),
        ("--admin", 1, "127.0.0.1:99999"),
        ("--upstream", 2, "http://127.0.0.1:8000"),
        ("--upstream", 2, "127.0.0.1:0"),
        ("--upstream", 2, "flow\nmesh:8000"),
        ("--upstream", 2, "a\"b:8000"),
        ("--tollgate", 3, ":9001"),
        ("--tollgate", 3, "0.0.0.0:9001"),
        ("--tollgate", 3, "unix:grpc.sock"),
        ("--tollgate", 3, "unix:/run/a\nb"),
    ];
    for (flag, place, address) in bad {
        let mut all = good;
        all[place] = address;
        let said = refusal(all[0], all[1], all[2], all[3]);
        assert!(said.contains(flag), "{address:?} is {flag}, but: {said}");
    }
    let long = format!("unix:/{}", "x".repeat(200));
    assert!(refusal(good[0], good[1], good[2], &long).contains("--tollgate"));
}

#[test]
fn a_bootstrap_goes_into_a_file_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("envoy.yaml");
    let output = file.to_str().expect("text");
    let written = with_flags(&["--upstream", "flowmesh:8000", "--output", output]);
    assert!(written.status.success() && written.stdout.is_empty(), "{}", String::from_utf8_lossy(&written.stderr));
    let printed = with_flags(&["--upstream", "flowmesh:8000"]).stdout;
    assert_eq!(fs::read(&file).expect("it is there"), printed);

    let refused = with_flags(&["--upstream", "nonsense:port", "--output", output]);
    assert!(!refused.status.success());
    let nowhere = with_flags(&["--output", "/nowhere/at/all/envoy.yaml"]);
    let said = String::from_utf8_lossy(&nowhere.stderr);
    assert!(!nowhere.status.success() && said.contains("--output /nowhere/at/all/envoy.yaml"), "{said}");
    assert_eq!(fs::read(&file).expect("it is still there"), printed);
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1, "nothing lies beside it");
}
