//! What is due, whatever the database: which rows, in which order, and what of them is wanted.

use super::{Pick, Work};

/// How to claim work of a kind. `$1` is the time.
#[derive(Debug)]
pub struct Claim {
    pub table: &'static str,
    pub id: &'static str,
    /// Which rows are to be worked on at all; who has a lease is not asked here.
    pub is_due: &'static str,
    pub order: String,
    pub limit: u32,
    pub returned: &'static str,
}

impl Claim {
    #[must_use]
    pub fn new(work: Work, pick: Pick) -> Self {
        let (table, id, due, tries) = match work {
            Work::Tasks => ("tasks", "task_id", "settle_at", "attempts"),
            Work::Workflows => ("workflows", "workflow_id", "sweep_at", "sweeps"),
            Work::Charges => ("charges", "task_id", "post_at", "attempts"),
        };
        let is_due = match work {
            Work::Tasks => "state = 'open' AND settle_at <= $1",
            Work::Workflows => "state = 'open' AND sweep_at <= $1",
            Work::Charges => {
                "state = 'pending' AND post_at <= $1
                   AND EXISTS (SELECT 1 FROM principals
                               WHERE principals.principal_id = charges.principal_id AND email IS NOT NULL)"
            }
        };
        let returned = match work {
            Work::Tasks => "tasks.task_id, attempts, eager, heard, unknown_since",
            Work::Workflows => "workflows.workflow_id, sweeps, attribution, noted_at, heard, unknown_since",
            Work::Charges => {
                "charges.task_id, workflow_id, principal_id, cost, duration_sec, cost_per_hour, task_status, attempts,
                 (SELECT owner.principal_id FROM workflows AS owner
                  WHERE owner.workflow_id = charges.workflow_id) AS owner,
                 EXISTS (SELECT 1 FROM workflows WHERE workflows.workflow_id = charges.workflow_id
                         AND workflows.principal_id IS NULL) AS unowned,
                 (SELECT email FROM principals WHERE principals.principal_id = charges.principal_id) AS email"
            }
        };
        let (order, limit) = match pick {
            Pick::Due(limit) => (due.to_owned(), limit),
            Pick::LeastTried => (format!("{tries}, {due}"), 1),
        };
        Self { table, id, is_due, order, limit, returned }
    }
}
