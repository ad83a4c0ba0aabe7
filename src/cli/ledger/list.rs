//! `tollgate ledger list`.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::{anyhow, bail};
use serde_json::{Value, json};

use super::record::{self, Format, Record};
use super::{PAGE, text};
use crate::ledger::OpenSubmission;
use crate::ledger::books::{Books, Charge, ChargeState, Filter, Workflow};
use crate::ledger::money::Money;

/// Lines of a table, unless it is said otherwise.
const TABLE: u64 = 100;

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Flags {
    /// Workflows whose owner was looked for in vain, with those who may have submitted them, instead of charges
    #[arg(long, conflicts_with = "state")]
    held: bool,
    /// Only charges in this state: pending, held, rejected or posted. May be given more than once
    #[arg(long, value_name = "STATE")]
    state: Vec<String>,
    /// Only this principal's; with --held: only those that may be this principal's
    #[arg(long, value_name = "ID")]
    principal: Option<String>,
    /// Only of this workflow
    #[arg(long, value_name = "ID")]
    workflow: Option<String>,
    /// Settled, or with --held submitted, at this time or later: RFC 3339, or a date (UTC)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Settled, or with --held submitted, before this time: RFC 3339, or a date (UTC)
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// No more than so many [default: 100 in a table, else all]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object a line
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// CSV with a header
    #[arg(long)]
    csv: bool,
    /// With the principals' e-mail addresses (JSON and CSV)
    #[arg(long)]
    emails: bool,
}

impl Flags {
    fn format(&self) -> Format {
        match (self.json, self.csv) {
            (true, _) => Format::Json,
            (_, true) => Format::Csv,
            _ => Format::Text,
        }
    }

    fn filter(&self) -> anyhow::Result<Filter> {
        let state = |name: &String| {
            ChargeState::parse(name)
                .ok_or_else(|| anyhow!("--state: {name:?} is none of pending, held, rejected and posted"))
        };
        Ok(Filter {
            states: self.state.iter().map(state).collect::<Result<_, _>>()?,
            principal_id: self.principal.clone(),
            workflow_id: self.workflow.clone(),
            since: text::time("--since", self.since.as_deref())?,
            until: text::time("--until", self.until.as_deref())?,
        })
    }
}

pub async fn run(flags: &Flags, books: &dyn Books, out: &mut impl Write) -> anyhow::Result<()> {
    let filter = flags.filter()?;
    let format = flags.format();
    if flags.emails && (format == Format::Text || flags.held) {
        bail!("--emails: only in a --json or --csv list of charges");
    }
    let limit = flags.limit.unwrap_or(if format == Format::Text { TABLE } else { u64::MAX });
    if flags.held {
        held(&filter, format, limit, books, out).await
    } else {
        charges(flags, &filter, limit, books, out).await
    }
}

async fn charges(
    flags: &Flags,
    filter: &Filter,
    limit: u64,
    books: &dyn Books,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let format = flags.format();
    let (mut listed, mut below) = (0, None);
    loop {
        // One more than is shown, to know whether there are more.
        let wanted = u32::try_from((limit - listed).saturating_add(1)).unwrap_or(PAGE).min(PAGE);
        let mut page = books.charges(filter, below, wanted).await?;
        let more = page.len() as u64 > limit - listed;
        page.truncate(usize::try_from(limit - listed).unwrap_or(usize::MAX));
        match format {
            Format::Text if listed > 0 && page.is_empty() => {}
            Format::Text => table(&page, listed == 0, out)?,
            Format::Json | Format::Csv => {
                for (n, charge) in page.iter().enumerate() {
                    let record = record::charge(charge, flags.emails);
                    if format == Format::Json {
                        record.write_json(out)?;
                        continue;
                    }
                    if listed == 0 && n == 0 {
                        record.write_csv_header(out)?;
                    }
                    record.write_csv(out)?;
                }
            }
        }
        listed += page.len() as u64;
        if more {
            out.flush()?;
            eprintln!("there are more; --limit shows them");
            return Ok(());
        }
        let Some(last) = page.last() else { return Ok(()) };
        below = Some(last.number);
    }
}

fn table(page: &[Charge], with_header: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let header = ["TASK", "WORKFLOW", "PRINCIPAL", "COST", "STATE", "SETTLED", "WHY"];
    let mut rows = Vec::new();
    if with_header {
        rows.push(header.map(str::to_owned).to_vec());
    }
    for charge in page {
        let or_none = |text: &Option<String>| text::plain(text.as_deref().unwrap_or("-"));
        rows.push(vec![
            text::plain(&charge.task_id),
            or_none(&charge.workflow_id),
            or_none(&charge.principal_id),
            charge.cost.clone(),
            charge.state.as_str().to_owned(),
            text::moment(charge.created_at),
            text::plain(&charge.hold_reason.clone().or(record::last_error(charge, false)).unwrap_or_default()),
        ]);
    }
    Ok(text::columns(&rows, &[3], out)?)
}

/// A held workflow, who may own it, and what hangs on it.
struct Held {
    workflow: Workflow,
    candidates: Vec<OpenSubmission>,
    charges: u64,
    cost: Money,
}

