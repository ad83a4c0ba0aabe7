//! A section: figures that belong together, measured in one go.

use std::{pin::Pin, time::Duration};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{context::Context, figure::Figure};

/// What can be asked for by `--only`.
#[derive(Clone, Copy)]
pub struct Section {
    /// One word; the ids of its figures begin with it.
    pub name: &'static str,
    /// Its heading in the report.
    pub title: &'static str,
    /// What it may take at most, in full form.
    pub budget: Duration,
    /// Measures.
    pub run: Run,
}

/// A function that measures.
pub type Run = for<'a> fn(&'a Context) -> Pin<Box<dyn Future<Output = Result<Measured>> + 'a>>;

/// What a section has measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// What was compared with what, and how; Markdown.
    pub about: String,
    /// In the order in which they are shown.
    pub figures: Vec<Figure>,
    /// What one has to know to judge the figures; each becomes a list item.
    pub notes: Vec<String>,
}

/// The order in which so many contenders are measured in a round: who goes first takes turns, too.
pub fn turns(round: usize, contenders: usize) -> impl Iterator<Item = usize> {
    (0..contenders).map(move |at| (round + at) % contenders)
}

/// What a section has to tell: [`Measured`] under its heading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub name: String,
    pub title: String,
    pub about: String,
    pub figures: Vec<Figure>,
    pub notes: Vec<String>,
}

impl Section {
    /// Puts what was measured under the heading.
    #[must_use]
    pub fn tell(&self, measured: Measured) -> Told {
        let Measured { about, figures, notes } = measured;
        Told { name: self.name.to_owned(), title: self.title.to_owned(), about, figures, notes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_measured_once_a_round_and_somebody_else_goes_first_in_the_next() {
        let rounds = [0, 1, 2, 3].map(|round| turns(round, 3).collect::<Vec<_>>());
        assert_eq!(rounds, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    }
}
