//! The tables that are moved, and their rows in the words of COPY.

use std::fmt::Write as _;

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::ledger::postgres::text::stored;

/// One table, the same in both databases but for its leases, which nobody has any more.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    /// Whether PostgreSQL has a column for what SQLite numbers by itself.
    is_numbered: bool,
    columns: &'static [(&'static str, Kind)],
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Number,
    /// 0 or 1 in SQLite.
    Flag,
}

use Kind::{Flag, Number, Text};

/// In an order in which nothing refers to what is not there yet.
pub const TABLES: [Table; 5] = [
    Table {
        name: "principals",
        is_numbered: false,
        columns: &[("principal_id", Text), ("email", Text), ("seen_at", Number)],
    },
    Table {
        name: "submissions",
        is_numbered: false,
        columns: &[
            ("submission_id", Text),
            ("principal_id", Text),
            ("request_id", Text),
            ("opened_at", Number),
            ("ended_at", Number),
            ("failed", Flag),
            ("workflow_id", Text),
            ("state", Text),
        ],
    },
    Table {
        name: "workflows",
        is_numbered: false,
        columns: &[
            ("workflow_id", Text),
            ("principal_id", Text),
            ("submission_id", Text),
            ("attribution", Text),
            ("hold_reason", Text),
            ("state", Text),
            ("noted_at", Number),
            ("submitted_at", Number),
            ("sweep_at", Number),
            ("sweeps", Number),
            ("asked_at", Number),
            ("heard", Number),
            ("unknown_since", Number),
        ],
    },
    Table {
        name: "tasks",
        is_numbered: false,
        columns: &[
            ("task_id", Text),
            ("workflow_id", Text),
            ("state", Text),
            ("outcome", Text),
            ("eager", Flag),
            ("settle_at", Number),
            ("attempts", Number),
            ("asked_at", Number),
            ("heard", Number),
            ("unknown_since", Number),
            ("hold_reason", Text),
        ],
    },
    Table {
        name: "charges",
        is_numbered: true,
        columns: &[
            ("task_id", Text),
            ("workflow_id", Text),
            ("principal_id", Text),
            ("supplier_id", Text),
            ("cost", Text),
            ("duration_sec", Number),
            ("cost_per_hour", Text),
            ("task_status", Text),
            ("assigned_worker", Text),
            ("started_at", Text),
            ("finished_at", Text),
            ("state", Text),
            ("hold_reason", Text),
            ("attempts", Number),
            ("post_at", Number),
            ("last_error", Text),
            ("created_at", Number),
            ("posted_at", Number),
        ],
    },
];

impl Table {
    /// Reads a batch of it from SQLite: the rowid, then the columns.
    pub fn select(&self) -> String {
        format!("SELECT rowid, {} FROM {} WHERE rowid > ? ORDER BY rowid LIMIT ?", self.names(), self.name)
    }

    /// Writes a batch of it to PostgreSQL.
    pub fn copy(&self) -> String {
        let number = if self.is_numbered { "number, " } else { "" };
        format!("COPY {} ({number}{}) FROM STDIN", self.name, self.names())
    }

    pub fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// The lines that [`Self::copy`] takes.
    pub fn lines(&self, rows: &[SqliteRow]) -> Result<String, sqlx::Error> {
        let mut lines = String::with_capacity(rows.len() * 256);
        for row in rows {
            if self.is_numbered {
                number(&mut lines, row.try_get(0)?);
                lines.push('\t');
            }
            for (place, (_, kind)) in self.columns.iter().enumerate() {
                // The first is the rowid.
                let place_in_row = place + 1;
                if place > 0 {
                    lines.push('\t');
                }
                match kind {
                    Text => text(&mut lines, row.try_get(place_in_row)?),
                    Number => number(&mut lines, row.try_get(place_in_row)?),
                    Flag => lines.push(if row.try_get::<i64, _>(place_in_row)? == 0 { 'f' } else { 't' }),
                }
            }
            lines.push('\n');
        }
        Ok(lines)
    }
}

fn number(line: &mut String, value: Option<i64>) {
    match value {
        // A string takes whatever is written.
        Some(value) => {
            let _ = write!(line, "{value}");
        }
        None => line.push_str("\\N"),
    }
}

fn text(line: &mut String, value: Option<&str>) {
    let Some(value) = value else { return line.push_str("\\N") };
    for character in stored(value).chars() {
        match character {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            other => line.push(other),
        }
    }
}
