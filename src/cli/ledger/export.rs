//! `tollgate ledger export`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use jiff::Timestamp;
use serde_json::Value;

use super::record::{self, Record};
use super::{PAGE, text};
use crate::ledger::books::{Books, Charge};
use crate::ledger::money::Money;

/// What takes no longer needs no sign of life.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Posted at this time or later: RFC 3339, or a date (UTC) [default: all that is kept]
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Posted before this time: RFC 3339, or a date (UTC) [default: now]
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// CSV with a header (the default)
    #[arg(long)]
    csv: bool,
    /// One JSON object a line
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// With the principals' e-mail addresses
    #[arg(long)]
    emails: bool,
}

/// How many, and how much.
#[derive(Debug, Default)]
struct Total {
    charges: u64,
    cost: Money,
}

impl Total {
    fn add(&mut self, cost: &Money) {
        self.charges += 1;
        self.cost += cost;
    }
}

/// Totals; `None` is what nobody's name stands on.
#[derive(Debug, Default)]
struct Totals {
    principals: BTreeMap<Option<String>, Total>,
    suppliers: BTreeMap<Option<String>, Total>,
    all: Total,
}

impl Totals {
    fn add(&mut self, charge: &Charge) -> anyhow::Result<()> {
        let cost =
            Money::parse(&charge.cost).ok_or_else(|| anyhow!("the cost of task {} is no amount", charge.task_id))?;
        for (totals, key) in [(&mut self.principals, &charge.principal_id), (&mut self.suppliers, &charge.supplier_id)]
        {
            // Mostly there: no copy of the key then.
            match totals.get_mut(key) {
                Some(total) => total.add(&cost),
                None => totals.entry(key.clone()).or_default().add(&cost),
            }
        }
        self.all.add(&cost);
        Ok(())
    }
}

/// One row: a charge, or a total, which has no task. All have the same columns.
struct Row<'a> {
    kind: &'static str,
    charge: Option<&'a Charge>,
    principal_id: Option<&'a str>,
    supplier_id: Option<&'a str>,
    cost: String,
    charges: u64,
}

impl<'a> Row<'a> {
    fn of(charge: &'a Charge) -> Self {
        Self {
            kind: "charge",
            charge: Some(charge),
            principal_id: charge.principal_id.as_deref(),
            supplier_id: charge.supplier_id.as_deref(),
            cost: charge.cost.clone(),
            charges: 1,
        }
    }

    fn total(kind: &'static str, total: &Total) -> Self {
        let cost = total.cost.to_string();
        Self { kind, charge: None, principal_id: None, supplier_id: None, cost, charges: total.charges }
    }

    fn record(&self, emails: bool) -> Record {
        let text = |of: fn(&Charge) -> Option<&str>| self.charge.and_then(of);
        let mut record = Record::default()
            .with("row", self.kind)
            .with("task_id", text(|charge| Some(&charge.task_id)))
            .with("workflow_id", text(|charge| charge.workflow_id.as_deref()))
            .with("principal_id", self.principal_id);
        if emails {
            record = record.with("email", text(|charge| charge.email.as_deref()));
        }
        record
            .with("supplier_id", self.supplier_id)
            .with("cost", self.cost.as_str())
            .with("charges", self.charges)
            .with("duration_sec", self.charge.map_or(Value::Null, |charge| charge.duration_sec.into()))
            .with("cost_per_hour", text(|charge| Some(&charge.cost_per_hour)))
            .with("task_status", text(|charge| Some(&charge.task_status)))
            .with("posted_at", record::at(self.charge.and_then(|charge| charge.posted_at)))
    }
}

pub async fn run(flags: &Flags, books: &dyn Books, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let since = text::time("--since", flags.since.as_deref())?.unwrap_or(Timestamp::UNIX_EPOCH);
    let until = text::time("--until", flags.until.as_deref())?.unwrap_or(now);
    if let Some(kept) = books.standing().await?.pruned_before.filter(|kept| since < *kept) {
        eprintln!("charges posted before {} may have been pruned", text::moment(kept));
    }
    let write = |row: &Row<'_>, out: &mut _| {
        let record = row.record(flags.emails);
        if flags.json { record.write_json(out) } else { record.write_csv(out) }
    };
    if !flags.json {
        Row::total("", &Total::default()).record(flags.emails).write_csv_header(out)?;
    }
    let (mut totals, mut after, mut progress) = (Totals::default(), None, Progress::new());
    loop {
        let page = books.posted(since, until, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some((last.posted_at.unwrap_or(until), last.task_id.clone()));
        for charge in &page {
            totals.add(charge)?;
            write(&Row::of(charge), out)?;
        }
        progress.tell(totals.all.charges);
    }
    progress.end();
    for (principal_id, total) in &totals.principals {
        write(&Row { principal_id: principal_id.as_deref(), ..Row::total("principal_total", total) }, out)?;
    }
    for (supplier_id, total) in &totals.suppliers {
        write(&Row { supplier_id: supplier_id.as_deref(), ..Row::total("supplier_total", total) }, out)?;
    }
    Ok(write(&Row::total("total", &totals.all), out)?)
}

/// A count on a terminal, when it takes long.
struct Progress {
    started: Instant,
    told: bool,
}

impl Progress {
    fn new() -> Self {
        Self { started: Instant::now(), told: false }
    }

    fn tell(&mut self, charges: u64) {
        if io::stderr().is_terminal() && self.started.elapsed() > PATIENCE {
            eprint!("\r{charges} charges");
            self.told = true;
        }
    }

    fn end(&self) {
        if self.told {
            eprintln!();
        }
    }
}
