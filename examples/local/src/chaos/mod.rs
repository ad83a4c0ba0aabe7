//! Many people at work while everything fails, and the books at the end.
//!
//! A round is one stack with a ledger of its own, with one Tollgate or with several that share it. For a while its people submit, poll, cancel and go away, workers post
//! results or say nothing, and meanwhile Tollgate and Envoy are killed, FlowMesh, Runmesh and lum.id fail, log entries are
//! lost, repeated and late, and the disk fills; or one of several Tollgates is killed, frozen or cut off, both ways or one, while the others
//! serve, and their PostgreSQL restarts, crashes and stays away. Then everything is healed, and what Runmesh has accepted must be what
//! FlowMesh ran: the same executions, the same amounts, the right people, one entry each.
//!
//! What happens is drawn from a seed. When it happens depends on the machine as well, so that a seed repeats a round's plan
//! and not its every microsecond.
//!
//! Whose a workflow is whose log entry was lost can be undecidable: two people had submissions open of which nobody told
//! what came of them. Tollgate holds such charges rather than guess. So there are two kinds of rounds: in most of them one
//! person alone is at work whenever something gets lost, so that nothing at all may be held; in the others everybody is, and
//! what is held must be what this account shows to be undecidable. In the end the operator names the owners, and then
//! everything must be billed.

mod apart;
mod bringup;
mod clients;
mod disk;
mod faults;
mod floor;
mod ledger;
mod operator;
mod people;
mod record;
mod round;
mod shared;
mod tollgates;
mod verify;
mod workers;
mod world;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use apart::play_apart;
pub use round::play;

/// What to play.
#[derive(Clone, Debug)]
pub struct Round {
    /// The `tollgate` binary.
    pub tollgate: PathBuf,
    /// The `envoy` binary.
    pub envoy: PathBuf,
    /// Draws everything.
    pub seed: u64,
    /// Tollgates: one with a ledger of SQLite's, or several that share a PostgreSQL.
    pub replicas: u8,
    /// Why several are not on machines of their own, between which the network can be cut. They are when this is `None`, and then
    /// [`play_apart`] has to see to it, because that changes the network of its thread.
    pub uncut: Option<String>,
    /// How long things fail.
    pub length: Duration,
    /// How long a single outage lasts at most.
    pub outage: Duration,
    /// How long everything may take to be billed once everything is healed: intervals have grown meanwhile.
    pub patience: Duration,
    /// Whether the disk may fill: the ledger then lies on a small file system that is mounted for the round, as far as that
    /// is allowed.
    pub disk: bool,
    /// Where the folder of the round goes, which is removed after a success.
    pub parent: PathBuf,
}

/// How a round stands, for a line of progress.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// What it is doing.
    pub phase: &'static str,
    /// Workflows in FlowMesh.
    pub workflows: usize,
    /// Their tasks.
    pub tasks: usize,
    /// Accepted at Runmesh.
    pub entries: usize,
    /// Posts that were repeats of accepted ones.
    pub repeats: u64,
    /// Workflows rightly held for want of a decidable owner, and not billed in the end.
    pub held: usize,
    /// Workflows that were held until the operator named their owner.
    pub attributed: usize,
    /// Faults and whatever else was counted, by kind.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Figures {
    /// Adds another round's.
    pub fn add(&mut self, other: &Self) {
        self.workflows += other.workflows;
        self.tasks += other.tasks;
        self.entries += other.entries;
        self.repeats += other.repeats;
        self.held += other.held;
        self.attributed += other.attributed;
        for (kind, count) in &other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
    }
}

/// What came of a round.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// How it stood at its end.
    pub figures: Figures,
    /// Whatever must not be.
    pub failures: Vec<String>,
    /// The folder with ledger, logs and timeline, when there are failures.
    pub kept: Option<PathBuf>,
}

/// How a running round stands; shared with whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Figures>>);

impl Progress {
    /// As of the last look.
    #[must_use]
    pub fn figures(&self) -> Figures {
        lock(&self.0).clone()
    }

    fn update(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut lock(&self.0));
    }
}

/// The content of a mutex; a panic elsewhere fails the round by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
