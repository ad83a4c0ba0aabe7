//! What the log says of a charge that was written, whichever way it came about.

use crate::telemetry::traces;

/// It goes out.
pub fn charged(task: &str, workflow: &str, principal: &str, cost: &str) {
    tracing::info!(
        trace_id = traces::id(),
        task,
        workflow,
        principal,
        cost,
        "charge of ${cost} to {principal} for task {task} of workflow {workflow}"
    );
}

/// It waits for somebody.
pub fn held(task: &str, workflow: &str, cost: &str, reason: &str) {
    tracing::warn!(
        trace_id = traces::id(),
        task,
        workflow,
        cost,
        reason,
        "charge of ${cost} for task {task} of workflow {workflow} is held: {reason}"
    );
}
