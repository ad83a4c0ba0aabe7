//! Whether what was moved is what is here: both ledgers are read.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::Error;
use crate::ledger::money::Money;
use crate::ledger::sqlite::{Life, Source};
use crate::ledger::time;

/// Rows by kind, asked of both in the same words.
const COUNTS: &str = "SELECT 'principals' AS what, COUNT(*) AS rows FROM principals
    UNION ALL SELECT 'submissions' || ' ' || state, COUNT(*) FROM submissions GROUP BY state
    UNION ALL SELECT 'workflows' || ' ' || state, COUNT(*) FROM workflows GROUP BY state
    UNION ALL SELECT 'workflows' || ' ' || 'held', COUNT(*) FROM workflows WHERE attribution = 'held'
    UNION ALL SELECT 'tasks' || ' ' || state, COUNT(*) FROM tasks GROUP BY state
    UNION ALL SELECT 'tasks' || ' ' || 'held', COUNT(*) FROM tasks WHERE state = 'open' AND hold_reason IS NOT NULL
    UNION ALL SELECT 'tasks' || ' ' || 'gone', COUNT(*) FROM tasks WHERE outcome = 'gone'
    UNION ALL SELECT 'charges' || ' ' || state, COUNT(*) FROM charges GROUP BY state";
/// Costs of a batch of charges.
const COSTS: &str = "SELECT rowid, state, task_id, cost FROM charges WHERE rowid > ? ORDER BY rowid LIMIT ?";
const COSTS_AT_ONCE: u32 = 10_000;

/// One figure that both ledgers agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// The table, and the state.
    pub what: String,
    pub rows: u64,
    /// Of charges: their costs.
    pub cost: Option<Money>,
}

/// Reads both ledgers and returns what they agree on, which is all. `at` is as of when the gaps were taken.
///
/// # Errors
/// [`Error::Differs`] that names what they do not agree on.
pub async fn compare(source: &Source, target: &mut PgConnection, at: Timestamp) -> Result<Vec<Figure>, Error> {
    let mut differences = Vec::new();
    let (there, here) = (figures_of(source).await?, figures_here(target).await?);
    for what in there.keys().chain(here.keys()).collect::<BTreeSet<_>>() {
        if there.get(what) != here.get(what) {
            let told = |figure: Option<&Figure>| match figure {
                Some(Figure { rows, cost: Some(cost), .. }) => format!("{rows} of ${cost}"),
                Some(Figure { rows, .. }) => rows.to_string(),
                None => "0".to_owned(),
            };
            differences.push(format!("{what}: {} there, {} here", told(there.get(what)), told(here.get(what))));
        }
    }
    let life: Life =
        sqlx::query_as("SELECT born_at, compared_at, pruned_before FROM ledger").fetch_one(&mut *target).await?;
    if source.life().await? != life {
        differences.push("when the ledger was made, compared and pruned".to_owned());
    }
    let gaps: Vec<(i64, i64)> = sqlx::query_as("SELECT since, until FROM gaps").fetch_all(target).await?;
    let gaps: BTreeSet<(Timestamp, Timestamp)> =
        gaps.into_iter().map(|(since, until)| (time(since), time(until))).collect();
    if let Some((since, until)) = source.gaps(at).await?.into_iter().find(|gap| !gaps.contains(gap)) {
        differences.push(format!("the gap from {since} to {until} is not here"));
    }
    if differences.is_empty() { Ok(there.into_values().collect()) } else { Err(Error::Differs(differences.join("; "))) }
}

async fn figures_of(source: &Source) -> Result<BTreeMap<String, Figure>, Error> {
    let mut figures = counted(source.counts(COUNTS).await?);
    let (mut after, mut costs) = (i64::MIN, source.rows(COSTS, i64::MIN, COSTS_AT_ONCE).await?);
    while let Some(last) = costs.last() {
        after = last.try_get(0).unwrap_or(after);
        for row in &costs {
            let (state, task, cost): (&str, &str, &str) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            let cost =
                Money::parse(cost).ok_or_else(|| Error::Differs(format!("the cost of task {task} is no amount")))?;
            if let Some(figure) = figures.get_mut(&format!("charges {state}")) {
                *figure.cost.get_or_insert_default() += &cost;
            }
        }
        costs = source.rows(COSTS, after, COSTS_AT_ONCE).await?;
    }
    Ok(figures)
}

async fn figures_here(target: &mut PgConnection) -> Result<BTreeMap<String, Figure>, Error> {
    let mut figures = counted(sqlx::query_as(COUNTS).fetch_all(&mut *target).await?);
    let sums: Vec<(String, String)> =
        sqlx::query_as("SELECT state, SUM(cost::numeric)::text FROM charges GROUP BY state").fetch_all(target).await?;
    for (state, sum) in sums {
        if let Some(figure) = figures.get_mut(&format!("charges {state}")) {
            figure.cost = Money::parse(&sum);
        }
    }
    Ok(figures)
}

fn counted(counts: Vec<(String, i64)>) -> BTreeMap<String, Figure> {
    let figure = |(what, rows): (String, i64)| (what.clone(), Figure { what, rows: rows.unsigned_abs(), cost: None });
    // A kind of which there is none has a row in some of the counts, and none in others.
    counts.into_iter().filter(|(_, rows)| *rows > 0).map(figure).collect()
}
