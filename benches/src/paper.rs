//! "On paper": what the measured costs of one piece come to for many users.

use crate::section::Told;

/// The text of the section, in Markdown without a heading; `None` when a figure that it needs was not measured.
///
/// It is made from the figures alone whenever the report is rendered, so that it can never disagree with them.
#[must_use]
pub fn on_paper(_sections: &[Told]) -> Option<String> {
    None
}
