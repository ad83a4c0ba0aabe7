//! The gRPC listener: TCP, TCP with mTLS, or a Unix socket.

mod services;
mod whole;

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::layer::util::{Identity, Stack};

use crate::config::{Limits, Listen};
use crate::lifecycle::{Lifecycle, Stopping};
use crate::tls::{Certificates, Handshakes, TlsMetrics};

pub use services::Services;
use whole::{Whole, WholeAnswers};

/// A server for [`Connections`].
fn server() -> Server<Stack<WholeAnswers, Identity>> {
    Server::builder()
        // Envoy resets a Check whose client has left. That is no attack, however many leave at once, and ending the connection
        // would fail the Checks of all the others.
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .layer(WholeAnswers)
}

/// Checks that were reset before they were looked at: as many as Envoy has under way at once.
const RESETS: usize = 4096;
/// After an accept that failed, which is mostly for want of file descriptors and would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound, and not yet accepting.
pub enum Bound {
    Tcp(TcpListener),
    Tls(TcpListener, Box<Certificates>),
    Unix(UnixListener, SocketFile),
}

/// What the gRPC server serves.
pub enum Connections {
    Tcp(TcpIncoming),
    Tls(ReceiverStream<TlsStream<TcpStream>>),
    Unix(UnixListenerStream, SocketFile),
}

impl Bound {
    /// Binds the address. A Unix socket has no use for certificates.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(listen: &Listen, certificates: Option<Certificates>) -> std::io::Result<Self> {
        Ok(match (listen, certificates) {
            (Listen::Tcp(address), None) => Self::Tcp(TcpListener::bind(address).await?),
            (Listen::Tcp(address), Some(certificates)) => {
                Self::Tls(TcpListener::bind(address).await?, Box::new(certificates))
            }
            (Listen::Unix(path), _) => {
                let (listener, file) = bind_unix(path).await?;
                Self::Unix(listener, file)
            }
        })
    }

    /// As Envoy is told it: `host:port` or `unix:/path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> std::io::Result<String> {
        Ok(match self {
            Self::Tcp(listener) | Self::Tls(listener, _) => listener.local_addr()?.to_string(),
            Self::Unix(_, file) => Listen::Unix(file.path.clone()).to_string(),
        })
    }

    /// What comes in. With mTLS two tasks belong to it: one that shakes hands, one that keeps the certificates and sets the end
    /// of the one that is shown.
    pub fn accept(
        self,
        lifecycle: &mut Lifecycle,
        stopping: &Stopping,
        limits: &Limits,
        registry: &mut Registry,
        certificate_end: Gauge,
    ) -> Connections {
        match self {
            Self::Tcp(listener) => Connections::Tcp(incoming(listener)),
            Self::Unix(listener, file) => Connections::Unix(UnixListenerStream::new(listener), file),
            Self::Tls(listener, certificates) => {
                let metrics = TlsMetrics::register(registry, certificate_end);
                let (handshakes, connections) = Handshakes::new(certificates.in_force(), limits, metrics.clone());
                lifecycle.spawn("tls handshakes", handshakes.run(incoming(listener), stopping.stop.clone()));
                let keep = certificates.keep(limits.tls_refresh, metrics, stopping.stop.clone());
                lifecycle.spawn("tls certificates", keep);
                Connections::Tls(ReceiverStream::new(connections))
            }
        }
    }
}

/// Over a network: what is small is sent at once, and a machine that vanished without a word is noticed.
fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(Duration::from_mins(1)))
        .with_keepalive_interval(Some(Duration::from_secs(15)))
        .with_keepalive_retries(Some(4))
}

/// A connection as it is served. After one that could not be accepted the next is not tried at once.
async fn accepted<IO>(connection: std::io::Result<IO>) -> std::io::Result<Whole<IO>> {
    if let Err(error) = &connection {
        tracing::warn!(%error, "cannot accept a connection: {error}");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
    connection.map(Whole::new)
}

impl Connections {
    /// Serves until the stop, and then until the last connection has ended.
    ///
    /// # Errors
    /// When serving fails.
    pub async fn serve(self, services: Services, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
        let (server, stop) = (server(), stop.cancelled());
        match self {
            Self::Tcp(incoming) => server.serve_with_incoming_shutdown(services, incoming.then(accepted), stop).await,
            Self::Tls(incoming) => {
                let incoming = incoming.map(|io| Ok::<_, std::io::Error>(Whole::new(io)));
                server.serve_with_incoming_shutdown(services, incoming, stop).await
            }
            Self::Unix(incoming, _file) => {
                server.serve_with_incoming_shutdown(services, incoming.then(accepted), stop).await
            }
        }
    }
}

/// A Unix socket's file, which goes when the listener does, unless another process has put its own in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: FileIdentity,
}

/// Inode number and time of its last change: the number alone is given to the next file at once.
type FileIdentity = (u64, i64, i64);

fn identity_of(path: &Path) -> std::io::Result<FileIdentity> {
    let file = std::fs::symlink_metadata(path)?;
    Ok((file.ino(), file.ctime(), file.ctime_nsec()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity_of(&self.path).is_ok_and(|identity| identity == self.identity) {
            // It may be gone by now, and nobody is left to be told.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds a Unix socket, in place of one that a killed process left behind; group members may connect.
async fn bind_unix(path: &Path) -> std::io::Result<(UnixListener, SocketFile)> {
    match std::fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {
            // Only a refusal shows that nobody is there. Anybody else's socket is not ours to take, however they fare.
            let answer = tokio::time::timeout(Duration::from_secs(1), UnixStream::connect(path)).await;
            match answer {
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                Ok(Err(error)) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => return Err(ErrorKind::AddrInUse.into()),
            }
        }
        Ok(_) => return Err(std::io::Error::other("there is a file that is no socket")),
        Err(_) => {}
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Before it listens, so that there is no moment in which anybody else could connect.
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    let file = SocketFile { path: path.to_owned(), identity: identity_of(path)? };
    Ok((socket.listen(1024)?, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_taken_over_from_the_dead_and_only_its_owner_takes_it_away() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("grpc.sock");
        let (listener, first) = bind_unix(&path).await.expect("bound");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o660);
        assert_eq!(bind_unix(&path).await.err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
        // The first process stops listening, and has something to finish before it ends.
        drop(listener);
        let (listener, second) = bind_unix(&path).await.expect("taken over");
        drop(first);
        UnixStream::connect(&path).await.expect("the second one is still there");
        drop((listener, second));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        let error = bind_unix(file.path()).await.expect_err("no socket");
        assert!(error.to_string().contains("no socket"), "{error}");
        assert!(file.path().exists());
    }
}
