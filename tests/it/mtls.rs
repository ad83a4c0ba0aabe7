//! mTLS between Envoy and Tollgate: who is let in, who is not, and certificates that change.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tollgate_local::stack::{ACME, ALICE, Authority, Envoy, Identity, Tollgate, free_port, wait_for};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Edge, SOON, answer, binary, envoy_binary};

/// Of the certificates that are not looked at for their end.
const LAST_YEAR: i32 = 2096;

/// A folder with what both sides need: `ca.pem`, `tollgate.pem` and `.key`, `envoy.pem` and `.key`.
pub struct Pki {
    pub authority: Authority,
    pub envoy: Identity,
}

impl Pki {
    /// A new authority, whose files take the place of what is in the folder.
    pub fn write(dir: &Path) -> Self {
        let authority = Authority::new("tollgate test").expect("an authority");
        let pki = Self { envoy: authority.issue(&["envoy"], LAST_YEAR).expect("issued"), authority };
        std::fs::write(dir.join("ca.new"), pki.authority.pem()).expect("written");
        std::fs::rename(dir.join("ca.new"), dir.join("ca.pem")).expect("renamed");
        pki.envoy.write(dir, "envoy").expect("written");
        pki.renew(dir);
        pki
    }

    /// A new certificate for Tollgate.
    pub fn renew(&self, dir: &Path) -> Identity {
        let identity = self.authority.issue(&["127.0.0.1", "localhost"], LAST_YEAR).expect("issued");
        identity.write(dir, "tollgate").expect("written");
        identity
    }

    /// Connects as somebody with this certificate, or none.
    async fn handshake(&self, address: &str, identity: Option<&Identity>) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate(self.authority.pem())).expect("a CA");
        let client = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut client = match identity {
            None => client.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                client.with_client_auth_cert(vec![certificate(cert)], key).expect("a pair")
            }
        };
        client.alpn_protocols = vec![b"h2".to_vec()];
        let name = "localhost".try_into().expect("a name");
        TlsConnector::from(Arc::new(client)).connect(name, TcpStream::connect(address).await?).await
    }

    /// The certificate that a client of this authority is shown.
    async fn shown(&self, address: &str) -> Option<CertificateDer<'static>> {
        let stream = self.handshake(address, Some(&self.envoy)).await.ok()?;
        Some(stream.get_ref().1.peer_certificates()?.first()?.clone().into_owned())
    }

    async fn channel(&self, address: &str, identity: Option<&Identity>) -> Result<Channel, String> {
        let stream = self.handshake(address, identity).await.map_err(|error| error.to_string())?;
        let mut stream = Some(hyper_util::rt::TokioIo::new(stream));
        let connect = move |_| {
            let stream = stream.take().ok_or(std::io::ErrorKind::NotConnected);
            async move { Ok::<_, std::io::Error>(stream?) }
        };
        let endpoint = Endpoint::from_static("http://tollgate");
        endpoint.connect_with_connector(tower::service_fn(connect)).await.map_err(|error| error.to_string())
    }

    /// Whether somebody with this certificate gets an answer.
    async fn serves(&self, address: &str, identity: Option<&Identity>) -> bool {
        match self.channel(address, identity).await {
            Ok(channel) => is_served(channel).await,
            Err(_) => false,
        }
    }
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

async fn is_served(channel: Channel) -> bool {
    let asked = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    asked.is_ok_and(|answer| answer.into_inner().status == 1)
}

