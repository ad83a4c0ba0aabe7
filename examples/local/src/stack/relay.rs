//! Between Envoy and Tollgate: passes everything on, and on demand drops, repeats, delays or replays messages with log
//! entries, or withholds an answer.
//!
//! One connection to Tollgate for each of Envoy's, so that a Tollgate that is not there looks to Envoy as it is.
//! It knows gRPC's framing and nothing of what is inside.

use std::{
    collections::VecDeque,
    convert::Infallible,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
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
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixListener, UnixStream},
    sync::{Notify, mpsc},
};

const METHOD: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// Messages that are kept for a replay.
const KEPT: usize = 400;
/// Those larger than this are not kept.
const KEPT_BYTES: usize = 256 * 1024;

/// How long Tollgate may take to be connected to.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// What happens to messages with log entries, as probabilities.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meddling {
    /// Never to arrive.
    pub drop: f64,
    /// To arrive twice.
    pub repeat: f64,
    /// To arrive after later ones, within three seconds.
    pub delay: f64,
}

/// What happened to a message.
#[derive(Clone, Debug)]
pub enum Meddled {
    /// It never arrives; these workflows were named in it.
    Dropped(Vec<String>),
    /// It arrives twice.
    Repeated,
    /// It arrives later, unless its stream ends before.
    Delayed,
}

/// A connection of whichever kind.
trait Connection: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Connection for T {}

struct Shared {
    /// As [`Tollgate::grpc`](super::Tollgate::grpc) has it.
    tollgate: String,
    meddling: Mutex<Meddling>,
    kept: Mutex<VecDeque<Bytes>>,
    random: Mutex<fastrand::Rng>,
    told: mpsc::UnboundedSender<Meddled>,
    /// The path whose answers are withheld, and who waits for one.
    withheld: Mutex<Option<(String, Arc<Notify>)>>,
}

/// A running relay. Ends with its last handle and connection.
#[derive(Clone)]
pub struct Relay {
    shared: Arc<Shared>,
}

impl Relay {
    /// Listens on the Unix socket `listen`, in front of the Tollgate whose gRPC address this is. `random` decides what happens to
    /// which message; the receiver is told.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(
        listen: &Path,
        tollgate: &str,
        random: fastrand::Rng,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Meddled>)> {
        let listener = UnixListener::bind(listen).with_context(|| format!("cannot listen on {}", listen.display()))?;
        let (told, telling) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            tollgate: tollgate.to_owned(),
            meddling: Mutex::default(),
            kept: Mutex::default(),
            random: Mutex::new(random),
            told,
            withheld: Mutex::default(),
        });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                let Some(shared) = weak.upgrade() else { return };
                tokio::spawn(connection(inbound, shared));
            }
        });
        Ok((Self { shared }, telling))
    }

    /// Withholds every answer to calls of `path` from now on; they end with Tollgate. The handle is notified when there
    /// is one.
    #[must_use]
    pub fn withhold(&self, path: &str) -> Arc<Notify> {
        let reached = Arc::new(Notify::new());
        *lock(&self.shared.withheld) = Some((path.to_owned(), reached.clone()));
        reached
    }

    /// Passes every answer again.
    pub fn release(&self) {
        *lock(&self.shared.withheld) = None;
    }

    /// What happens to messages from now on.
    pub fn meddle(&self, how: Meddling) {
        *lock(&self.shared.meddling) = how;
    }

    /// Sends up to `count` old messages once more, on a stream of their own, in any order. Returns how many.
    ///
    /// # Errors
    /// When Tollgate does not take them.
    pub async fn replay(&self, count: usize) -> Result<usize> {
        let mut messages: Vec<Bytes> = lock(&self.shared.kept).iter().cloned().collect();
        lock(&self.shared.random).shuffle(&mut messages);
        messages.truncate(count);
        let sent = messages.len();
        let stream = self.shared.connect().await?;
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

async fn connection(inbound: UnixStream, shared: Arc<Shared>) {
    let Ok(outbound) = shared.connect().await else { return };
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
    let path = parts.uri.path().to_owned();
    let body = if path == METHOD { meddled(body, shared.clone()) } else { body.boxed_unsync() };
    let answer = sender.send_request(Request::from_parts(parts, body)).await?;
    let withheld = lock(&shared.withheld).clone().filter(|(wanted, _)| *wanted == path);
    if let Some((_, reached)) = withheld {
        reached.notify_one();
        // Until the connection ends.
        std::future::pending::<()>().await;
    }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    async fn connect(&self) -> Result<Pin<Box<dyn Connection>>> {
        let connecting = async {
            Ok::<Pin<Box<dyn Connection>>, std::io::Error>(match self.tollgate.strip_prefix("unix:") {
                Some(socket) => Box::pin(UnixStream::connect(socket).await?),
                None => Box::pin(TcpStream::connect(&self.tollgate).await?),
            })
        };
        tokio::time::timeout(CONNECT_LIMIT, connecting).await.context("no Tollgate in time")?.context("no Tollgate")
    }

    fn tell(&self, meddled: Meddled) {
        // Not everybody wants to know.
        let _ = self.told.send(meddled);
    }

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
            self.tell(Meddled::Dropped(workflows(&message)));
            return true;
        }
        if dice < meddling.drop + meddling.repeat {
            self.tell(Meddled::Repeated);
            return sender.send(message.clone()).await.is_ok() && sender.send(message).await.is_ok();
        }
        if dice < meddling.drop + meddling.repeat + meddling.delay {
            self.tell(Meddled::Delayed);
            let (sender, shared) = (sender.clone(), self.clone());
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                if sender.send(message.clone()).await.is_err() {
                    // Its stream has ended meanwhile.
                    shared.tell(Meddled::Dropped(workflows(&message)));
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
