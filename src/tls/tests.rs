use std::collections::VecDeque;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::server::TlsStream;
use tollgate_local::stack::{Authority, Identity, wait_for};
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::config::Limits;

const SOON: Duration = Duration::from_secs(10);

/// A folder with all three files, and who signed them.
struct Folder {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Folder {
    fn new() -> Self {
        let folder = Self { dir: tempfile::tempdir().expect("temp dir"), authority: authority() };
        folder.issue(2096);
        folder.write("ca", folder.authority.pem());
        folder
    }

    fn files(&self) -> TlsFiles {
        let path = |name| self.dir.path().join(name);
        TlsFiles { cert: path("cert"), key: path("key"), client_ca: path("ca") }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).expect("written");
    }

    fn issue(&self, last_year: i32) -> Identity {
        let identity = self.authority.issue(&["localhost"], last_year).expect("issued");
        self.write("cert", &identity.cert);
        self.write("key", &identity.key);
        identity
    }

    fn error(&self) -> String {
        Certificates::load(&self.files()).err().expect("refused").to_string()
    }
}

fn authority() -> Authority {
    Authority::new("tollgate test").expect("an authority")
}

#[test]
fn every_bad_file_is_one_line_that_names_its_variable() {
    let other = authority().issue(&["localhost"], 2096).expect("issued");
    let no_base64 = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (file, variable, text, told) in [
        ("cert", TLS_CERT, "", "holds no certificate"),
        ("cert", TLS_CERT, other.key.as_str(), "holds no certificate"),
        ("cert", TLS_CERT, no_base64, ""),
        ("cert", TLS_CERT, no_certificate, "cannot be read"),
        ("key", TLS_KEY, "", "holds no private key"),
        ("key", TLS_KEY, no_key, ""),
        ("key", TLS_KEY, encrypted, "not encrypted"),
        ("key", TLS_KEY, other.key.as_str(), "is not the key of the certificate in TOLLGATE_TLS_CERT"),
        ("ca", TLS_CLIENT_CA, "", "holds no certificate"),
        ("ca", TLS_CLIENT_CA, no_certificate, ""),
    ] {
        let folder = Folder::new();
        folder.write(file, text);
        let error = folder.error();
        assert!(error.starts_with(&format!("{variable}: ")) && error.contains(told), "{file} {text:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
        std::fs::remove_file(folder.dir.path().join(file)).expect("removed");
        assert!(folder.error().starts_with(&format!("{variable}: cannot read /")), "{}", folder.error());
        std::fs::create_dir(folder.dir.path().join(file)).expect("made");
        assert!(folder.error().contains("is no file"), "{}", folder.error());
    }
}

#[test]
fn a_certificate_and_its_key_may_share_a_file() {
    let folder = Folder::new();
    let identity = folder.issue(2096);
    for name in ["cert", "key"] {
        folder.write(name, &format!("{}{}", identity.key, identity.cert));
    }
    assert!(Certificates::load(&folder.files()).is_ok());
}

#[tokio::test]
async fn a_change_is_taken_up_and_a_bad_one_is_waited_out() {
    let folder = Folder::new();
    let end = Gauge::default();
    let metrics = TlsMetrics::register(&mut Registry::default(), end.clone());
    let certificates = Certificates::load(&folder.files()).expect("good");
    let in_force = certificates.in_force();
    let stop = CancellationToken::new();
    let kept = tokio::spawn(certificates.keep(Duration::from_millis(20), metrics.clone(), stop.clone()));
    let reloads = |outcome: &'static str| metrics.reloads.get_or_create(&OutcomeLabels { outcome }).get();
    // At least: on a busy machine a look may fall between the writing of two files.
    let reloaded = async |outcome, times| {
        let seen =
            wait_for(format!("{outcome} {times} times"), SOON, async || (reloads(outcome) >= times).then_some(()));
        seen.await.expect("reloaded");
    };
    let first = in_force.borrow().clone();

    folder.issue(2095);
    reloaded("ok", 1).await;
    assert!(!Arc::ptr_eq(&first, &in_force.borrow()));
    // 2095-12-31, midnight.
    assert_eq!(end.get(), 3_976_128_000);

    let second = in_force.borrow().clone();
    folder.write("key", "half a k");
    reloaded("failed", 1).await;
    std::fs::remove_file(folder.dir.path().join("ca")).expect("removed");
    folder.write("cert", "");
    reloaded("failed", 2).await;
    assert!(Arc::ptr_eq(&second, &in_force.borrow()));

    folder.issue(2094);
    folder.write("ca", folder.authority.pem());
    reloaded("ok", 2).await;
    assert!(!Arc::ptr_eq(&second, &in_force.borrow()));
    stop.cancel();
    kept.await.expect("no panic").expect("no failure");
}

/// Handshakes on a port of their own.
struct Listening {
    address: SocketAddr,
    connections: mpsc::Receiver<TlsStream<TcpStream>>,
    metrics: TlsMetrics,
    _stop: tokio_util::sync::DropGuard,
}

async fn listening(folder: &Folder, limits: &Limits) -> Listening {
    let certificates = Certificates::load(&folder.files()).expect("good");
    let metrics = TlsMetrics::register(&mut Registry::default(), Gauge::default());
    let (handshakes, connections) = Handshakes::new(certificates.in_force(), limits, metrics.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    tokio::spawn(handshakes.run(TcpIncoming::from(listener), stop.clone()));
    Listening { address, connections, metrics, _stop: stop.drop_guard() }
}

impl Listening {
    async fn counted(&self, outcome: &'static str, times: u64) {
        let counter = self.metrics.handshakes.get_or_create(&OutcomeLabels { outcome }).clone();
        let seen = wait_for(format!("{outcome} {times} times"), SOON, async || (counter.get() == times).then_some(()));
        seen.await.expect("counted");
    }

    /// Whether a client with this certificate is let in.
    async fn lets_in(&mut self, folder: &Folder, identity: Option<&Identity>) -> bool {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(folder.authority.pem().as_bytes()).expect("PEM");
        roots.add(ca).expect("a CA");
        let client = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let client = match identity {
            None => client.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![CertificateDer::from_pem_slice(identity.cert.as_bytes()).expect("PEM")];
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("PEM");
                client.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        let stream = TcpStream::connect(self.address).await.expect("connected");
        let name = "localhost".try_into().expect("a name");
        let Ok(mut stream) = TlsConnector::from(Arc::new(client)).connect(name, stream).await else { return false };
        // In TLS 1.3 the client is done before it has been judged.
        let heard = async {
            stream.write_all(b"hello").await?;
            stream.read_u8().await
        };
        tokio::select! {
            Some(mut connection) = self.connections.recv() => {
                assert_eq!(connection.read_u8().await.expect("a byte"), b'h');
                true
            }
            heard = heard => { heard.expect_err("cut off"); false }
        }
    }
}

#[tokio::test]
async fn only_who_shows_a_certificate_of_the_authority_is_let_in() {
    let folder = Folder::new();
    let mut listening = listening(&folder, &Limits::default()).await;
    let client = |authority: &Authority, year| authority.issue(&["envoy"], year).expect("issued");
    assert!(listening.lets_in(&folder, Some(&client(&folder.authority, 2096))).await);
    listening.counted("ok", 1).await;
    assert!(!listening.lets_in(&folder, None).await);
    // Of the same name, and another key.
    assert!(!listening.lets_in(&folder, Some(&client(&authority(), 2096))).await);
    assert!(!listening.lets_in(&folder, Some(&client(&folder.authority, 2020))).await);
    let mut plain = TcpStream::connect(listening.address).await.expect("connected");
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.expect("closed");
    assert!(answer.len() < 16, "an alert at most: {answer:?}");
    listening.counted("refused", 4).await;
    drop(TcpStream::connect(listening.address).await.expect("connected"));
    listening.counted("gone", 1).await;
    assert!(listening.lets_in(&folder, Some(&client(&folder.authority, 2096))).await);
}

#[tokio::test]
async fn who_connects_and_says_nothing_keeps_nobody_out() {
    let folder = Folder::new();
    let limits = Limits { tls_handshakes: 3, tls_handshake_timeout: Duration::from_mins(1), ..Limits::default() };
    let mut listening = listening(&folder, &limits).await;
    let mut silent = VecDeque::new();
    for _ in 0..5 {
        silent.push_back(TcpStream::connect(listening.address).await.expect("connected"));
    }
    listening.counted("displaced", 2).await;
    let envoy = folder.authority.issue(&["envoy"], 2096).expect("issued");
    assert!(listening.lets_in(&folder, Some(&envoy)).await);
    listening.counted("displaced", 3).await;
    // It was the oldest ones that had to go.
    for _ in 0..3 {
        assert!(silent.pop_front().expect("three").read_u8().await.is_err());
    }
    let nothing = tokio::time::timeout(Duration::from_millis(20), silent[0].read_u8()).await;
    assert!(nothing.is_err(), "still under way: {nothing:?}");
}

#[tokio::test]
async fn a_handshake_ends_at_its_time_limit() {
    let folder = Folder::new();
    let limits = Limits { tls_handshake_timeout: Duration::from_millis(20), ..Limits::default() };
    let listening = listening(&folder, &limits).await;
    let mut silent = TcpStream::connect(listening.address).await.expect("connected");
    assert!(silent.read_u8().await.is_err());
    listening.counted("timeout", 1).await;
}
