//! The report: Markdown for people, JSON for programs. The first is made from the second and from nothing else.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{
    figure::{Figure, Goal},
    machine::{Machine, Version},
    paper,
    section::Told,
};

/// The report's name among the documents.
pub const MARKDOWN: &str = "PERFORMANCE.md";
/// The figures' name beside it.
pub const JSON: &str = "performance.json";

/// Everything that was measured, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub date: String,
    pub machine: Machine,
    pub versions: Vec<Version>,
    pub rounds: usize,
    pub sections: Vec<Told>,
}

impl Report {
    /// All figures, in the order of the report.
    pub fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.sections.iter().flat_map(|section| &section.figures)
    }

    /// For programs.
    ///
    /// # Errors
    /// When JSON cannot say it.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).context("the report is not JSON")?;
        Ok(text + "\n")
    }

    /// What [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// When it did not.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("not a report")
    }

    /// One line a figure, for whoever watches.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for figure in self.figures() {
            let goal = figure.goal.map(|goal| format!(", goal {}", goal_text(goal, &figure.unit))).unwrap_or_default();
            let _ = writeln!(text, "{}: {}{goal}{}", figure.id, measured(figure), verdict(figure));
        }
        text
    }

    /// For people.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = HEAD.to_owned();
        self.machine_to_markdown(&mut text);
        self.goals_to_markdown(&mut text);
        for section in &self.sections {
            section_to_markdown(section, &mut text);
        }
        if let Some(paper) = paper::on_paper(&self.sections) {
            let _ = write!(text, "\n## On paper\n\n{}\n", paper.trim());
        }
        text
    }

    fn machine_to_markdown(&self, text: &mut String) {
        let Machine { cpu, cores, memory_gb, kernel, others, pinning } = &self.machine;
        let _ = writeln!(text, "## Where\n");
        let _ = writeln!(text, "{cpu}, {cores} cores, {memory_gb} GB, Linux {kernel}; {}. {pinning}\n", self.date);
        let versions: Vec<_> =
            self.versions.iter().map(|Version { program, version }| format!("{program} {version}")).collect();
        if *others > BUSY {
            let _ = writeln!(
                text,
                "**Something else took {:.0} % of the processors when this began, so latencies mean little here, and ratios vary.**\n",
                others * 100.0
            );
        }
        let rounds = if self.rounds == 1 { "1 round".to_owned() } else { format!("{} rounds", self.rounds) };
        let _ = writeln!(text, "{}. {rounds}.", versions.join(", "));
    }

    fn goals_to_markdown(&self, text: &mut String) {
        let _ = write!(text, "\n## Goals\n\n| figure | goal | measured | |\n|---|---|---|---|\n");
        for figure in self.figures() {
            let Some(goal) = figure.goal else { continue };
            let goal = goal_text(goal, &figure.unit);
            let verdict = if figure.is_met() == Some(true) { "met" } else { "**not met**" };
            let _ = writeln!(text, "| {} | {goal} | {} | {verdict} |", cell(&figure.what), measured(figure));
        }
    }
}

/// With more than that of its processors taken a machine is not idle.
const BUSY: f64 = 0.1;

const HEAD: &str = "# Performance

Written by `make bench`, which repeats all of it in at most a quarter of an hour once everything is built;
[performance.json](performance.json) has every sample. Contenders take turns, and a ratio is that of neighbouring runs: machines are
noisy, and what disturbs one disturbs its neighbour too. A figure is the median of its samples, with the least and the greatest of
them, and how many there are, in brackets.

";

fn section_to_markdown(section: &Told, text: &mut String) {
    let _ = write!(text, "\n## {}\n\n{}\n", section.title, section.about.trim());
    // What was measured by the same command is one table.
    for same in section.figures.chunk_by(|one, next| one.how == next.how) {
        let _ = write!(text, "\n| figure | measured |\n|---|---|\n");
        for figure in same {
            let _ = writeln!(text, "| {} | {} |", cell(&figure.what), measured(figure));
        }
        if let Some(figure) = same.first().filter(|figure| !figure.how.is_empty()) {
            let _ = write!(text, "\n{}\n", figure.how);
        }
    }
    if !section.notes.is_empty() {
        text.push('\n');
    }
    for note in &section.notes {
        let _ = writeln!(text, "- {note}");
    }
}

/// `0.97 × [0.95 – 0.99, of 5]`
fn measured(figure: &Figure) -> String {
    let (median, unit) = (number(figure.median()), &figure.unit);
    let (least, most) = figure.spread();
    if figure.samples.len() > 1 {
        format!("{median} {unit} [{} – {}, of {}]", number(least), number(most), figure.samples.len())
    } else {
        format!("{median} {unit}")
    }
}

fn goal_text(goal: Goal, unit: &str) -> String {
    match goal {
        Goal::AtLeast(least) => format!("≥ {} {unit}", number(least)),
        Goal::AtMost(most) => format!("≤ {} {unit}", number(most)),
    }
}

fn verdict(figure: &Figure) -> &'static str {
    match figure.is_met() {
        None => "",
        Some(true) => ": met",
        Some(false) => ": NOT MET",
    }
}

/// What goes into a cell of a table must not end it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Three digits that count, four before a point; thousands apart.
#[must_use]
pub fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size >= 99.95 || size == 0.0 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.0995 => 2,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    if size < 9999.5 {
        return text;
    }
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |digits| ("-", digits));
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{sign}{}", groups.join(" "))
}

#[cfg(test)]
mod tests;
