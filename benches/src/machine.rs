//! On what, and with what, it was measured.

use std::{path::Path, process::Stdio, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::context::Context;

/// The machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    /// In 10⁹ bytes.
    pub memory_gb: u64,
    pub kernel: String,
    /// How much of the processors others took in the second before, from 0 to 1.
    pub others: f64,
    /// Who ran where; a sentence.
    pub pinning: String,
}

/// One of the programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    pub program: String,
    pub version: String,
}

impl Machine {
    /// This one. What cannot be found out is `unknown`.
    pub async fn look(context: &Context) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let unknown = || "unknown".to_owned();
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.and_then(|kib| kib.trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        Self {
            cpu: after(&cpus, "model name").unwrap_or_else(unknown),
            cores: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            memory_gb: (memory * 1024 + 500_000_000) / 1_000_000_000,
            kernel: Some(read("/proc/sys/kernel/osrelease").trim().to_owned())
                .filter(|kernel| !kernel.is_empty())
                .unwrap_or_else(unknown),
            others: busy().await,
            pinning: context.pinning(),
        }
    }
}

/// How much of the processors is taken while this one does nothing for a second.
async fn busy() -> f64 {
    let times = || processor_times(&std::fs::read_to_string("/proc/stat").unwrap_or_default());
    let before = times();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ((all, idle), (all_before, idle_before)) = (times(), before);
    if all > all_before { 1.0 - (idle - idle_before) / (all - all_before) } else { 0.0 }
}

/// All the time of all processors, and how much of it they had nothing to do.
fn processor_times(stat: &str) -> (f64, f64) {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let times: Vec<f64> = line.split_ascii_whitespace().filter_map(|time| time.parse().ok()).collect();
    // What guests take is in the time of users already.
    (times.iter().take(8).sum(), times.iter().skip(3).take(2).sum())
}

/// The programs that were run. One that is not there is left out.
pub async fn versions(context: &Context) -> Vec<Version> {
    let tollgate = context.programs.join("tollgate");
    let envoy = tollgate_local::stack::Envoy::fetched(&context.root, None).unwrap_or_else(|_| "envoy".into());
    let asked = [
        ("Tollgate", tollgate.as_path()),
        ("rustc", Path::new("rustc")),
        ("Envoy", &envoy),
        ("h2load", Path::new("h2load")),
        ("wrk", Path::new("wrk")),
        ("Python", Path::new("python3")),
    ];
    let mut versions = Vec::new();
    for (program, path) in asked {
        if let Some(version) = ask(path).await {
            versions.push(Version { program: program.to_owned(), version });
        }
    }
    if let Ok(version) = tollgate_local::stack::Postgres::version() {
        versions.push(Version { program: "PostgreSQL".to_owned(), version });
    }
    let requirements = std::fs::read_to_string(context.root.join("benches/predecessor/requirements.txt"));
    versions.extend(packages(&requirements.unwrap_or_default()));
    versions
}

/// Those of the pinned packages that make the predecessor what it is.
fn packages(requirements: &str) -> Vec<Version> {
    let pinned = requirements.lines().filter_map(|line| line.split_once("=="));
    let telling = pinned.filter(|(name, _)| ["fastapi", "httpx", "uvicorn", "uvloop"].contains(name));
    telling.map(|(name, version)| Version { program: name.to_owned(), version: version.to_owned() }).collect()
}

/// What a program says of its version, without its name.
async fn ask(program: &Path) -> Option<String> {
    let told = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    version(text.lines().find(|line| !line.trim().is_empty())?)
}

/// The first thing in a line that has a digit and a dot in it, without what is wrapped around it.
fn version(line: &str) -> Option<String> {
    let mut words = line.split([' ', '/']).map(|word| word.trim_matches(['[', ']', '(', ')', ',']));
    let version = |word: &&str| word.contains('.') && word.contains(|letter: char| letter.is_ascii_digit());
    words.find(version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_of_the_predecessor_are_told_as_they_are_pinned() {
        let packages = packages("# all\nfastapi==1.2\nh11==3\nuvloop==0.1\n");
        let told: Vec<_> = packages.iter().map(|one| format!("{} {}", one.program, one.version)).collect();
        assert_eq!(told, ["fastapi 1.2", "uvloop 0.1"]);
    }

    #[test]
    fn idle_is_who_waits_for_a_disk_as_well() {
        let stat = "cpu  1 2 3 10 5 0 1 2 7 7\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        let (all, idle) = processor_times(stat);
        assert!((all - 24.0).abs() < 1e-9 && (idle - 15.0).abs() < 1e-9, "{all} {idle}");
    }

    #[test]
    fn a_version_is_found_in_what_each_program_says() {
        for (line, expected) in [
            ("tollgate 0.1.0", "0.1.0"),
            ("envoy  version: 9e5580933739/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
            ("rustc 1.95.0 (59807616e 2026-04-14)", "1.95.0"),
            ("h2load nghttp2/1.52.0", "1.52.0"),
            ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer", "4.1.0-3+b2"),
        ] {
            assert_eq!(version(line).as_deref(), Some(expected), "{line}");
        }
        assert_eq!(version("no version"), None);
    }
}
