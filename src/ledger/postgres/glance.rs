//! The few rows that the console shows.
//!
//! Each query walks an index of its own from the newest row on and stops after so many, whatever else is in the ledger.

use super::books::NUMBER;
use crate::ledger::records::{TASKS, WORKFLOWS, charges};

/// The queries in the order of the fields of a glance, each of which takes the number of rows.
pub fn queries() -> [String; 5] {
    let of = |condition: &str, order: &str| format!("{} {condition} ORDER BY {order} DESC LIMIT $1", charges(NUMBER));
    [
        of("", "number"),
        of("WHERE charges.state = 'held'", "created_at"),
        of("WHERE charges.state = 'rejected'", "created_at"),
        format!("{WORKFLOWS} WHERE attribution = 'held' AND state <> 'ignored' ORDER BY noted_at DESC LIMIT $1"),
        // Those that were asked after lately are those that are asked after last again.
        format!("{TASKS} WHERE state = 'open' AND hold_reason IS NOT NULL ORDER BY settle_at DESC LIMIT $1"),
    ]
}
