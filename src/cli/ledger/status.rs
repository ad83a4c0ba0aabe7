//! `tollgate ledger status`.

use std::io::Write;

use jiff::Timestamp;
use serde_json::json;

use super::{record, text};
use crate::config::Store;
use crate::ledger::books::{Books, ChargeState, Tally};

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(
    flags: &Flags,
    books: &dyn Books,
    store: &Store,
    now: Timestamp,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let standing = books.standing().await?;
    let mut sums = Vec::new();
    for state in ChargeState::ALL {
        sums.push(books.sum(state).await?.to_string());
    }
    let rest = [
        ("submissions", "open", standing.open_submissions),
        ("workflows", "open", standing.open_workflows),
        ("workflows", "held", standing.held_workflows),
        ("tasks", "due", standing.due_tasks),
        ("tasks", "waiting", standing.waiting_tasks),
        ("tasks", "held", standing.held_tasks),
        ("tasks", "gone", standing.gone_tasks),
    ];
    if flags.json {
        let mut all = json!({
            "ledger": place(store),
            "born_at": record::at(Some(standing.born_at)),
            "compared_at": record::at(standing.compared_at),
            "pruned_before": record::at(standing.pruned_before),
        });
        for (what, state, Tally { rows, oldest }) in rest {
            all[what][state] = json!({"count": rows, "oldest": record::at(oldest)});
        }
        for ((state, Tally { rows, oldest }), sum) in ChargeState::ALL.iter().zip(standing.charges).zip(&sums) {
            all["charges"][state.as_str()] = json!({"count": rows, "oldest": record::at(oldest), "cost": sum});
        }
        return Ok(writeln!(out, "{all}")?);
    }
    let told = |at: Option<Timestamp>, none: &str| at.map_or_else(|| none.to_owned(), text::moment);
    writeln!(out, "ledger {}, made {}", place(store), text::moment(standing.born_at))?;
    writeln!(
        out,
        "last compared with FlowMesh {}; pruned before {}\n",
        told(standing.compared_at, "never"),
        told(standing.pruned_before, "nothing")
    )?;
    let mut rows = vec![["", "", "count", "oldest", "US dollars"].map(str::to_owned).to_vec()];
    let row = |what: &str, state: &str, tally: Tally, sum: &str| {
        let oldest = tally.oldest.map(|at| text::age(at, now)).unwrap_or_default();
        vec![what.to_owned(), state.to_owned(), tally.rows.to_string(), oldest, sum.to_owned()]
    };
    rows.extend(rest.iter().map(|(what, state, tally)| row(what, state, *tally, "")));
    for ((state, tally), sum) in ChargeState::ALL.iter().zip(standing.charges).zip(&sums) {
        rows.push(row("charges", state.as_str(), tally, sum));
    }
    Ok(text::columns(&rows, &[2, 3], out)?)
}

/// The file, or the database without its password.
fn place(store: &Store) -> String {
    match store {
        Store::Sqlite(path) => path.display().to_string(),
        Store::Postgres(database) => database.to_string(),
    }
}
