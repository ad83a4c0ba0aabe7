//! Who there is in the local world, and the stand-ins that know them.
//!
//! The one definition for every way of starting a stand-in: among the others in a stack, or as a process of
//! its own.

use std::io;

use crate::standin::{FlowMesh, LumId, Runmesh};

/// What Tollgate and the Runmesh stand-in share.
pub const BRIDGE_SECRET: &str = "local-bridge-secret";
/// Below which path Runmesh is.
const RUNMESH_PATH: &str = "/Runmesh";

/// Somebody with a token.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    /// The bearer token.
    pub token: &'static str,
    /// Their id at lum.id.
    pub sub: &'static str,
    /// Their e-mail address.
    pub email: &'static str,
    /// Their scopes at lum.id.
    pub scopes: &'static [&'static str],
    /// What they have at Runmesh.
    pub balance: &'static str,
    /// Who they are, for people.
    pub about: &'static str,
}

/// Has money and every right.
pub const ALICE: Person = Person {
    token: "lm_pat_live_alice",
    sub: "user-alice",
    email: "alice@example.com",
    scopes: &["flowmesh:*", "lumilake:read"],
    balance: "250.00",
    about: "has $250.00 and every right in FlowMesh",
};

/// Has a little money and a few rights.
pub const BOB: Person = Person {
    token: "lm_pat_live_bob",
    sub: "user-bob",
    email: "bob@example.com",
    scopes: &[
        "flowmesh:workflows:submit",
        "flowmesh:workflows:read",
        "flowmesh:workflows:cancel",
        "flowmesh:tasks:read",
    ],
    balance: "5.00",
    about: "has $5.00, may submit, read and cancel",
};

/// Has no money.
pub const PAUPER: Person = Person {
    token: "lm_pat_live_pauper",
    sub: "user-pauper",
    email: "pauper@example.com",
    scopes: &["flowmesh:*"],
    balance: "0.00",
    about: "has $0.00, so the guard refuses submissions",
};

/// Owns hardware; its worker posts results with this token.
pub const ACME: Person = Person {
    token: "lm_pat_live_acme",
    sub: "supplier-acme",
    email: "hardware@acme.example",
    scopes: &["flowmesh:workers:register", "flowmesh:results:write"],
    balance: "0.00",
    about: "a supplier, whose workers post results",
};

/// Everybody.
pub const PEOPLE: [Person; 4] = [ALICE, BOB, PAUPER, ACME];

/// The workers: id, namespace, price of an hour. The least busy one gets the next task.
pub const WORKERS: [(&str, &str, f64); 2] = [("wrk-acme-1", "acme", 1.5), ("wrk-borealis-1", "borealis", 2.4)];

/// lum.id, which knows everybody's token.
///
/// # Errors
/// When `listen` cannot be listened on.
pub async fn lum_id(listen: &str) -> io::Result<LumId> {
    let lum_id = LumId::start(listen).await?;
    for person in PEOPLE {
        lum_id.user(person.token, person.sub, Some(person.email), person.scopes);
    }
    Ok(lum_id)
}

/// Runmesh, which knows what everybody has, for those who know `secret`.
///
/// # Errors
/// When `listen` cannot be listened on.
pub async fn runmesh(listen: &str, secret: &str) -> io::Result<Runmesh> {
    let runmesh = Runmesh::start(listen, RUNMESH_PATH, secret).await?;
    for person in PEOPLE {
        runmesh.set_balance(person.email, person.balance);
    }
    Ok(runmesh)
}

/// FlowMesh with its workers.
///
/// # Errors
/// When `listen` cannot be listened on.
pub async fn flowmesh(listen: &str) -> io::Result<FlowMesh> {
    let flowmesh = FlowMesh::start(listen).await?;
    for (id, namespace, cost_per_hour) in WORKERS {
        flowmesh.add_worker(id, id, namespace, cost_per_hour);
    }
    Ok(flowmesh)
}