impl Held {
    async fn of(workflow: Workflow, books: &dyn Books) -> anyhow::Result<Self> {
        let candidates = candidates(&workflow, books).await?;
        let filter = Filter {
            states: vec![ChargeState::Held],
            workflow_id: Some(workflow.workflow_id.clone()),
            ..Filter::default()
        };
        let (mut charges, mut cost, mut below) = (0, Money::default(), None);
        loop {
            let page = books.charges(&filter, below, PAGE).await?;
            let Some(last) = page.last() else { return Ok(Self { workflow, candidates, charges, cost }) };
            below = Some(last.number);
            for charge in &page {
                charges += 1;
                cost += &Money::parse(&charge.cost)
                    .ok_or_else(|| anyhow!("the cost of task {} is no amount", charge.task_id))?;
            }
        }
    }

    fn record(&self) -> Record {
        Record::default()
            .with("workflow_id", self.workflow.workflow_id.as_str())
            .with("state", self.workflow.state.as_str())
            .with("submitted_at", record::at(self.workflow.submitted_at))
            .with("noted_at", record::at(Some(self.workflow.noted_at)))
            .with("reason", self.workflow.hold_reason.as_deref())
            .with("held_charges", self.charges)
            .with("held_cost", self.cost.to_string())
    }

    fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { workflow, candidates, charges, cost } = self;
        let submitted = workflow.submitted_at.map_or_else(|| "at an unknown time".to_owned(), text::moment);
        let id = text::plain(&workflow.workflow_id);
        writeln!(out, "{id}  submitted {submitted}, {} held, ${cost}", text::count(*charges, "charge"))?;
        writeln!(out, "    {}", text::plain(workflow.hold_reason.as_deref().unwrap_or_default()))?;
        for candidate in candidates {
            writeln!(out, "    {}", candidate_line(candidate))?;
        }
        Ok(())
    }
}

/// Submissions that may have made a workflow.
pub async fn candidates(workflow: &Workflow, books: &dyn Books) -> anyhow::Result<Vec<OpenSubmission>> {
    Ok(match workflow.submitted_at {
        Some(at) => books.candidates(at).await?,
        None => Vec::new(),
    })
}

/// A candidate, for people.
pub fn candidate_line(candidate: &OpenSubmission) -> String {
    let OpenSubmission { submission_id, principal_id, opened_at, ended_at, failed } = candidate;
    let ended = match ended_at {
        Some(at) if *failed => format!("answered with an error {}", text::moment(*at)),
        Some(at) => format!("its client gone {}", text::moment(*at)),
        None => "not heard of since".to_owned(),
    };
    let principal = text::plain(principal_id);
    format!("candidate {principal}: submission {submission_id}, let through {}, {ended}", text::moment(*opened_at))
}

/// Candidates, for machines.
pub fn candidate_values(candidates: &[OpenSubmission]) -> Value {
    let value = |candidate: &OpenSubmission| {
        json!({
            "principal_id": candidate.principal_id,
            "submission_id": candidate.submission_id,
            "opened_at": record::at(Some(candidate.opened_at)),
            "ended_at": record::at(candidate.ended_at),
            "failed": candidate.failed,
        })
    };
    candidates.iter().map(value).collect()
}

async fn held(
    filter: &Filter,
    format: Format,
    limit: u64,
    books: &dyn Books,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let (mut listed, mut after) = (0, String::new());
    loop {
        let page = books.held_workflows(&after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.workflow_id);
        for workflow in page {
            let submitted_at = workflow.submitted_at.unwrap_or(workflow.noted_at);
            if filter.workflow_id.as_ref().is_some_and(|wanted| *wanted != workflow.workflow_id)
                || filter.since.is_some_and(|since| submitted_at < since)
                || filter.until.is_some_and(|until| submitted_at >= until)
            {
                continue;
            }
            let held = Held::of(workflow, books).await?;
            let principals: BTreeSet<&str> = held.candidates.iter().map(|open| open.principal_id.as_str()).collect();
            if filter.principal_id.as_ref().is_some_and(|wanted| !principals.contains(wanted.as_str())) {
                continue;
            }
            if listed == limit {
                out.flush()?;
                eprintln!("there are more; --limit shows them");
                return Ok(());
            }
            match format {
                Format::Text => held.write(out)?,
                Format::Json => held.record().with("candidates", candidate_values(&held.candidates)).write_json(out)?,
                Format::Csv => {
                    let principals = principals.into_iter().collect::<Vec<_>>().join(" ");
                    let record = held.record().with("candidates", principals);
                    if listed == 0 {
                        record.write_csv_header(out)?;
                    }
                    record.write_csv(out)?;
                }
            }
            listed += 1;
        }
    }
    if listed == 0 && format == Format::Text {
        writeln!(out, "no workflow is held")?;
    }
    if format == Format::Text { held_tasks(books, out).await } else { Ok(()) }
}

/// Tasks that ended with a cost that cannot be read; `show` and `status --json` have them for machines.
async fn held_tasks(books: &dyn Books, out: &mut impl Write) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let page = books.held_tasks(&after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(&last.task_id);
        for task in page {
            let asked = task.asked_at.map_or_else(|| "never".to_owned(), text::moment);
            let reason = text::plain(task.hold_reason.as_deref().unwrap_or_default());
            writeln!(out, "task {}  asked {asked}, and cannot be charged: {reason}", text::plain(&task.task_id))?;
        }
    }
}
