//! The handshakes of those who connect.
//!
//! They run side by side and never hold up the next connection. Each has a time limit, and there is a bound on how many
//! are under way; past it the oldest one makes room, so that peers who connect and say nothing cannot keep Envoy out: an
//! honest handshake is done long before as many strangers have come. A peer that fails costs nobody anything.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

use super::TlsMetrics;
use crate::config::Limits;
use crate::lifecycle::TaskError;
use crate::telemetry::{OutcomeLabels, Sparing};

/// Between two log lines about peers that were refused: who scans ports must not fill the log.
const TOLD_EVERY: Duration = Duration::from_mins(1);
/// After an accept that failed, which is mostly for want of file descriptors and would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Turns TCP connections into those of clients who have shown a certificate.
pub struct Handshakes {
    in_force: watch::Receiver<Arc<ServerConfig>>,
    limit: usize,
    timeout: Duration,
    metrics: TlsMetrics,
    done: mpsc::Sender<TlsStream<TcpStream>>,
}

/// How a handshake ended.
enum Ended {
    Done,
    /// The peer did not show what is asked for.
    Refused(SocketAddr, io::Error),
    /// The peer went away.
    Gone,
    TimedOut,
}

impl Handshakes {
    /// The connections come out of the receiver.
    pub fn new(
        in_force: watch::Receiver<Arc<ServerConfig>>,
        limits: &Limits,
        metrics: TlsMetrics,
    ) -> (Self, mpsc::Receiver<TlsStream<TcpStream>>) {
        // One that waits here is still under way, and counted.
        let (done, connections) = mpsc::channel(1);
        let (limit, timeout) = (limits.tls_handshakes, limits.tls_handshake_timeout);
        (Self { in_force, limit, timeout, metrics, done }, connections)
    }

    /// Takes what comes in until the stop.
    ///
    /// # Errors
    /// None of its own.
    pub async fn run(self, mut incoming: TcpIncoming, stop: CancellationToken) -> Result<(), TaskError> {
        let mut tasks = JoinSet::new();
        let mut oldest_first = VecDeque::new();
        let refusals = Sparing::new(1, TOLD_EVERY);
        let mut accept_after = Instant::now();
        loop {
            self.metrics.under_way.set(i64::try_from(tasks.len()).unwrap_or(i64::MAX));
            let accepted = async {
                tokio::time::sleep_until(accept_after).await;
                incoming.next().await
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(ended) = tasks.join_next() => self.count(ended, &refusals),
                accepted = accepted => match accepted {
                    Some(Ok(stream)) => {
                        make_room(&mut oldest_first, self.limit);
                        oldest_first.push_back(tasks.spawn(self.shake_hands(stream)));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "cannot accept a connection: {error}");
                        accept_after = Instant::now() + ACCEPT_PAUSE;
                    }
                    None => return Err("the listener has ended".into()),
                },
            }
        }
    }

    fn shake_hands(&self, stream: TcpStream) -> impl Future<Output = Ended> + Send + 'static {
        let acceptor = TlsAcceptor::from(self.in_force.borrow().clone());
        let (timeout, done) = (self.timeout, self.done.clone());
        async move {
            let Ok(peer) = stream.peer_addr() else { return Ended::Gone };
            match tokio::time::timeout(timeout, acceptor.accept(stream)).await {
                // Nobody receives any more only when the server has ended.
                Ok(Ok(stream)) => done.send(stream).await.map_or(Ended::Gone, |()| Ended::Done),
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Ended::Refused(peer, error),
                Ok(Err(_)) => Ended::Gone,
                Err(_) => Ended::TimedOut,
            }
        }
    }

    fn count(&self, ended: Result<Ended, JoinError>, refusals: &Sparing) {
        let outcome = match ended {
            Ok(Ended::Done) => "ok",
            Ok(Ended::Refused(peer, error)) => {
                tell(refusals, peer, &error);
                "refused"
            }
            Ok(Ended::Gone) => "gone",
            Ok(Ended::TimedOut) => "timeout",
            Err(error) if error.is_cancelled() => "displaced",
            Err(error) => {
                tracing::error!(%error, "a TLS handshake panicked: {error}");
                "panic"
            }
        };
        self.metrics.handshakes.get_or_create(&OutcomeLabels { outcome }).inc();
    }
}

/// Ends the oldest handshake when there are as many as there may be.
fn make_room(oldest_first: &mut VecDeque<AbortHandle>, limit: usize) {
    oldest_first.retain(|handshake| !handshake.is_finished());
    if oldest_first.len() >= limit
        && let Some(oldest) = oldest_first.pop_front()
    {
        oldest.abort();
    }
}

fn tell(refusals: &Sparing, peer: SocketAddr, error: &io::Error) {
    if let Some(unsaid) = refusals.say() {
        tracing::warn!(%peer, %error, unsaid = unsaid.count(), "refused {peer} in the TLS handshake: {error}{unsaid}");
    } else {
        tracing::debug!(%peer, %error, "refused {peer} in the TLS handshake: {error}");
    }
}
