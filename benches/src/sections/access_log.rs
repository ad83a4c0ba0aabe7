//! What an entry of the access log costs.

use std::{
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, stream_access_logs_message::LogEntries};
use futures_util::future::try_join_all;
use prost::Message as _;

use crate::{
    capture::{READ, RESULT, SUBMISSION},
    context::Context,
    cost::processor_time,
    figure::{Figure, ratios},
    ledgers,
    section::{Measured, turns},
    served::{self, Around, count},
    servers::Floor,
    template::{DIGITS, Log, Template},
    wire::Connection,
};

/// As many as an Envoy at its default has on this machine: one for each worker thread, each on a connection of its own.
const STREAMS: u64 = 2;
/// Envoy sends what has come in 50 ms: this many of each worker at 4000 requests a second.
const ENTRIES_OF_A_MESSAGE: u64 = 100;
/// No round of those that are made durable lasts longer; what is committed by then is what there is to calculate with.
const LONGEST: Duration = Duration::from_secs(12);
const WHO: &str = "a tonic client with messages encoded before, 2 streams on 2 connections, 100 entries a message; entries as \
                   Envoy 1.40.0 sends them under the shipped bootstrap (benches/data/log_*.binpb), each of another task";

/// Measures.
pub async fn run(context: &Context) -> Result<Measured> {
    let mut figures = classified(context).await?;
    figures.extend(durable(context).await?);
    Ok(Measured {
        about: "Envoy streams its log of finished requests; Tollgate decodes and classifies each entry and, with billing, makes \
                it durable. The floor is a tonic server that drops each message after decoding it."
            .to_owned(),
        figures,
        notes: vec![
            "Counting and forgetting is what Tollgate does with entries while billing is off. With billing each entry is \
             another task's or workflow's, and counts once its row is committed (WAL, `synchronous=FULL`); FlowMesh and \
             Runmesh are out of reach meanwhile, so that nothing but the intake is measured."
                .to_owned(),
        ],
    })
}

/// One of the captured messages: its identifier, and its entry with places for the numbers.
fn captured(root: &Path, file: &str) -> Result<(Vec<u8>, Template)> {
    let path = root.join("benches/data").join(file);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let message =
        StreamAccessLogsMessage::decode(Bytes::from(bytes)).with_context(|| format!("{file} is no message"))?;
    let identifier = message.identifier.map(|identifier| identifier.encode_to_vec()).unwrap_or_default();
    let Some(LogEntries::HttpLogs(logs)) = message.log_entries else { bail!("{file} has no entries") };
    let entry = logs.log_entry.first().with_context(|| format!("{file} has no entry"))?;
    let encoded = entry.encode_to_vec();
    let ids = ids(&encoded);
    ensure!(!ids.is_empty(), "{file} has no id to replace");
    let texts: Vec<&str> = ids.iter().map(String::as_str).collect();
    Ok((identifier, Template::new(encoded, &texts)?))
}

/// The last [`DIGITS`] characters of each task, workflow and submission id in an encoded entry, each once.
fn ids(entry: &[u8]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    let found = |prefix: &'static [u8], length| entry.windows(length).filter(move |id| id.starts_with(prefix));
    let short = 4 + DIGITS;
    for id in found(b"tsk-", short).chain(found(b"wfl-", short)).chain(found(b"sub-", 36)) {
        let Ok(id) = std::str::from_utf8(&id[id.len() - DIGITS..]) else { continue };
        if id.bytes().all(|byte| byte.is_ascii_hexdigit()) && !ids.iter().any(|known| known == id) {
            ids.push(id.to_owned());
        }
    }
    ids
}

/// Entries of these kinds in turn.
fn log(root: &Path, kinds: &[&str]) -> Result<Log> {
    let mut entries = Vec::new();
    let mut identifier = Vec::new();
    for kind in kinds {
        let (of, entry) = captured(root, kind)?;
        identifier = of;
        entries.push(entry);
    }
    Ok(Log::new(identifier, entries, ENTRIES_OF_A_MESSAGE))
}

/// Submissions that made workflows, and results of their tasks, in turn.
pub(super) fn submissions_and_results(root: &Path) -> Result<Log> {
    log(root, &[SUBMISSION, RESULT])
}

