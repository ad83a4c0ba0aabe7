//! What a process costs: processor time and memory, as the kernel counts them.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// What Linux counts in, on every machine that Envoy runs on.
pub const TICK: Duration = Duration::from_millis(10);

/// Processor time that a process has used in all its threads, also those that have ended: its own and the kernel's for it.
///
/// # Errors
/// When there is no such process.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    ticks(&stat).map(|ticks| TICK * ticks).with_context(|| format!("/proc/{pid}/stat is odd: {stat}"))
}

fn ticks(stat: &str) -> Option<u32> {
    // A name may have anything in it, but it ends with the last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

/// Memory of a process, in MB of 10⁶ bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// Resident now (`VmRSS`).
    pub now: f64,
    /// Resident at most so far (`VmHWM`).
    pub most: f64,
}

impl Memory {
    /// Of this process.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&status).with_context(|| format!("{path} has no sizes"))
    }

    fn parse(status: &str) -> Option<Self> {
        let size = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let kib: u32 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(f64::from(kib) * 1024.0 / 1e6)
        };
        Some(Self { now: size("VmRSS")?, most: size("VmHWM")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_megabytes() {
        let status = "Name:\ta\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\nThreads:\t2\n";
        assert_eq!(Memory::parse(status), Some(Memory { now: 1.024, most: 2.048 }));
        assert_eq!(Memory::parse("Name:\ta\n"), None);
    }

    #[test]
    fn user_and_system_time_are_found_behind_the_oddest_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 123 27 5 6 20 0 1 0 100 1000 10";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_used_some_of_both() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.now > 0.5 && memory.most >= memory.now, "{memory:?}");
        let before = processor_time(std::process::id()).unwrap();
        let begun = std::time::Instant::now();
        while processor_time(std::process::id()).unwrap() == before {
            assert!(begun.elapsed() < Duration::from_secs(20), "a busy process uses time");
        }
    }
}
