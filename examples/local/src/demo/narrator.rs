//! One line per step, and the count of those that went wrong.

use std::{fmt::Display, time::Duration};

use anyhow::Result;
use serde_json::Value;

use crate::account::Printer;

/// The text of a step that went well is shortened to this many characters.
const WIDTH: usize = 100;

pub struct Narrator {
    printer: Printer,
    well: usize,
    wrong: usize,
}

impl Narrator {
    pub fn new(printer: Printer) -> Self {
        Self { printer, well: 0, wrong: 0 }
    }

    pub fn heading(&self, text: &str) {
        self.printer.plain(format_args!("\n{}", self.printer.bold(text)));
    }

    /// A step whose outcome is a text.
    pub fn compare(&mut self, step: &str, expected: impl Display, seen: impl Display) {
        let (expected, seen) = (expected.to_string(), seen.to_string());
        self.tell(step, &expected, &seen, expected == seen);
    }

    /// A step whose outcome is JSON, told in short when all is well and in full otherwise.
    pub fn compare_as(&mut self, step: &str, in_short: (&str, &str), (expected, seen): (&Value, &Value)) {
        if expected == seen {
            self.tell(step, in_short.0, in_short.1, true);
        } else {
            self.tell(step, &expected.to_string(), &seen.to_string(), false);
        }
    }

    /// A step that is right when it did not fail.
    pub fn outcome(&mut self, step: &str, result: Result<()>) {
        match result {
            Ok(()) => self.tell(step, "success", "success", true),
            Err(error) => self.tell(step, "success", &format!("{error:#}"), false),
        }
    }

    /// A scene that broke off counts as a wrong step; one that did not is told step by step already.
    pub fn unless_broken(&mut self, scene: &str, result: Result<()>) {
        if let Err(error) = result {
            self.tell(scene, "to play to its end", &format!("{error:#}"), false);
        }
    }

    /// A step that cannot be taken here, which counts for nothing.
    pub fn left_out(&self, step: &str, reason: &str) {
        self.printer.plain(format_args!("{} {step}: left out, {reason}", self.printer.coloured(33, "--  ")));
    }

    /// How it all went. Whether all went well.
    pub fn summary(&self, took: Duration) -> bool {
        let steps = self.well + self.wrong;
        let text = match self.wrong {
            0 => format!("all {steps} steps as expected, in {:.0} s", took.as_secs_f64()),
            wrong => format!("{wrong} of {steps} steps NOT as expected, in {:.0} s", took.as_secs_f64()),
        };
        self.printer.plain(format_args!("\n{}", self.printer.bold(&text)));
        self.wrong == 0
    }

    fn tell(&mut self, step: &str, expected: &str, seen: &str, well: bool) {
        if well {
            self.well += 1;
            let mut line = format!("{step}: expected {expected}, seen {seen}");
            if line.chars().count() > WIDTH {
                let fixed = format!("{step}: expected , seen the same").chars().count();
                line = format!("{step}: expected {}, seen the same", cut(expected, WIDTH.saturating_sub(fixed)));
            }
            self.printer.plain(format_args!("{} {line}", self.printer.coloured(32, "ok  ")));
        } else {
            self.wrong += 1;
            let line = format_args!("{step}: expected {expected}, seen {seen}");
            self.printer.plain(format_args!("{} {line}", self.printer.coloured(31, "FAIL")));
        }
    }
}

/// The first characters of a text that is longer.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}
