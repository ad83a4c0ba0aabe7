//! One run of the whole: section after section, within its time.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Zoned;
use tokio::time::timeout;

use crate::{
    context::Context,
    machine::{Machine, versions},
    report::Report,
    section::Section,
};

/// All of it; what cargo builds and what is fetched before is not in it.
pub const LIMIT: Duration = Duration::from_mins(15);

/// Measures these sections, one after the other.
///
/// # Errors
/// The first that fails, that takes longer than its budget or than what is left of [`LIMIT`], or that measured what is no number.
pub async fn run(context: &Context, sections: &[Section]) -> Result<Report> {
    let mut report = Report {
        date: Zoned::now().date().to_string(),
        machine: Machine::look(context).await,
        versions: versions(context).await,
        rounds: context.rounds,
        sections: Vec::new(),
    };
    for section in sections {
        let left = LIMIT.saturating_sub(context.elapsed());
        let limit = section.budget.min(left);
        let Ok(measured) = timeout(limit, (section.run)(context)).await else {
            let name = section.name;
            if limit < section.budget {
                bail!("{name}: the {} minutes for everything are over", LIMIT.as_secs() / 60);
            }
            bail!("{name}: not done after {} s, which is all it may take", limit.as_secs());
        };
        report.sections.push(section.tell(measured.with_context(|| section.name)?));
    }
    for figure in report.figures() {
        if figure.samples.is_empty() || figure.samples.iter().any(|sample| !sample.is_finite()) {
            bail!("{}: {:?} are not all numbers", figure.id, figure.samples);
        }
    }
    Ok(report)
}
