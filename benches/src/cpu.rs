//! Processor time of a process.

use anyhow::{Context as _, Result};

/// What Linux counts in, on every machine that Envoy runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used of processors so far, in seconds: its own time and the kernel's for it.
///
/// # Errors
/// When there is no such process.
pub fn seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    parse(&stat).with_context(|| format!("/proc/{pid}/stat is odd: {stat}"))
}

fn parse(stat: &str) -> Option<f64> {
    // A name may have anything in it, but it ends with the last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_found_behind_the_oddest_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 123 27 5 6 20 0 1 0 100 1000 10";
        assert!((parse(stat).unwrap() - 1.5).abs() < 1e-9);
        assert!(parse("7 (a) S 1").is_none());
        assert!(seconds(std::process::id()).unwrap() >= 0.0);
    }
}