/// Tollgate's settings for the files of a folder.
pub fn settings(dir: &Path) -> [(&'static str, String); 3] {
    let path = |name| dir.join(name).to_str().expect("text").to_owned();
    [
        ("TOLLGATE_TLS_CERT", path("tollgate.pem")),
        ("TOLLGATE_TLS_KEY", path("tollgate.key")),
        ("TOLLGATE_TLS_CLIENT_CA", path("ca.pem")),
    ]
}

/// Envoy's flags for the same folder.
pub fn flags(dir: &Path) -> Vec<String> {
    let path = |name| dir.join(name).to_str().expect("text").to_owned();
    let flags = ["--tollgate-tls-ca", "--tollgate-tls-cert", "--tollgate-tls-key"];
    flags.into_iter().zip(["ca.pem", "envoy.pem", "envoy.key"]).flat_map(|(f, n)| [f.to_owned(), path(n)]).collect()
}

/// A stack whose Tollgate listens with mTLS and whose Envoy has these flags beside the usual ones; also where it listens.
async fn edge(dir: &Path, flags: &[String]) -> (Edge, String) {
    let mut edge = Edge::start().await;
    edge.stack.tollgate.kill_hard().await.expect("killed");
    let address = format!("127.0.0.1:{}", free_port().expect("a port"));
    edge.stack.tollgate.set("TOLLGATE_GRPC_LISTEN", &address);
    for (name, value) in settings(dir) {
        edge.stack.tollgate.set(name, &value);
    }
    edge.stack.tollgate.restart().await.expect("restarted");
    let mut all = vec!["--tollgate".to_owned(), address.clone()];
    all.extend_from_slice(flags);
    replace_envoy(&mut edge, &all).await;
    (edge, address)
}

/// Puts an Envoy in its place that has these flags for Tollgate, and waits until it has found it.
pub async fn replace_envoy(edge: &mut Edge, flags: &[String]) {
    replace_envoy_with(edge, flags, "").await;
}

/// The same, with this at the end of its bootstrap.
pub async fn replace_envoy_with(edge: &mut Edge, flags: &[String], more: &str) {
    start_envoy(edge, flags, more).await;
    edge.stack.envoy.wait_for_tollgate(SOON).await.expect("healthy");
}

async fn start_envoy(edge: &mut Edge, flags: &[String], more: &str) {
    edge.stack.envoy.kill_hard().await.expect("killed");
    let upstream = edge.stack.flowmesh.url().trim_start_matches("http://").to_owned();
    let printed = Command::new(binary())
        .args(["envoy-config", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", &upstream])
        .args(flags)
        .output()
        .expect("tollgate runs");
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let bootstrap = String::from_utf8(printed.stdout).expect("text") + more;
    edge.stack.envoy = Envoy::start(&envoy_binary(), &bootstrap, edge.dir.path(), 2, None).await.expect("Envoy starts");
}

/// A Tollgate alone, with mTLS; also where it listens.
async fn alone(dir: &Path) -> (Tollgate, String) {
    let mut all = settings(dir).to_vec();
    all.push(("TOLLGATE_GRPC_LISTEN", "127.0.0.1:0".to_owned()));
    all.push(("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()));
    let tollgate = Tollgate::start(binary(), &all, None).await.expect("starts");
    let address = tollgate.grpc().to_owned();
    (tollgate, address)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[tokio::test]
async fn a_task_is_billed_through_mtls() {
    let dir = folder();
    let _pki = Pki::write(dir.path());
    let (edge, _) = edge(dir.path(), &flags(dir.path())).await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    // 2096-12-31, midnight.
    edge.metric("tollgate_tls_certificate_not_after_seconds", 4_007_750_400.0).await;
    edge.finish().await;
}

#[tokio::test]
async fn who_has_no_certificate_of_the_authority_gets_no_service_and_hinders_nobody() {
    let (dir, other) = (folder(), folder());
    let (pki, stranger) = (Pki::write(dir.path()), Pki::write(other.path()));
    let (mut edge, address) = edge(dir.path(), &flags(dir.path())).await;
    assert!(pki.serves(&address, Some(&pki.envoy)).await, "the measure of the others");
    assert!(!pki.serves(&address, None).await);
    assert!(!pki.serves(&address, Some(&stranger.envoy)).await);
    let plain = Endpoint::from_shared(format!("http://{address}")).expect("a URL").connect().await;
    assert!(match plain {
        Ok(channel) => !is_served(channel).await,
        Err(_) => true,
    });
    // More than there may be handshakes under way.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(&address).await.expect("connected"));
    }
    let started = Instant::now();
    assert!(pki.serves(&address, Some(&pki.envoy)).await);
    assert!(started.elapsed() < Duration::from_secs(4), "before their time was up: {:?}", started.elapsed());
    edge.stack.envoy.kill_hard().await.expect("killed");
    edge.stack.envoy.restart().await.expect("restarted");
    edge.stack.envoy.wait_for_tollgate(SOON).await.expect("healthy");
    edge.submit(ALICE.token, 1).await;
    silent.push(TcpStream::connect(&address).await.expect("connected"));
    let started = Instant::now();
    let status = edge.stack.tollgate.terminate().await.expect("stopped");
    assert!(status.success(), "{status}: {:#?}", edge.stack.tollgate.lines());
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    let refusals = edge.stack.tollgate.lines();
    let told = refusals.iter().filter(|line| line.contains("in the TLS handshake") && line.contains("WARN")).count();
    assert_eq!(told, 1, "the first is told, the others are counted: {refusals:#?}");
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn envoy_asks_no_tollgate_of_another_name_or_of_another_authority() {
    let (dir, other) = (folder(), folder());
    let (_pki, _stranger) = (Pki::write(dir.path()), Pki::write(other.path()));
    let (mut edge, address) = edge(dir.path(), &flags(dir.path())).await;
    let named = [flags(dir.path()), vec!["--tollgate-tls-name".to_owned(), "toll.example".to_owned()]].concat();
    for (flags, stat) in [(named, "fail_verify_san"), (flags(other.path()), "fail_verify_error")] {
        let all = [vec!["--tollgate".to_owned(), address.clone()], flags].concat();
        start_envoy(&mut edge, &all, "").await;
        let stat = format!("cluster.tollgate_authz.ssl.{stat}");
        let refused = async || edge.stack.envoy.stat(&stat).await.filter(|refused| *refused > 0);
        wait_for(format!("Envoy's {stat}"), SOON, refused).await.expect("refused");
        assert_eq!(answer(edge.submission(ALICE.token, 1)).await.status, 503);
    }
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn renewed_certificates_and_a_new_authority_are_taken_up_without_a_restart() {
    let dir = folder();
    let pki = Pki::write(dir.path());
    let (tollgate, address) = alone(dir.path()).await;
    let open = pki.channel(&address, Some(&pki.envoy)).await.expect("connected");
    let renewed = certificate(&pki.renew(dir.path()).cert);
    let shown = async || pki.shown(&address).await.filter(|shown| *shown == renewed);
    wait_for("the renewed certificate", SOON, shown).await.expect("shown");

    let newer = Pki::write(dir.path());
    let served = async || newer.serves(&address, Some(&newer.envoy)).await.then_some(());
    wait_for("service under the new authority", SOON, served).await.expect("served");
    assert!(!newer.serves(&address, Some(&pki.envoy)).await, "a certificate of the old one is worth nothing");
    assert!(is_served(open).await, "what was open stays open");
    assert!(tollgate.terminate().await.expect("stopped").success());
}

#[tokio::test]
async fn a_bad_renewal_changes_nothing_is_told_once_and_the_next_good_one_is_taken() {
    let dir = folder();
    let pki = Pki::write(dir.path());
    let (tollgate, address) = alone(dir.path()).await;
    let before = pki.shown(&address).await.expect("shown");
    let told = |text: &str| tollgate.lines().iter().filter(|line| line.contains(text)).count();
    std::fs::write(dir.path().join("tollgate.key"), &pki.envoy.key).expect("written");
    let judged = async || tollgate.metric("tollgate_tls_reloads_total").await.filter(|reloads| *reloads > 0.0);
    wait_for("the bad renewal to be judged", SOON, judged).await.expect("judged");
    assert!(pki.serves(&address, Some(&pki.envoy)).await);
    assert_eq!(pki.shown(&address).await.as_ref(), Some(&before));
    let renewed = certificate(&pki.renew(dir.path()).cert);
    let shown = async || pki.shown(&address).await.filter(|shown| *shown == renewed);
    wait_for("the renewed certificate", SOON, shown).await.expect("shown");
    assert_eq!(told("TOLLGATE_TLS_KEY: is not the key of the certificate"), 1, "{:#?}", tollgate.lines());
    assert!(tollgate.terminate().await.expect("stopped").success());
}

#[test]
fn every_wrong_file_stops_the_start_with_one_line_that_names_its_variable() {
    let dir = folder();
    let pki = Pki::write(dir.path());
    let wrong = dir.path().join("wrong");
    let said = |arguments: &[&str], variable: &str, value: Option<&Path>, listen: &str| {
        let mut command = Command::new(binary());
        command.args(arguments).env_clear().envs(settings(dir.path())).env("TOLLGATE_GRPC_LISTEN", listen);
        match value {
            Some(path) => command.env(variable, path),
            None => command.env_remove(variable),
        };
        let output = command.output().expect("tollgate runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{variable}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(&format!("{variable}: ")), "{variable}: {said}");
        said
    };
    let loopback = "127.0.0.1:0";
    for command in [&["serve"][..], &["check-config"]] {
        for (variable, _) in settings(dir.path()) {
            let missing = said(command, variable, Some(&wrong), loopback);
            assert!(missing.contains("No such file"), "{missing}");
            said(command, variable, None, loopback);
            said(command, variable, Some(Path::new("/dev/null")), loopback);
        }
        std::fs::write(&wrong, &pki.envoy.key).expect("written");
        let mismatch = said(command, "TOLLGATE_TLS_KEY", Some(&wrong), loopback);
        assert!(mismatch.contains("is not the key"), "{mismatch}");
        std::fs::write(&wrong, "").expect("written");
        said(command, "TOLLGATE_TLS_CLIENT_CA", Some(&wrong), loopback);
        std::fs::remove_file(&wrong).expect("removed");
        let cert = dir.path().join("tollgate.pem");
        said(command, "TOLLGATE_TLS_CERT", Some(&cert), "unix:/run/tollgate.sock");
    }
}

#[test]
fn with_mtls_tollgate_may_listen_where_other_machines_reach_it() {
    let dir = folder();
    let _pki = Pki::write(dir.path());
    let mut command = Command::new(binary());
    command.arg("check-config").env_clear().env("TOLLGATE_GRPC_LISTEN", "0.0.0.0:9001");
    assert!(!command.output().expect("tollgate runs").status.success());
    let output = command.envs(settings(dir.path())).output().expect("tollgate runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    for (variable, path) in settings(dir.path()) {
        assert!(said.contains(&format!("{variable}={path}  # environment\n")), "{said}");
    }
}

/// Writes the two files that envoy/README.md shows, for the certificates of this folder.
pub fn write_sds(dir: &Path) {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/README.md")).expect("there");
    for name in ["tollgate-cert.yaml", "tollgate-ca.yaml"] {
        let (_, rest) = readme.split_once(&format!("```yaml\n# {name}\n")).expect("it is in the README");
        let (text, _) = rest.split_once("```").expect("it ends");
        let text = text.replace("/etc/envoy/tls", dir.to_str().expect("text"));
        std::fs::write(dir.join(name), text).expect("written");
    }
}

#[tokio::test]
async fn an_envoy_with_watched_certificates_takes_up_renewed_ones_without_a_restart() {
    let dir = folder();
    let _pki = Pki::write(dir.path());
    write_sds(dir.path());
    let flags = ["--tollgate-tls-sds".to_owned(), dir.path().to_str().expect("text").to_owned()];
    let (mut edge, address) = edge(dir.path(), &flags).await;
    edge.submit(ALICE.token, 1).await;
    // A new authority altogether; old certificates are worth nothing to either side.
    edge.stack.tollgate.kill_hard().await.expect("killed");
    let newer = Pki::write(dir.path());
    edge.stack.tollgate.restart().await.expect("restarted");
    assert!(newer.serves(&address, Some(&newer.envoy)).await);
    let passes = async || (answer(edge.submission(ALICE.token, 1)).await.status == 201).then_some(());
    wait_for("Envoy to have the new certificates", SOON, passes).await.expect("a submission passes");
    edge.finish_unbilled().await;
}
