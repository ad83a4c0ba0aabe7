//! Everything of a round that its actors share.

use std::{
    io::Write as _,
    net::TcpListener,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    Round, bringup,
    disk::Disk,
    floor::Floor,
    ledger::Place,
    people::{Person, everybody},
    record::Record,
    shared::Shared,
};
use crate::{
    stack::{Envoy, Meddled, Output, PEOPLE, Relay, Tollgate, http_client},
    standin::{FlowMesh, LumId, Runmesh, RunmeshHappened, Task},
};

/// Below the ports that the system gives to outgoing connections: what is down must find its port free.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// Tasks are named after their submission.
const NAME: &str = "chaos-";
/// Posts of what Runmesh had accepted before.
pub(super) const REPEATS: &str = "entries repeated";

pub(super) struct World {
    pub lum_id: LumId,
    pub runmesh: Runmesh,
    pub flowmesh: FlowMesh,
    pub tollgates: Vec<Mutex<Tollgate>>,
    pub envoy: Mutex<Envoy>,
    /// In front of each Tollgate's log service, or none.
    pub relays: Vec<Relay>,
    pub disk: Option<Disk>,
    /// Where there are several Tollgates.
    pub shared: Option<Shared>,
    pub edge: String,
    pub http: reqwest::Client,
    pub people: Vec<Person>,
    pub floor: Floor,
    pub record: Arc<Record>,
    /// A submission was answered with 201.
    pub accepted: Notify,
    /// No new work from now on.
    pub over: CancellationToken,
    pub ledger: Place,
    pub outage: Duration,
}

impl World {
    /// Brings everything up in `dir`.
    pub async fn start(round: &Round, dir: &Path, random: &mut fastrand::Rng) -> Result<Self> {
        let record = Arc::new(Record::new());
        let calm = random.f64() < 0.8;
        let relayed = random.f64() < 0.7;
        let interval = random.u64(2..6);
        record.tick(if calm { "calm rounds" } else { "crowded rounds" }, 1);
        if relayed {
            record.tick("rounds with a relay", 1);
        }
        record.note(format_args!("seed {}: calm {calm}, relayed {relayed}, interval {interval} s", round.seed));
        let settings = vec![
            ("TOLLGATE_RECONCILE_INTERVAL_SECS", interval.to_string()),
            ("TOLLGATE_RECONCILE_GRACE_SECS", "1".to_owned()),
            ("TOLLGATE_LOG", "info,tollgate::authz=debug".to_owned()),
        ];
        let up = if round.replicas > 1 {
            bringup::several(round, dir, settings, relayed, &record, random).await?
        } else {
            bringup::one(round, dir, settings, relayed, &record, random).await?
        };
        let people = everybody(&up.lum_id, &up.runmesh);
        let edge = up.envoy.edge_url().to_owned();
        tokio::spawn(count_repeats(up.runmesh.subscribe(), record.clone()));
        Ok(Self {
            lum_id: up.lum_id,
            runmesh: up.runmesh,
            flowmesh: up.flowmesh,
            tollgates: up.tollgates.into_iter().map(Mutex::new).collect(),
            envoy: Mutex::new(up.envoy),
            relays: up.relays,
            disk: up.disk,
            shared: up.shared,
            edge,
            http: http_client()?,
            people,
            floor: Floor::new(calm),
            record,
            accepted: Notify::new(),
            over: CancellationToken::new(),
            ledger: up.ledger,
            outage: round.outage,
        })
    }

    /// The name of a task of a submission.
    pub fn task_name(submission: usize, task: usize) -> String {
        format!("{NAME}{submission}-{task}")
    }

    /// The submission that a task is of.
    pub fn submission_of(task: &Task) -> Option<usize> {
        task.name.strip_prefix(NAME)?.split('-').next()?.parse().ok()
    }

    /// Whose a task is, as an index.
    pub fn person_of(&self, task: &Task) -> Option<usize> {
        self.record.person_of(Self::submission_of(task)?)
    }

    /// Sleeps, unless the work is over before. Whether it goes on.
    pub async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.over.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }
}

/// A random time.
pub(super) fn millis(random: &mut fastrand::Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

/// Before now, or now when the machine is younger than that.
pub(super) fn ago(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(time).unwrap_or(now)
}

/// Notes what a relay does to messages.
pub(super) async fn note_meddling(mut meddled: mpsc::UnboundedReceiver<Meddled>, record: Arc<Record>) {
    while let Some(meddled) = meddled.recv().await {
        match meddled {
            Meddled::Dropped(workflows) => {
                record.tick("log messages dropped", 1);
                record.dropped(workflows);
                // Those of refused submissions name no workflow.
                record.lost_between(ago(Duration::from_secs(1)), Instant::now());
            }
            Meddled::Repeated => record.tick("log messages repeated", 1),
            Meddled::Delayed => record.tick("log messages delayed", 1),
        }
    }
}

/// A port that is free, and stays so when who has it is down for a while.
pub(super) fn free_port(random: &mut fastrand::Rng) -> Result<u16> {
    for _ in 0..1000 {
        // Not from the seed alone: rounds side by side would want the same.
        let port = random.u16(PORTS) ^ u16::try_from(std::process::id() & 0x3f).unwrap_or(0);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// Counts posts of what Runmesh had accepted before.
async fn count_repeats(mut happenings: mpsc::UnboundedReceiver<RunmeshHappened>, record: Arc<Record>) {
    while let Some(happened) = happenings.recv().await {
        if let RunmeshHappened::Charged { repeated: true, .. } = happened {
            record.tick(REPEATS, 1);
        }
    }
}

/// Writes the lines of a process to a file, and looks at each: no token, no e-mail address, nothing of what is `secret`, no panic.
pub(super) fn watched(file: &Path, secret: Option<String>, record: Arc<Record>) -> Result<Output> {
    let (sender, mut lines) = mpsc::unbounded_channel::<String>();
    let out = std::fs::OpenOptions::new().create(true).append(true).open(file);
    let mut out = std::io::BufWriter::new(out.with_context(|| format!("cannot write {}", file.display()))?);
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            let _ = writeln!(out, "{line}");
            let _ = out.flush();
            let told = line.contains("lm_pat_live_") || line.contains("@example.com");
            let told = told || secret.as_ref().is_some_and(|secret| line.contains(secret));
            if told || PEOPLE.iter().any(|person| line.contains(person.email)) {
                record.fail(format_args!("a secret in {name}: {line}"));
            }
            if line.contains("panicked") {
                record.fail(format_args!("a panic in {name}: {line}"));
            }
        }
    });
    Ok(sender)
}
