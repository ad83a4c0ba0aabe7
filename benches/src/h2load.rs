//! h2load: as many requests as the server takes, over HTTP/2.

use anyhow::{Context as _, Result, bail};

use crate::context::Context;

/// What it says of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Told {
    pub per_second: f64,
    /// Requests that were answered with 2xx.
    pub done: u64,
}

/// Runs it on the core of the load.
///
/// # Errors
/// When it is not there or fails, or when a request was not answered with 2xx.
pub async fn run(context: &Context, arguments: &[String]) -> Result<Told> {
    let output = context.on_load_core("h2load").args(arguments).output().await;
    let output = output.context("cannot run h2load (Debian package nghttp2-client)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("h2load failed, {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    parse(&text).with_context(|| format!("h2load said:\n{text}"))
}

/// What it prints at the end.
///
/// # Errors
/// When that is not what it was known to print, or a request was not answered with 2xx.
pub fn parse(text: &str) -> Result<Told> {
    let line = |start: &str| {
        text.lines().find_map(|line| line.strip_prefix(start)).with_context(|| format!("no line `{start}`"))
    };
    let rate = line("finished in ")?.split(", ").find_map(|part| part.strip_suffix(" req/s")).context("no rate")?;
    let count = |line: &str, what: &str| {
        let count = line.split(", ").find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok());
        count.with_context(|| format!("no count of `{what}`"))
    };
    let (requests, codes) = (line("requests: ")?, line("status codes: ")?);
    let told = Told { per_second: rate.parse().context("the rate is no number")?, done: count(requests, "succeeded")? };
    for what in ["failed", "errored", "timeout"] {
        if count(requests, what)? != 0 {
            bail!("requests were {what}");
        }
    }
    for what in ["3xx", "4xx", "5xx"] {
        if count(codes, what)? != 0 {
            bail!("requests were answered with {what}");
        }
    }
    if told.done == 0 {
        bail!("no request was answered");
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../data/h2load.txt");

    #[test]
    fn what_h2load_prints_is_understood() {
        let told = parse(SAMPLE).unwrap();
        assert_eq!(told, Told { per_second: 23893.0, done: 47786 });
    }

    #[test]
    fn a_run_with_a_request_that_was_not_answered_well_counts_for_nothing() {
        for (good, bad) in
            [(" 0 failed", " 1 failed"), (" 0 timeout", " 2 timeout"), (" 0 4xx", " 3 4xx"), (" req/s", "")]
        {
            let text = SAMPLE.replacen(good, bad, 1);
            assert_ne!(text, SAMPLE);
            assert!(parse(&text).is_err(), "{bad}");
        }
        assert!(parse("").is_err());
    }
}
