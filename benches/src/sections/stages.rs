//! The stages of a Check and of a log entry, each by itself: what criterion makes of `benches/stages.rs`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::{context::Context, figure::Figure, section::Measured};

const BENCH: &str = "cargo bench -p tollgate-benches --bench stages";
/// Half of what criterion takes by itself, and no pictures.
const FULL: &str = "-- --noplot --warm-up-time 1 --measurement-time 3";
const QUICK: &str = "-- --noplot --quick";

/// See the module.
pub async fn run(context: &Context) -> Result<Measured> {
    context.progress("stages", 0, BENCH);
    let folder = context.folder()?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(BENCH.split(' ').skip(1)).args(if context.quick { QUICK } else { FULL }.split(' '));
    command.current_dir(&context.root).env("CRITERION_HOME", folder.path());
    command.kill_on_drop(true);
    let done = command.output().await.context("cannot run cargo")?;
    if !done.status.success() {
        bail!("`{BENCH}` failed, {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim_end());
    }
    let figures = figures(folder.path())?;
    if figures.is_empty() {
        bail!("`{BENCH}` left no estimates");
    }
    Ok(Measured {
        about:
            "Pieces of the way through Tollgate, each alone in a loop, on one core and with everything in its cache. `decide` is hashing \
             a token, finding it in memory and deciding, which allocates once at most (`benches/tests/allocations.rs`); `whole` is a \
             Check without its connection; `decode_all` is the same message by the generated types, which the floor decodes; a log \
             entry is decoded and classified."
                .to_owned(),
        figures,
        notes: Vec::new(),
    })
}

/// Criterion's `<group>/<name>/new/estimates.json`, sorted.
fn figures(folder: &Path) -> Result<Vec<Figure>> {
    let mut found = Vec::new();
    for group in folders(folder)? {
        for name in folders(&folder.join(&group))? {
            let path = folder.join(&group).join(&name).join("new/estimates.json");
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            found.push(figure(&group, &name, &text).with_context(|| format!("{group}/{name}"))?);
        }
    }
    Ok(found)
}

fn figure(group: &str, name: &str, estimates: &str) -> Result<Figure> {
    let estimates: Value = serde_json::from_str(estimates).context("criterion's estimates are not JSON")?;
    let point = |what: &str| estimates[what]["point_estimate"].as_f64();
    let (Some(median), Some(mean)) = (point("median"), point("mean")) else {
        bail!("criterion's estimates have no median or no mean");
    };
    let mut figure =
        Figure::new(&format!("stages.{group}.{name}"), &format!("{group}, {name}"), "ns", vec![median], &how());
    if (mean / median - 1.0).abs() > 0.2 {
        figure.what.push_str(&format!(" (its mean is {mean:.0} ns)"));
    }
    Ok(figure)
}

fn how() -> String {
    format!("`{BENCH} {FULL}`; criterion's median of one piece.")
}

/// The names of the folders in one, sorted.
fn folders(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir())?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_estimate_of_criterion_is_a_figure_and_its_own_report_is_none() {
        let folder = tempfile::tempdir().unwrap();
        for (path, median) in [("check/decode", 410.5), ("check/answer", 99.0), ("log/decode", 1e6)] {
            let folder = folder.path().join(path).join("new");
            std::fs::create_dir_all(&folder).unwrap();
            let point = |value: f64| serde_json::json!({"point_estimate": value});
            let text = serde_json::json!({"mean": point(median * 1.5), "median": point(median)}).to_string();
            std::fs::write(folder.join("estimates.json"), text).unwrap();
        }
        std::fs::create_dir_all(folder.path().join("check/report")).unwrap();
        let figures = figures(folder.path()).unwrap();
        let ids: Vec<_> = figures.iter().map(|figure| (figure.id.as_str(), figure.median())).collect();
        assert_eq!(ids, [("stages.check.answer", 99.0), ("stages.check.decode", 410.5), ("stages.log.decode", 1e6)]);
        assert_eq!(figures[0].what, "check, answer (its mean is 148 ns)");
    }

    #[test]
    fn estimates_without_a_median_are_an_error() {
        assert!(figure("a", "b", "{}").is_err());
        assert!(figure("a", "b", "no JSON").is_err());
    }
}
