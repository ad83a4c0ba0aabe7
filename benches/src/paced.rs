//! Requests over HTTP/2 at a fixed rate, evenly spaced, or always so many at once.
//!
//! Not h2load: its `--rps` sends what has become due every 10 ms in one burst, so its latencies are those of a queue of its own
//! making, and it repeats the same request. Here each is sent when it is due, to the µs, and its latency counts from when it was
//! due, whatever kept it: a slow answer delays nobody out of sight. That wants a core of its own, which is busy all the time.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use crate::percentile::percentile;

/// How long after the end answers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Larger than any answer here, so that nobody waits for a window.
const WINDOW: u32 = 1 << 24;

/// What to send, where, and how fast.
pub struct Load {
    pub address: SocketAddr,
    pub connections: usize,
    pub pace: Pace,
    /// Counted as little as if it had never been.
    pub warm_up: Duration,
    pub duration: Duration,
    /// How long each answer's body must be: a refusal is shorter than an OK.
    pub answer: usize,
    /// The next request.
    pub next: Box<dyn FnMut() -> Call + Send>,
}

/// How fast.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// So many a second.
    Rate(f64),
    /// So many at once.
    AtOnce(usize),
}

/// A request and its body.
pub struct Call {
    pub request: Request<()>,
    pub body: Option<Bytes>,
}

/// What came of it.
#[derive(Debug)]
pub struct Paced {
    pub per_second: f64,
    /// Of everything that was sent, also in the warm-up.
    pub sent: u64,
    /// In µs.
    pub p50: f64,
    /// In µs.
    pub p99: f64,
}

/// Runs it, on a thread of its own.
///
/// # Errors
/// When a connection or a request fails, or an answer is not the one that it should be.
pub async fn run(load: Load) -> Result<Paced> {
    let work = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("no runtime for the load")?.block_on(drive(load))
    });
    work.await.context("the load generator ended")?
}

async fn drive(mut load: Load) -> Result<Paced> {
    let mut background = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        let stream =
            TcpStream::connect(load.address).await.with_context(|| format!("cannot connect to {}", load.address))?;
        stream.set_nodelay(true)?;
        let mut client = h2::client::Builder::new();
        client.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (sender, connection) = client.handshake::<_, Bytes>(stream).await.context("no HTTP/2")?;
        background.spawn(connection);
        connections.push(sender);
    }
    let start = Instant::now();
    let (counted, end) = (start + load.warm_up, start + load.warm_up + load.duration);
    let mut calls = JoinSet::new();
    let mut latencies = Vec::new();
    let mut sent = 0_u64;
    let mut start_one = |calls: &mut JoinSet<_>, due: Instant| {
        let connection = connections[usize::try_from(sent).unwrap_or_default() % connections.len()].clone();
        sent += 1;
        calls.spawn(one(connection, (load.next)(), load.answer, due));
    };
    let mut keep = |done: Result<Result<(Instant, Instant)>, tokio::task::JoinError>| {
        let (due, answered) = done.context("a request ended")??;
        if due >= counted {
            latencies.push((answered - due).as_secs_f64() * 1e6);
        }
        anyhow::Ok(())
    };
    match load.pace {
        Pace::Rate(rate) => {
            let gap = Duration::from_secs_f64(1.0 / rate);
            let mut due = start;
            while due < end {
                while due <= Instant::now() && due < end {
                    start_one(&mut calls, due);
                    due += gap;
                }
                while let Some(done) = calls.try_join_next() {
                    keep(done)?;
                }
                tokio::task::yield_now().await;
            }
        }
        Pace::AtOnce(many) => {
            (0..many).for_each(|_| start_one(&mut calls, Instant::now()));
            while let Some(done) = timeout(PATIENCE, calls.join_next()).await.context("no answer")? {
                keep(done)?;
                if Instant::now() >= end {
                    break;
                }
                start_one(&mut calls, Instant::now());
            }
        }
    }
    while let Some(done) = timeout(PATIENCE, calls.join_next()).await.context("answers are missing")? {
        keep(done)?;
    }
    tell(latencies, sent, start.elapsed().saturating_sub(load.warm_up))
}

fn tell(mut latencies: Vec<f64>, sent: u64, took: Duration) -> Result<Paced> {
    if latencies.is_empty() {
        bail!("no request was answered");
    }
    latencies.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2⁵² of them")]
    let per_second = latencies.len() as f64 / took.as_secs_f64();
    Ok(Paced { per_second, sent, p50: percentile(&latencies, 0.5), p99: percentile(&latencies, 0.99) })
}

/// Sends one and takes its whole answer. When it was due, and when it was answered.
async fn one(connection: SendRequest<Bytes>, call: Call, answer: usize, due: Instant) -> Result<(Instant, Instant)> {
    let mut connection = connection.ready().await.context("the connection is closed")?;
    let (response, mut stream) = connection.send_request(call.request, call.body.is_none())?;
    if let Some(body) = call.body {
        stream.send_data(body, true)?;
    }
    let response = response.await.context("no answer")?;
    let status = response.status();
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.context("half an answer")?;
        length += chunk.len();
        body.flow_control().release_capacity(chunk.len())?;
    }
    body.trailers().await.context("half an answer")?;
    if status != 200 || length != answer {
        bail!("an answer with {status} and {length} bytes, not 200 and {answer}");
    }
    Ok((due, Instant::now()))
}