/// Results of tasks.
pub(super) fn results(root: &Path) -> Result<Log> {
    log(root, &[RESULT])
}

/// Sends the entries with these numbers until the server has taken all of them.
pub(super) async fn send(address: &str, log: &Log, entries: Range<u64>) -> Result<()> {
    let each = (entries.end - entries.start).div_ceil(STREAMS);
    let Range { start, end: over } = entries;
    let streams = (0..STREAMS).map(|stream| async move {
        let (first, end) = (start + stream * each, (start + (stream + 1) * each).min(over));
        let log = log.clone();
        let starts = log.starts(first..end);
        let messages = tokio_stream::iter(starts.map(move |start| log.message(start, end, start == first)));
        Connection::open(address).await?.log(messages).await
    });
    try_join_all(streams).await?;
    Ok(())
}

/// What so many entries took.
struct Took {
    wall: Duration,
    processor: Duration,
}

impl Took {
    async fn by(address: &str, pid: u32, log: &Log, entries: u64) -> Result<Self> {
        let (before, begun) = (processor_time(pid)?, Instant::now());
        send(address, log, 0..entries).await?;
        Ok(Self { wall: begun.elapsed(), processor: processor_time(pid)?.saturating_sub(before) })
    }
}

async fn classified(context: &Context) -> Result<Vec<Figure>> {
    let log = log(&context.root, &[SUBMISSION, RESULT, READ])?;
    let entries = if context.quick { 3_000 } else { 120_000 };
    let tollgate = served::tollgate(context, &Around::default(), None).await?;
    let floor = Floor::start(context, &[]).await?;
    let floor_address = floor.address.to_string();
    let (pid, floor_pid) = (tollgate.process().pid(), floor.process.pid());
    // Warm.
    send(tollgate.grpc(), &log, 0..entries / 10).await?;
    send(&floor_address, &log, 0..entries / 10).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..context.rounds {
        context.progress("access_log", round, "entries counted and forgotten");
        for at in turns(round, 2) {
            if at == 0 {
                ours.push(Took::by(tollgate.grpc(), pid, &log, entries).await?);
            } else {
                theirs.push(Took::by(&floor_address, floor_pid, &log, entries).await?);
            }
        }
    }
    let expected = count(entries / 10 + entries * context.rounds as u64);
    let counted = served::metric(&tollgate, "tollgate_log_entries_total").await?;
    ensure!((counted - expected).abs() < 0.5, "Tollgate has counted {counted} entries of {expected}");
    let unbilled = r#"tollgate_log_entries_total{kind="ignored_no_billing"}"#;
    let classified = served::metric(&tollgate, unbilled).await?;
    ensure!((classified - expected).abs() < 0.5, "only {classified} of {expected} entries were events");
    floor.process.kill_hard().await?;
    // In order, where there is time for it.
    if context.quick {
        tollgate.kill_hard().await?
    } else {
        tollgate.terminate().await?
    };

    let a_second = |took: &[Took]| took.iter().map(|took| count(entries) / took.wall.as_secs_f64()).collect::<Vec<_>>();
    let a_core = |took: &[Took]| -> Vec<f64> {
        // A tick at least: what takes less than one cannot be told from nothing.
        took.iter().map(|took| count(entries) / took.processor.as_secs_f64().max(0.01)).collect()
    };
    let figure = |id: &str, what: &str, unit: &str, samples, how: &str| Figure::new(id, what, unit, samples, how);
    let how = format!("{entries} entries in a round: {WHO}; until every stream is answered");
    let how_core = format!("{how}; entries / (utime + stime of the server)");
    Ok(vec![
        figure(
            "access_log.entries_per_core_second",
            "Entries decoded and classified per second of processor time",
            "1/s",
            a_core(&ours),
            &how_core,
        ),
        figure(
            "access_log.floor_entries_per_core_second",
            "The floor: decoded and dropped",
            "1/s",
            a_core(&theirs),
            &how_core,
        ),
        figure(
            "access_log.cost_ratio",
            "Processor time of an entry, Tollgate / floor",
            "×",
            ratios(&a_core(&theirs), &a_core(&ours)),
            &how_core,
        ),
        figure(
            "access_log.entries_per_second",
            "The same by the clock, server and generator on a core each",
            "1/s",
            a_second(&ours),
            &how,
        ),
        figure("access_log.floor_entries_per_second", "The floor by the clock", "1/s", a_second(&theirs), &how),
    ])
}

