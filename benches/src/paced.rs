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

use crate::{percentile::percentile, report::number};

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
    /// The 99th percentile of how long after it was due a request was sent, in µs: the generator's own share in the latencies.
    pub late: f64,
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

/// A note on what the generator itself had a part in.
#[must_use]
pub fn lateness(late: &[f64]) -> String {
    let mut late = late.to_vec();
    late.sort_by(f64::total_cmp);
    format!(
        "The generator of even spacing sent 99 of 100 requests within {} µs of when they were due (the median of the runs), and what it \
         was late by is in the latencies.",
        number(percentile(&late, 0.5))
    )
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
    let (mut latencies, mut late) = (Vec::new(), Vec::new());
    let mut sent = 0_u64;
    let mut start_one = |calls: &mut JoinSet<_>, due: Instant| {
        let connection = connections[usize::try_from(sent).unwrap_or_default() % connections.len()].clone();
        sent += 1;
        late.push(due.elapsed().as_secs_f64() * 1e6);
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
    tell(latencies, late, start.elapsed().saturating_sub(load.warm_up))
}

fn tell(mut latencies: Vec<f64>, mut late: Vec<f64>, took: Duration) -> Result<Paced> {
    if latencies.is_empty() {
        bail!("no request was answered");
    }
    latencies.sort_by(f64::total_cmp);
    late.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2⁵² of them")]
    let per_second = latencies.len() as f64 / took.as_secs_f64();
    let (p50, p99) = (percentile(&latencies, 0.5), percentile(&latencies, 0.99));
    Ok(Paced { per_second, sent: late.len() as u64, p50, p99, late: percentile(&late, 0.99) })
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers everything with three bytes after a millisecond, and one request in so many with none.
    async fn server(odd: u64) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut count = 0;
            while let Some(Ok((_, mut answer))) = connection.accept().await {
                count += 1;
                let bytes = if count % odd == 0 { &b""[..] } else { b"yes" };
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let mut body = answer.send_response(http::Response::new(()), false).unwrap();
                    body.send_data(Bytes::from_static(bytes), true).unwrap();
                });
            }
        });
        address
    }

    fn load(address: SocketAddr, pace: Pace) -> Load {
        let request = Request::builder().uri("http://127.0.0.1/").body(()).unwrap();
        let next = move || Call { request: request.clone(), body: Some(Bytes::from_static(b"?")) };
        let (warm_up, duration) = (Duration::from_millis(50), Duration::from_millis(200));
        Load { address, connections: 1, pace, warm_up, duration, answer: 3, next: Box::new(next) }
    }

    #[tokio::test]
    async fn as_many_are_sent_as_the_rate_says_and_what_they_wait_for_is_counted() {
        let address = server(u64::MAX).await;
        let told = run(load(address, Pace::Rate(400.0))).await.unwrap();
        // In a quarter of a second.
        assert_eq!(told.sent, 100);
        assert!(told.p50 >= 1000.0 && told.p99 >= told.p50 && told.per_second > 0.0, "{told:?}");
    }

    #[tokio::test]
    async fn one_answer_that_is_another_spoils_the_run() {
        let error = run(load(server(20).await, Pace::AtOnce(4))).await.unwrap_err();
        assert_eq!(error.to_string(), "an answer with 200 OK and 0 bytes, not 200 and 3");
    }
}
