//! How a stand-in is scripted and asked from another process: a small HTTP API on a listener of its own.
//!
//! It is apart from what the stand-in serves, so that its own wire stays the contract to the letter, and stays
//! up while the stand-in plays dead. [`Control`] serves it; [`LumId`], [`Runmesh`] and [`FlowMesh`] are its clients,
//! with methods of the same names as those of the stand-ins themselves. All bodies are JSON.
//!
//! | of | request | |
//! |---|---|---|
//! | each | `GET /healthz` | which stand-in it is; for health checks |
//! | | `POST /stop`, `POST /resume` | its own port goes away with every connection, and comes back |
//! | lum.id | `GET /introspections` | `{"count"}` of questions about tokens |
//! | | `POST /revoke` | `{"token"}` is inactive from now on |
//! | Runmesh | `GET /entries`, `GET /checks` | what was charged, and which balances were asked for |
//! | | `POST /balance` | `{"email", "balance"}`: what somebody has |
//! | lum.id, Runmesh | `GET /violations` | departures from the contract |
//! | FlowMesh | `GET /tasks/{id}`, `/workers`, `/workflows` | as it sees them |
//! | | `GET /truth` | what ought to be billed, one entry for each execution |
//! | | `GET /requests?method=…&path=…` | `{"count", "last"}` of what came in, all of it or only such |
//! | | `POST /complete` | `{"task_ids", "outcome"}`: ends tasks as one execution; `{"ended"}` says how many |
//! | | `POST /dispatch-delay` | `{"seconds"}` from submission to dispatch |
//!
//! Whoever reaches the listener decides what is billed to whom, so it belongs on loopback or into a network of
//! its own. What goes wrong is answered with a status from 400 on and `{"detail": "…"}`.

mod client;
mod server;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use client::{FlowMesh, LumId, Runmesh};
pub use server::{Control, StandIn};

use crate::standin::{Outcome, Seen};

/// The answer to `GET /requests`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Requests {
    /// How many there were.
    pub count: usize,
    /// The last of them.
    pub last: Option<Seen>,
}

/// Which requests `GET /requests` is about.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Wanted {
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    /// Path and query, as they were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Count {
    count: usize,
}

#[derive(Serialize, Deserialize)]
struct Revocation {
    token: String,
}

#[derive(Serialize, Deserialize)]
struct Balance {
    email: String,
    balance: String,
}

#[derive(Serialize, Deserialize)]
struct Completion {
    task_ids: Vec<String>,
    outcome: Outcome,
}

#[derive(Serialize, Deserialize)]
struct Completed {
    ended: usize,
}

#[derive(Serialize, Deserialize)]
struct Delay {
    seconds: f64,
}