/// Every other entry is a submission that made a workflow; the others are the results of their tasks.
async fn durable(context: &Context) -> Result<Vec<Figure>> {
    let log = submissions_and_results(&context.root)?;
    let entries: u64 = if context.quick { 2_000 } else { 60_000 };
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    let rounds = context.rounds.min(3);
    for round in 0..rounds {
        context.progress("access_log", round, "entries made durable");
        let dir = context.folder()?;
        let path = dir.path().join("ledger.db");
        let tollgate = served::tollgate(context, &Around::default(), Some(&path)).await?;
        let mut file = ledgers::open(&path, true).await?;
        let (before, begun) = (served::used(&tollgate)?, Instant::now());
        let rows =
            "SELECT (SELECT COALESCE(MAX(rowid), 0) FROM tasks) + (SELECT COALESCE(MAX(rowid), 0) FROM workflows)";
        let mut sending = Box::pin(send(tollgate.grpc(), &log, 0..entries));
        let (mut sent, mut durable) = (false, 0);
        while durable < entries && begun.elapsed() < LONGEST {
            tokio::select! {
                done = &mut sending, if !sent => { done?; sent = true; }
                () = tokio::time::sleep(Duration::from_millis(10)) => durable = ledgers::number(&mut file, rows).await?,
            }
        }
        let (took, used) = (begun.elapsed(), served::used(&tollgate)?.saturating_sub(before));
        let tasks = ledgers::number(&mut file, "SELECT COUNT(*) FROM tasks").await?;
        let owned = "SELECT COUNT(*) FROM workflows WHERE attribution = 'log'";
        let workflows = ledgers::number(&mut file, owned).await?;
        ensure!(
            durable < entries || tasks + workflows == entries,
            "{entries} entries became {tasks} tasks and {workflows} workflows"
        );
        rates.push(count(durable) / took.as_secs_f64());
        costs.push(used.as_secs_f64() * 1e6 / count(durable.max(1)));
        tollgate.kill_hard().await?;
    }
    let how = format!(
        "{entries} entries, half of them submissions with their workflows, half results: {WHO}; from the first message until \
         every row is committed ({} s at most), seen by another connection to the ledger",
        LONGEST.as_secs()
    );
    Ok(vec![
        Figure::new(
            "access_log.durable_per_second",
            "Events of different tasks and workflows made durable",
            "1/s",
            rates,
            &how,
        ),
        Figure::new("access_log.durable_cost", "Processor time of one of them", "µs", costs, &how),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn the_captured_entries_are_what_tollgate_bills_by() {
        use tollgate::access_log::event::{Event, extract};
        let entry = |file| {
            let (_, template) = captured(&root(), file).unwrap();
            let entry = tollgate::wire::HttpLogEntry::decode(template.message(7)).unwrap();
            extract(&entry, jiff::Timestamp::now()).unwrap()
        };
        match entry(SUBMISSION) {
            Event::Submitted { workflow_id, submission_id, .. } => {
                assert_eq!(workflow_id, "wfl-000000000007");
                assert!(
                    submission_id.starts_with("sub-") && submission_id.ends_with("000000000007"),
                    "{submission_id}"
                );
            }
            other => panic!("{other:?}"),
        }
        for file in [RESULT, READ] {
            assert_eq!(entry(file), Event::TaskEnded { task_id: "tsk-000000000007".into() }, "{file}");
        }
    }

    #[test]
    fn ids_are_found_by_their_form() {
        let text =
            b"/api/v1/tasks/tsk-0123456789ab\x02wfl-ba9876543210 sub-0198c0de12347abc8def00112233aabb sub-1 wfl-none";
        assert_eq!(ids(text), ["0123456789ab", "ba9876543210", "00112233aabb"]);
    }
}
