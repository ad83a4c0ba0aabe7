//! A finished task → what it costs. Pure.

use serde_json::Number;

use crate::ledger::{Settlement, Usage};
use crate::upstream::flowmesh::{self, Task, is_terminal};

/// What FlowMesh's word on a task means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    NotOver,
    Over(Settlement),
    /// It is over and ran, but what it costs cannot be read: a person has to look.
    Unreadable(&'static str),
}

/// Decides. The supplier is not known here and left open.
#[must_use]
pub fn decide(task: &Task) -> Verdict {
    if !is_terminal(&task.status) {
        return Verdict::NotOver;
    }
    match billable(task) {
        None => Verdict::Over(Settlement::Nothing),
        Some(entry) => match read(task, entry) {
            Ok(usage) => Verdict::Over(Settlement::Usage(usage)),
            Err(reason) => Verdict::Unreadable(reason),
        },
    }
}

/// The billable entry: the one whose status equals the task's; a lone one is it whatever its status.
fn billable(task: &Task) -> Option<&flowmesh::Usage> {
    match task.usages.as_slice() {
        [] => None,
        [only] => Some(only),
        several => {
            several.iter().rev().find(|usage| usage.status.as_deref() == Some(&task.status)).or_else(|| several.last())
        }
    }
}

fn read(task: &Task, entry: &flowmesh::Usage) -> Result<Usage, &'static str> {
    let total_cost = entry.total_cost.as_deref().ok_or("total_cost is no number")?;
    let runtime_sec = entry.runtime_sec.as_deref().ok_or("runtime_sec is no number")?;
    let cost_per_hour = entry.cost_per_hour.as_deref().ok_or("cost_per_hour is no number")?;
    Ok(Usage {
        cost: plain_decimal(total_cost).ok_or("total_cost is negative or out of range")?,
        duration_sec: whole_seconds(runtime_sec).ok_or("runtime_sec is no number")?,
        cost_per_hour: cost_per_hour.to_owned(),
        task_status: task.status.clone(),
        assigned_worker: task.assigned_worker.clone(),
        started_at: entry.started_at.clone(),
        finished_at: entry.finished_at.clone(),
        supplier_id: None,
    })
}

/// A usage as an answer reports it in its headers.
#[derive(Debug)]
pub struct Reported<'a> {
    pub status: String,
    pub cost: Option<&'a str>,
    pub runtime_sec: Option<&'a str>,
    pub cost_per_hour: Option<&'a str>,
    /// With the next two: the execution. Where it is not told, a merged batch cannot be known as one.
    pub worker: Option<&'a str>,
    pub started_at: Option<&'a str>,
    pub finished_at: Option<&'a str>,
}

impl Reported<'_> {
    /// What can be charged: when all three numbers are there.
    #[must_use]
    pub fn usage(self, supplier_id: Option<&str>) -> Option<Usage> {
        fn number(text: Option<&str>) -> Option<&str> {
            // What is a number in JSON, and not below zero; Rust's own parser would also take "inf" and "+1".
            let plain = |text: &&str| !text.starts_with('-') && serde_json::from_str::<Number>(text).is_ok();
            text.map(str::trim).filter(plain)
        }
        let owned = |text: Option<&str>| text.map(str::to_owned).filter(|text| !text.is_empty());
        Some(Usage {
            cost: plain_decimal(number(self.cost)?)?,
            duration_sec: whole_seconds(number(self.runtime_sec)?)?,
            cost_per_hour: number(self.cost_per_hour)?.to_owned(),
            task_status: self.status,
            assigned_worker: owned(self.worker),
            started_at: owned(self.started_at),
            finished_at: owned(self.finished_at),
            supplier_id: owned(supplier_id),
        })
    }
}

/// Truncated toward zero.
fn whole_seconds(number: &str) -> Option<i64> {
    // A cast saturates and truncates toward zero, which is what is wanted.
    #[expect(clippy::cast_possible_truncation, reason = "truncation toward zero is the contract")]
    number.parse::<i64>().ok().or_else(|| number.parse::<f64>().ok().map(|seconds| seconds as i64))
}

/// More digits than a double needs are not its shortest form.
const SHORTEST_DIGITS: usize = 17;
/// Beyond what a double can hold; also keeps the zeros that are written out within bounds.
const LARGEST_EXPONENT: u64 = 400;

/// A JSON number as plain decimal text, digit for digit, without an exponent: what FlowMesh's own language prints for
/// `format(Decimal(str(x)), "f")`. `None` for a negative one, or one that no double can hold.
#[must_use]
pub fn plain_decimal(number: &str) -> Option<String> {
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (number, 0),
    };
    if mantissa.starts_with('-') || exponent.unsigned_abs() > LARGEST_EXPONENT {
        return None;
    }
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.trim_start_matches('0').len() > SHORTEST_DIGITS && number.contains(['.', 'e', 'E']) {
        // Not written by FlowMesh's own printer, which writes the shortest form; Rust prints that too.
        return Some(number.parse::<f64>().ok().filter(|value| value.is_finite())?.to_string());
    }
    // Where the point goes, counted from the first digit.
    let point = i64::try_from(whole.len()).ok()? + exponent;
    let point_at = usize::try_from(point).unwrap_or(0);
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
    let length = i64::try_from(digits.len()).ok()?;
    let (whole, fraction) = if point <= 0 {
        ("0".to_owned(), zeros(-point) + &digits)
    } else if point >= length {
        (digits + &zeros(point - length), String::new())
    } else {
        let (whole, fraction) = digits.split_at(point_at);
        (whole.to_owned(), fraction.to_owned())
    };
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    Some(if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") })
}

#[cfg(test)]
mod tests;
