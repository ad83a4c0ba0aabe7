//! What a process costs: processor time and memory, as the kernel counts them.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

use crate::cpu;

/// Processor time that a process has used in all its threads, also those that have ended; in ticks of 10 ms.
///
/// # Errors
/// When there is no such process.
pub fn processor_time(pid: u32) -> Result<Duration> {
    Ok(Duration::from_secs_f64(cpu::seconds(pid)?))
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
