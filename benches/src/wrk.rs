//! wrk: so many connections over HTTP/1.1, each with one request under way.

use anyhow::{Context as _, Result, bail};

use crate::context::Context;

/// What it says of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Told {
    pub per_second: f64,
    /// In µs.
    pub p50: f64,
    /// In µs.
    pub p99: f64,
    pub done: u64,
}

/// Runs it on the core of the load; `--latency` must be among the arguments.
///
/// # Errors
/// When it is not there or fails, or when a request was not answered with 2xx or 3xx.
pub async fn run(context: &Context, arguments: &[String]) -> Result<Told> {
    let output = context.on_load_core("wrk").args(arguments).output().await.context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk failed, {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    parse(&text).with_context(|| format!("wrk said:\n{text}"))
}

/// What it prints at the end.
///
/// # Errors
/// When that is not what it was known to print, or something went wrong with a request.
pub fn parse(text: &str) -> Result<Told> {
    let lines = || text.lines().map(str::trim);
    let after = |start: &str| {
        let rest = lines().find_map(|line| line.strip_prefix(start));
        rest.map(str::trim).with_context(|| format!("no line `{start}`"))
    };
    if let Some(trouble) = lines().find(|line| line.starts_with("Non-2xx") || line.starts_with("Socket errors")) {
        bail!("{trouble}");
    }
    let done = lines().find_map(|line| line.split_once(" requests in ")?.0.parse().ok()).context("no count")?;
    if done == 0 {
        bail!("no request was answered");
    }
    Ok(Told {
        per_second: after("Requests/sec:")?.parse().context("the rate is no number")?,
        p50: micros(after("50%")?)?,
        p99: micros(after("99%")?)?,
        done,
    })
}

/// `1.23ms` in µs.
fn micros(text: &str) -> Result<f64> {
    let (value, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 6e7,
        _ => bail!("{text} is no time"),
    };
    Ok(value.parse::<f64>().with_context(|| format!("{text} is no time"))? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../data/wrk.txt");

    #[test]
    fn what_wrk_prints_is_understood() {
        assert_eq!(parse(SAMPLE).unwrap(), Told { per_second: 4876.55, p50: 2230.0, p99: 15730.0, done: 9758 });
    }

    #[test]
    fn times_have_four_units() {
        for (text, expected) in [("1.5us", 1.5), ("2.00ms", 2e3), ("3.1s", 3.1e6), ("1.0m", 6e7)] {
            assert!((micros(text).unwrap() - expected).abs() < 1e-6, "{text}");
        }
        assert!(micros("3").is_err() && micros("us").is_err() && micros("1.0h").is_err());
    }

    #[test]
    fn a_run_with_a_request_that_was_not_answered_well_counts_for_nothing() {
        for trouble in ["  Non-2xx or 3xx responses: 3\n", "  Socket errors: connect 0, read 0, write 0, timeout 1\n"] {
            assert!(parse(&SAMPLE.replacen("Requests/sec:", &format!("{trouble}Requests/sec:"), 1)).is_err());
        }
        assert!(parse(&SAMPLE.replace("99%", "98%")).is_err());
        assert!(parse("").is_err());
    }
}
