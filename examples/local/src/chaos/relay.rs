//! Between Envoy's access log and Tollgate: passes everything on, and on demand drops, repeats, delays or replays
//! messages with log entries.
//!
//! One connection to Tollgate for each of Envoy's, so that a Tollgate that is not there looks to Envoy as it is.
//! It knows gRPC's framing and nothing of what is inside.

use std::{
    collections::VecDeque,
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    client::conn::http2::{self as client, SendRequest},
    server::conn::http2 as server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    sync::mpsc,
};

use super::{lock, record::Record};

const METHOD: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// Messages that are kept for a replay.
const KEPT: usize = 400;
/// Those larger than this are not kept.
const KEPT_BYTES: usize = 256 * 1024;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// What happens to messages, as probabilities.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meddling {
    pub drop: f64,
    pub repeat: f64,
    /// To be sent after later ones.
    pub delay: f64,
}

struct Shared {
    socket: PathBuf,
    meddling: Mutex<Meddling>,
    kept: Mutex<VecDeque<Bytes>>,
    random: Mutex<fastrand::Rng>,
    record: Arc<Record>,
}

/// A running relay. Ends with its last handle and connection.
#[derive(Clone)]
pub(super) struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Relay {
    /// Listens on a free port, in front of Tollgate's `socket`.
    pub async fn start(socket: PathBuf, random: fastrand::Rng, record: Arc<Record>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for the relay")?;
        let port = listener.local_addr().context("a bound port has no address")?.port();
        let shared = Arc::new(Shared {
            socket,
            meddling: Mutex::default(),
            kept: Mutex::default(),
            random: Mutex::new(random),
            record,
        });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                let Some(shared) = weak.upgrade() else { return };
                tokio::spawn(connection(inbound, shared));
            }
        });
        Ok(Self { port, shared })
    }

    pub fn meddle(&self, how: Meddling) {
        *lock(&self.shared.meddling) = how;
    }

    /// Sends up to `count` old messages once more, on a stream of their own, in any order. Returns how many.
    pub async fn replay(&self, count: usize) -> Result<usize> {
        let mut messages: Vec<Bytes> = lock(&self.shared.kept).iter().cloned().collect();
        lock(&self.shared.random).shuffle(&mut messages);
        messages.truncate(count);
        let sent = messages.len();
        let stream = UnixStream::connect(&self.shared.socket).await.context("no Tollgate")?;
        let (mut sender, driver) = client::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let driver = tokio::spawn(driver);
        let frames = stream::iter(messages.into_iter().map(|message| Ok::<_, Infallible>(Frame::data(message))));
        let request = Request::post(format!("http://tollgate{METHOD}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(frames))?;
        let answered = tokio::time::timeout(Duration::from_secs(10), async {
            sender.send_request(request).await?.into_body().collect().await
        });
        answered.await.context("no end of a replay")??;
        driver.abort();
        Ok(sent)
    }
}

async fn connection(inbound: TcpStream, shared: Arc<Shared>) {
    let _ = inbound.set_nodelay(true);
    let Ok(outbound) = UnixStream::connect(&shared.socket).await else { return };
    let outbound = TokioIo::new(outbound);
    let Ok((sender, driver)) = client::handshake::<_, _, Body>(TokioExecutor::new(), outbound).await else { return };
    let service = service_fn(move |request| forward(request, sender.clone(), shared.clone()));
    let serving = server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(inbound), service);
    // When one side has gone the other is cut off.
    tokio::select! {
        _ = driver => {}
        _ = serving => {}
    }
}

async fn forward(
    request: Request<Incoming>,
    mut sender: SendRequest<Body>,
    shared: Arc<Shared>,
) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = if parts.uri.path() == METHOD { meddled(body, shared) } else { body.boxed_unsync() };
    let answer = sender.send_request(Request::from_parts(parts, body)).await?;
    Ok(answer.map(http_body_util::BodyExt::boxed_unsync))
}

/// The stream of messages, with what happens to them.
fn meddled(mut body: Incoming, shared: Arc<Shared>) -> Body {
    let (sender, receiver) = mpsc::channel::<Bytes>(16);
    tokio::spawn(async move {
        let mut buffer = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { break };
            buffer.extend_from_slice(&data);
            while let Some(message) = take_message(&mut buffer) {
                if !shared.pass(message, &sender).await {
                    return;
                }
            }
        }
    });
    let frames = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|message| (Ok::<_, hyper::Error>(Frame::data(message)), receiver))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A whole message with its five bytes of framing, once it is there.
fn take_message(buffer: &mut Vec<u8>) -> Option<Bytes> {
    let length = u32::from_be_bytes(buffer.get(1..5)?.try_into().ok()?);
    let whole = usize::try_from(length).ok()? + 5;
    (buffer.len() >= whole).then(|| buffer.drain(..whole).collect::<Vec<u8>>().into())
}

impl Shared {
    /// Passes a message on, or does what is wanted instead. False when there is nobody to pass it to.
    async fn pass(self: &Arc<Self>, message: Bytes, sender: &mpsc::Sender<Bytes>) -> bool {
        let meddling = *lock(&self.meddling);
        if message.len() <= KEPT_BYTES {
            let mut kept = lock(&self.kept);
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(message.clone());
        }
        let (dice, wait) = {
            let mut random = lock(&self.random);
            (random.f64(), Duration::from_millis(random.u64(20..3000)))
        };
        if dice < meddling.drop {
            self.record.tick("log messages dropped", 1);
            let now = Instant::now();
            self.record.dropped(workflows(&message));
            // Those of refused submissions name no workflow.
            self.record.lost_between(now.checked_sub(Duration::from_secs(1)).unwrap_or(now), now);
            return true;
        }
        if dice < meddling.drop + meddling.repeat {
            self.record.tick("log messages repeated", 1);
            return sender.send(message.clone()).await.is_ok() && sender.send(message).await.is_ok();
        }
        if dice < meddling.drop + meddling.repeat + meddling.delay {
            self.record.tick("log messages delayed", 1);
            let (sender, shared) = (sender.clone(), self.clone());
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                if sender.send(message.clone()).await.is_err() {
                    // Its stream has ended meanwhile.
                    shared.record.dropped(workflows(&message));
                }
            });
            return true;
        }
        sender.send(message).await.is_ok()
    }
}

/// The ids of workflows in a message, as text in it.
fn workflows(message: &[u8]) -> Vec<String> {
    let ids = message.windows(16).filter(|window| window.starts_with(b"wfl-"));
    let ids = ids.filter(|window| window[4..].iter().all(u8::is_ascii_hexdigit));
    ids.map(|window| String::from_utf8_lossy(window).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_whole_or_not_yet() {
        let mut buffer = vec![0, 0, 0, 0, 3, b'a', b'b'];
        assert_eq!(take_message(&mut buffer), None);
        buffer.extend([b'c', 0, 0]);
        assert_eq!(take_message(&mut buffer).unwrap(), vec![0, 0, 0, 0, 3, b'a', b'b', b'c']);
        assert_eq!(buffer, [0, 0]);
    }

    #[test]
    fn the_workflows_of_a_message_are_found_in_its_bytes() {
        assert_eq!(workflows(b"\x0awfl-00ff12ab34cd\x12wfl-short"), ["wfl-00ff12ab34cd"]);
    }
}
