//! Rows for machines: one JSON object, or one CSV row, each.

use std::io::{self, Write};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::ledger::books::{Charge, ChargeState};

/// How the output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    Json,
    Csv,
}

/// Names and values, in this order.
#[derive(Debug, Clone, Default)]
pub struct Record(Vec<(&'static str, Value)>);

impl Record {
    /// With one more value.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    /// As one line of JSON.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        for (n, (name, value)) in self.0.iter().enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            write!(out, "{before}{}:{value}", json!(name))?;
        }
        writeln!(out, "}}")
    }

    /// The names, as the first row of a CSV file.
    pub fn write_csv_header(&self, out: &mut impl Write) -> io::Result<()> {
        row(self.0.iter().map(|(name, _)| (*name).to_owned()), out)
    }

    /// The values, as a row of CSV; what is unknown is empty.
    pub fn write_csv(&self, out: &mut impl Write) -> io::Result<()> {
        row(
            self.0.iter().map(|(_, value)| match value {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }),
            out,
        )
    }
}

/// RFC 4180, with the line end of this system.
fn row(cells: impl Iterator<Item = String>, out: &mut impl Write) -> io::Result<()> {
    for (n, cell) in cells.enumerate() {
        let before = if n == 0 { "" } else { "," };
        if cell.contains(['"', ',', '\n', '\r']) {
            write!(out, "{before}\"{}\"", cell.replace('"', "\"\""))?;
        } else {
            write!(out, "{before}{cell}")?;
        }
    }
    writeln!(out)
}

/// A time for machines, to the millisecond.
pub fn at(time: Option<Timestamp>) -> Value {
    time.map_or(Value::Null, |time| Value::String(time.to_string()))
}

/// What Runmesh said, without the principal's e-mail address, which it may well repeat, unless it is asked for.
pub fn last_error(charge: &Charge, emails: bool) -> Option<String> {
    let said = charge.last_error.as_deref()?;
    Some(match &charge.email {
        Some(email) if !emails => said.replace(email.as_str(), "(e-mail)"),
        _ => said.to_owned(),
    })
}

/// All of a charge. Amounts are text, so that no reader takes them for floats.
pub fn charge(charge: &Charge, emails: bool) -> Record {
    let mut record = Record::default()
        .with("task_id", charge.task_id.as_str())
        .with("workflow_id", charge.workflow_id.as_deref())
        .with("principal_id", charge.principal_id.as_deref());
    if emails {
        record = record.with("email", charge.email.as_deref());
    }
    record
        .with("supplier_id", charge.supplier_id.as_deref())
        .with("cost", charge.cost.as_str())
        .with("duration_sec", charge.duration_sec)
        .with("cost_per_hour", charge.cost_per_hour.as_str())
        .with("task_status", charge.task_status.as_str())
        .with("assigned_worker", charge.assigned_worker.as_deref())
        .with("started_at", charge.started_at.as_deref())
        .with("finished_at", charge.finished_at.as_deref())
        .with("state", charge.state.as_str())
        .with("hold_reason", charge.hold_reason.as_deref())
        .with("attempts", charge.attempts)
        .with("last_error", last_error(charge, emails))
        .with("created_at", at(Some(charge.created_at)))
        .with("post_at", at((charge.state == ChargeState::Pending).then_some(charge.post_at)))
        .with("posted_at", at(charge.posted_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_of_json_in_its_own_order_or_a_csv_row() {
        let record = Record::default()
            .with("z", "a \"quoted\", text\nof two lines")
            .with("a", Value::Null)
            .with("n", 12)
            .with("plain", "0.10");
        let written = |write: fn(&Record, &mut Vec<u8>) -> io::Result<()>| {
            let mut out = Vec::new();
            write(&record, &mut out).expect("written");
            String::from_utf8(out).expect("text")
        };
        let json = "{\"z\":\"a \\\"quoted\\\", text\\nof two lines\",\"a\":null,\"n\":12,\"plain\":\"0.10\"}\n";
        assert_eq!(written(Record::write_json), json);
        assert_eq!(written(Record::write_csv_header), "z,a,n,plain\n");
        assert_eq!(written(Record::write_csv), "\"a \"\"quoted\"\", text\nof two lines\",,12,0.10\n");
    }
}
