//! Check: Tollgate beside the floor, each on one core, with the message that Envoy sends.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use prost::Message as _;

use crate::{
    context::Context,
    cost,
    figure::{Figure, ratios},
    h2load,
    message::{self, Allowed},
    paced::{self, Load, Pace, Paced},
    section::{Measured, turns},
    servers::{Floor, Served, fresh_token},
};

/// As Envoy does it: each of its worker threads has one connection with many requests under way.
const CONNECTIONS: usize = 2;
/// On each connection, when it is about how many.
const STREAMS: usize = 64;
/// Unknown tokens at once; half of what Tollgate gives one source.
const COLD_AT_ONCE: usize = 32;

/// Counted by hand: it takes root, and slows down what it counts.
const WRITES: &str = "Most of the difference is writes: answers that are ready together leave together (`src/listen/whole.rs`). 20 000 of \
these Checks were some 800 writes of Tollgate's by `strace -fc`, and 31 000 of the floor's.";
const ABOUT: &str = "The gRPC service alone, with the message that Envoy 1.40 sends when a client polls a task \
(`benches/data/check.binpb`), over two connections with many requests under way, as Envoy does it with one connection for each of \
its threads. The floor is a bare tonic server that answers everything with the same ready-made OK of eight headers \
(`benches/src/bin/floor.rs`): what no server on tonic can beat without leaving tonic's generic path. With a cold cache every \
token is one that Tollgate has never seen, so each Check asks the lum.id stand-in, which has the core of the load generator.";

