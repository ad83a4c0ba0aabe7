//! The listening half of a stand-in: one port that can go away and come back.
//!
//! It accepts connections itself rather than through `axum::serve`, because a stand-in must be able to
//! do what a well-behaved server does not: drop every open connection at once, and close one in the
//! middle of an answer.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use futures_util::future::BoxFuture;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::lock;

/// What a handler comes to: an answer, or the connection closed without one.
pub(super) type Answer = Result<Response, Closed>;

/// The connection is to be closed without a byte of answer.
#[derive(Debug)]
pub(super) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed without an answer")
    }
}

impl std::error::Error for Closed {}

/// Answers one request. The token is cancelled when the server stops; only what outlives the answer,
/// such as a WebSocket, needs to look at it.
type Handler = Arc<dyn Fn(Request, CancellationToken) -> BoxFuture<'static, Answer> + Send + Sync>;

/// A bound port and what answers there. Stops when dropped.
pub struct Server {
    address: SocketAddr,
    handler: Handler,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Binds `listen` and serves there.
    pub(super) async fn start<F>(
        listen: &str,
        handler: impl Fn(Request, CancellationToken) -> F + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let listener = TcpListener::bind(listen).await?;
        let server = Self {
            address: listener.local_addr()?,
            handler: Arc::new(move |request, stop| Box::pin(handler(request, stop))),
            running: Mutex::new(None),
        };
        server.serve(listener);
        Ok(Arc::new(server))
    }

    /// The address that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS`, without a trailing slash.
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        format!("http://{address}")
    }

    /// Closes the port and every open connection. When this returns, a connection is refused.
    pub async fn stop(&self) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.stop.cancel();
            // The task only ends by this token, and has nothing to report.
            let _ = running.accepting.await;
        }
    }

    /// Listens again on the same port. Does nothing when it already does.
    pub async fn resume(&self) -> io::Result<()> {
        if lock(&self.running).is_some() {
            return Ok(());
        }
        let listener = TcpListener::bind(self.address).await?;
        self.serve(listener);
        Ok(())
    }

    fn serve(&self, listener: TcpListener) {
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, self.handler.clone(), stop.clone()));
        *lock(&self.running) = Some(Running { stop, accepting });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = lock(&self.running).take() {
            running.stop.cancel();
            running.accepting.abort();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("running", &lock(&self.running).is_some())
            .finish_non_exhaustive()
    }
}

/// Accepts until told to stop, then closes the port first and the connections after it.
async fn accept(listener: TcpListener, handler: Handler, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, handler.clone(), stop.clone()));
                }
                // Out of file descriptors, most likely: do not spin on it.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve_connection(stream: TcpStream, handler: Handler, stop: CancellationToken) {
    // Without it small answers wait for the peer's delayed acknowledgement. Failing to set it is harmless.
    let _ = stream.set_nodelay(true);
    let service =
        service_fn(move |request: hyper::Request<hyper::body::Incoming>| handler(request.map(Body::new), stop.clone()));
    // An error is a client that went away or an answer that was cut off on purpose.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}
