//! Events and sweeps → charges: read the truth from FlowMesh and write the charges it implies.
//!
//! Three loops share the ledger and nothing else. *Settling* asks after tasks that have ended or may have. *Sweeping*
//! asks after unsettled workflows on a growing interval, finds their owners where no log told, and their tasks.
//! *Reconciling* compares FlowMesh's workflow list with the ledger, so that nothing depends on the log. What is decided
//! is decided in [`usage`] and [`attribution`], which do no I/O.

pub mod attribution;
pub mod emails;
pub mod reconcile;
pub mod tasks;
pub mod told;
pub mod usage;
pub mod workflows;