/// One of those who are compared.
struct Contender {
    name: &'static str,
    title: &'static str,
    address: SocketAddr,
    pid: u32,
    allowed: Allowed,
    per_second: Vec<f64>,
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// See the module.
pub async fn run(context: &Context) -> Result<Measured> {
    let floor = Floor::start(context, &[]).await?;
    let served = Served::start(context).await?;
    let (_, tasks) = served.flowmesh.submit(1);
    let request = message::request(tasks.first().context("the stand-in made no task")?)?;
    let frame = message::framed(&request);
    let folder = context.folder()?;
    let file = folder.path().join("check.frame");
    std::fs::write(&file, &frame).context("cannot write the message")?;

    let contender = async |name, title, address, pid| {
        let allowed = message::must_be_ok(address, &request).await?;
        let (per_second, cpu, p50, p99) = Default::default();
        anyhow::Ok(Contender { name, title, address, pid, allowed, per_second, cpu, p50, p99 })
    };
    let mut contenders = [
        contender("floor", "the floor", floor.address, floor.process.pid()).await?,
        contender("tollgate", "Tollgate", served.address, served.tollgate.process().pid()).await?,
    ];
    let allowed = served.allowed().await?;
    let done = throughput(context, &mut contenders, &file).await?;
    let grown = served.allowed().await? - allowed;
    #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2⁵² of them")]
    if grown < done as f64 {
        bail!("h2load got {done} answers with 200 from Tollgate, which let only {grown} through");
    }
    let (rate, late) = latency(context, &mut contenders, &frame).await?;
    let cold = cold(context, &served, &frame).await?;
    for contender in &contenders {
        message::must_be_ok(contender.address, &request).await?;
    }
    served.stop().await?;

    let mut figures = cached_figures(&contenders, rate);
    figures.extend(cold);
    let [floor, tollgate] = contenders.each_ref().map(|contender| contender.allowed);
    let sizes = format!(
        "The OK of the floor has {} bytes and sets {} headers; that of Tollgate has {} bytes, sets {} headers, removes {}, and has {} \
         fields of metadata for the access log.",
        floor.length, floor.set, tollgate.length, tollgate.set, tollgate.removed, tollgate.fields
    );
    let honest = "Every answer counts: h2load fails on a status other than 200, Tollgate's own counter of Checks let through must \
                  have grown by as many, and the other generator compares the length of each answer with that of an OK.";
    let notes = vec![sizes, WRITES.to_owned(), honest.to_owned(), paced::lateness(&late)];
    Ok(Measured { about: ABOUT.to_owned(), figures, notes })
}

/// What each takes at most, and what it costs. How many Checks h2load counted at Tollgate.
async fn throughput(context: &Context, contenders: &mut [Contender; 2], file: &Path) -> Result<u64> {
    let mut done = 0;
    for round in 0..context.rounds {
        for at in turns(round, contenders.len()) {
            let contender = &mut contenders[at];
            context.progress("check", round, format_args!("as many as {} takes", contender.title));
            let arguments = |limit| h2load_arguments(&file.display().to_string(), contender.address, limit);
            // In the short form a number: in a short time a busy machine may answer nothing at all.
            let limits = if context.quick { [["-n", "200"], ["-n", "1000"]] } else { [["-D", "1s"], ["-D", "4s"]] };
            h2load::run(context, &arguments(limits[0])).await?;
            let before = cost::processor_time(contender.pid)?;
            let told = h2load::run(context, &arguments(limits[1])).await?;
            // A tick at least: what is in a divisor must not be nothing, however short the form.
            let used = cost::processor_time(contender.pid)?.saturating_sub(before).max(cost::TICK).as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2⁵² of them")]
            contender.cpu.push(used * 1e6 / told.done as f64);
            contender.per_second.push(told.per_second);
            if at == 1 {
                done += told.done;
            }
        }
    }
    Ok(done)
}

/// How long each takes at half of what the floor could do; that rate, and how late the generator was.
async fn latency(context: &Context, contenders: &mut [Contender; 2], frame: &Bytes) -> Result<(f64, Vec<f64>)> {
    let half = Figure::new("", "", "", contenders[0].per_second.clone(), "").median() / 2.0;
    // The quick form measures nothing, and its generator is a slow one.
    let rate = if context.quick { half.min(200.0) } else { half };
    let mut late = Vec::new();
    for round in 0..context.rounds {
        for at in turns(round, contenders.len()) {
            let contender = &mut contenders[at];
            context.progress("check", round, format_args!("how long {} takes at {rate:.0}/s", contender.title));
            let told = paced(context, contender.address, contender.allowed.length, Pace::Rate(rate), {
                let frame = frame.clone();
                Box::new(move || frame.clone())
            });
            let told = told.await?;
            contender.p50.push(told.p50);
            contender.p99.push(told.p99);
            late.push(told.late);
        }
    }
    Ok((rate, late))
}

/// Tokens that Tollgate has never seen.
async fn cold(context: &Context, served: &Served, frame: &Bytes) -> Result<Vec<Figure>> {
    let (mut per_second, mut p50, mut p99, mut used) = <(Vec<_>, Vec<_>, Vec<_>, Vec<_>)>::default();
    let pid = served.tollgate.process().pid();
    let tokens = Arc::new(message::Tokens::of(frame.clone())?);
    // Another user's id is of another length than the one of the captured token.
    let request = CheckRequest::decode(tokens.with(&fresh_token(0)).slice(5..)).context("no CheckRequest any more")?;
    let answer = message::must_be_ok(served.address, &request).await?.length;
    let number = Arc::new(AtomicU64::new(1));
    for round in 0..context.rounds {
        context.progress("check", round, "tokens never seen");
        let before = cost::processor_time(pid)?;
        let told = paced(context, served.address, answer, Pace::AtOnce(COLD_AT_ONCE), {
            let (tokens, number) = (tokens.clone(), number.clone());
            Box::new(move || tokens.with(&fresh_token(number.fetch_add(1, Ordering::Relaxed))))
        });
        let told = told.await?;
        #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2⁵² of them")]
        used.push(cost::processor_time(pid)?.saturating_sub(before).as_secs_f64() * 1e6 / told.sent as f64);
        per_second.push(told.per_second);
        p50.push(told.p50);
        p99.push(told.p99);
    }
    let how = format!(
        "`tollgate-benches --only check`: its own generator (`benches/src/paced.rs`), {CONNECTIONS} connections, always {COLD_AT_ONCE} at \
         once, each with another token."
    );
    let figure = |id: &str, what: &str, unit: &str, samples| Figure::new(id, what, unit, samples, &how);
    Ok(vec![
        figure("check.cold.rate", "Checks per second with tokens never seen", "1/s", per_second),
        figure("check.cold.p50", "median of such a Check", "µs", p50),
        figure("check.cold.p99", "99th percentile of such a Check", "µs", p99),
        figure("check.cold.cpu", "processor time of Tollgate for such a Check", "µs", used),
    ])
}

async fn paced(
    context: &Context,
    address: SocketAddr,
    answer: usize,
    pace: Pace,
    mut next: Box<dyn FnMut() -> Bytes + Send>,
) -> Result<Paced> {
    let prototype = message::call(address, Bytes::new())?.request;
    let load = Load {
        address,
        connections: CONNECTIONS,
        pace,
        warm_up: context.duration(Duration::from_millis(500)),
        duration: context.duration(Duration::from_secs(4)),
        answer,
        next: Box::new(move || paced::Call { request: prototype.clone(), body: Some(next()) }),
    };
    paced::run(load).await
}

fn h2load_arguments(file: &str, address: SocketAddr, limit: [&str; 2]) -> Vec<String> {
    let (connections, streams) = (CONNECTIONS.to_string(), STREAMS.to_string());
    let url = message::url(address);
    [
        "-t",
        "1",
        "-c",
        &connections,
        "-m",
        &streams,
        limit[0],
        limit[1],
        "-d",
        file,
        "-H",
        "content-type: application/grpc",
    ]
    .into_iter()
    .chain(["-H", "te: trailers", &url])
    .map(str::to_owned)
    .collect()
}

fn cached_figures(contenders: &[Contender; 2], rate: f64) -> Vec<Figure> {
    let most = format!(
        "`h2load -t 1 -c {CONNECTIONS} -m {STREAMS} -D 4s -d check.frame -H 'content-type: application/grpc' -H 'te: trailers' \
         http://127.0.0.1:PORT/envoy.service.auth.v3.Authorization/Check`, after one second of the same; the frame is \
         `benches/data/check.binpb` behind gRPC's five bytes, about a task that there is."
    );
    let paced = format!(
        "`tollgate-benches --only check`: its own generator (`benches/src/paced.rs`), {CONNECTIONS} connections, {rate:.0} requests a \
         second, which is half of what the floor can do, evenly spaced. h2load's `--rps` would send them in bursts every 10 ms."
    );
    let mut figures = Vec::new();
    let kinds = [
        ("rate", "Checks per second of", "1/s", &most),
        ("cpu", "processor time for a Check of", "µs", &most),
        ("p50", "median of a Check of", "µs", &paced),
        ("p99", "99th percentile of a Check of", "µs", &paced),
    ];
    for (kind, what, unit, how) in kinds {
        let samples = |contender: &Contender| match kind {
            "rate" => contender.per_second.clone(),
            "cpu" => contender.cpu.clone(),
            "p50" => contender.p50.clone(),
            _ => contender.p99.clone(),
        };
        for contender in contenders {
            let id = format!("check.cached.{kind}.{}", contender.name);
            figures.push(Figure::new(&id, &format!("{what} {}", contender.title), unit, samples(contender), how));
        }
        let id = if kind == "rate" {
            "check.cached.throughput_ratio".to_owned()
        } else {
            format!("check.cached.{kind}_ratio")
        };
        let both = ratios(&samples(&contenders[1]), &samples(&contenders[0]));
        figures.push(Figure::new(&id, &format!("{what} Tollgate / floor"), "×", both, how));
    }
    figures
}
