//! mTLS on the gRPC listener: [`Certificates`] from three PEM files, taken up anew when the files change, and the
//! handshakes of those who connect.
//!
//! Who has no certificate of the configured CA gets no service: whoever reaches Check and the access log can write
//! bills. TLS 1.2 and 1.3, HTTP/2. Nothing is resumed: a session that outlived its CA or its certificate would go
//! around both, and Envoy keeps its connections for hours anyway.
//!
//! The files are compared by what they hold, so it does not matter whether they were rewritten, renamed or reached
//! by another symlink. A change is judged when two looks in a row saw the same, so that one which is under way is
//! not taken for a mistake; then it is taken as a whole or not at all, and what is in force stays in force until
//! there is something better. Connections that are open keep what they were made with.
//!
//! What it does not do: revocation lists, telling one client of the CA from another, encrypted keys, guarding a
//! certificate's expiry (an expired one is still served; a metric tells when it ends).

mod handshakes;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;

use crate::config::{TLS_CERT, TLS_CLIENT_CA, TLS_KEY, TlsFiles};
use crate::lifecycle::TaskError;
use crate::telemetry::{OutcomeLabels, names, zeros};

pub use handshakes::Handshakes;

/// More than any chain or bundle of authorities has; what is larger was named by mistake.
const LARGEST_FILE: u64 = 4 * 1024 * 1024;

/// Why the files cannot be used. Displays as one line that names the variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {reason}")]
pub struct Error {
    variable: &'static str,
    reason: String,
}

/// What the three files held when they were looked at, or why one could not be read. It has the key, so no `Debug`.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    cert: Result<Vec<u8>, String>,
    key: Result<Vec<u8>, String>,
    client_ca: Result<Vec<u8>, String>,
}

/// Good contents, ready for connections.
struct Usable {
    config: Arc<ServerConfig>,
    /// The end of the certificate that is shown.
    not_after: Timestamp,
}

/// What is in force, and the files that it came from.
pub struct Certificates {
    files: TlsFiles,
    /// What was judged last, whether it could be used or not.
    judged: Contents,
    not_after: Timestamp,
    in_force: watch::Sender<Arc<ServerConfig>>,
}

impl Certificates {
    /// Reads and judges the files.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(files: &TlsFiles) -> Result<Self, Error> {
        let judged = Contents::read(files);
        let Usable { config, not_after } = judged.judge()?;
        Ok(Self { files: files.clone(), judged, not_after, in_force: watch::Sender::new(config) })
    }

    /// What a new connection is to be met with, now and after each change.
    #[must_use]
    pub fn in_force(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.in_force.subscribe()
    }

    /// Looks at the files every so often, and at SIGHUP, and takes up what has changed, until the stop. SIGHUP counts as the
    /// second look: by it somebody says that the change is done.
    ///
    /// # Errors
    /// When signals cannot be listened for; a bad file is told, counted and waited out.
    pub async fn keep(
        mut self,
        every: Duration,
        metrics: TlsMetrics,
        stop: CancellationToken,
    ) -> Result<(), TaskError> {
        tracing::info!("mTLS: serving with a certificate that is valid until {}", self.not_after);
        metrics.not_after.set(self.not_after.as_second());
        let mut last_seen = self.judged.clone();
        let mut hang_up = signal(SignalKind::hangup())?;
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(()) = hang_up.recv() => true,
                () = tokio::time::sleep(every) => false,
            };
            let files = self.files.clone();
            let seen = tokio::task::spawn_blocking(move || Contents::read(&files)).await?;
            let is_change = seen != self.judged;
            if is_change && (asked || seen == last_seen) {
                self.take(seen.clone(), &metrics);
            }
            if asked {
                let found = if is_change { "have changed" } else { "are as they were" };
                tracing::info!("SIGHUP: looked at the TLS files, they {found}");
            }
            last_seen = seen;
        }
    }

    /// Judges a change, once.
    fn take(&mut self, seen: Contents, metrics: &TlsMetrics) {
        let outcome = match seen.judge() {
            Ok(Usable { config, not_after }) => {
                self.in_force.send_replace(config);
                self.not_after = not_after;
                metrics.not_after.set(not_after.as_second());
                tracing::info!("mTLS: new connections get the changed certificates, valid until {not_after}");
                "ok"
            }
            Err(error) => {
                let still = self.not_after;
                tracing::error!(
                    variable = error.variable,
                    "{error}; the certificates in force stay, valid until {still}"
                );
                "failed"
            }
        };
        metrics.reloads.get_or_create(&OutcomeLabels { outcome }).inc();
        self.judged = seen;
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Self {
        Self { cert: read(&files.cert), key: read(&files.key), client_ca: read(&files.client_ca) }
    }

    /// Whether they can be used together.
    fn judge(&self) -> Result<Usable, Error> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(TLS_CERT, &self.cert)?;
        let not_after = end_of(&chain[0]).map_err(wrong(TLS_CERT))?;
        let certified = certified(&provider, chain, &self.key)?;
        let mut authorities = RootCertStore::empty();
        for authority in certificates(TLS_CLIENT_CA, &self.client_ca)? {
            authorities.add(authority).map_err(wrong(TLS_CLIENT_CA))?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider.clone())
            .build()
            .map_err(wrong(TLS_CLIENT_CA))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong(TLS_CERT))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Usable { config: Arc::new(config), not_after })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let cannot = |error| format!("cannot read {shown}: {error}");
    // Before it is opened: a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(format!("{shown} is no file"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(format!("{shown} is too large to be a PEM file of certificates"));
    }
    Ok(bytes)
}

fn wrong<E: ToString>(variable: &'static str) -> impl FnOnce(E) -> Error {
    move |reason| Error { variable, reason: reason.to_string() }
}

fn held<'a>(variable: &'static str, file: &'a Result<Vec<u8>, String>) -> Result<&'a [u8], Error> {
    file.as_deref().map_err(wrong(variable))
}

/// The certificates of a file, at least one.
fn certificates(variable: &'static str, file: &Result<Vec<u8>, String>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(held(variable, file)?).collect::<Result<_, _>>().map_err(wrong(variable))?;
    if certificates.is_empty() {
        return Err(wrong(variable)("the file holds no certificate (PEM)"));
    }
    Ok(certificates)
}

/// The certificate with its key, if it is its key.
fn certified(
    provider: &CryptoProvider,
    chain: Vec<CertificateDer<'static>>,
    key: &Result<Vec<u8>, String>,
) -> Result<CertifiedKey, Error> {
    let key = PrivateKeyDer::from_pem_slice(held(TLS_KEY, key)?).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong(TLS_KEY)("the file holds no private key (PEM, not encrypted)".to_owned()),
        other => wrong(TLS_KEY)(other.to_string()),
    })?;
    let certified = CertifiedKey::new(chain, provider.key_provider.load_private_key(key).map_err(wrong(TLS_KEY))?);
    match certified.keys_match() {
        // Some keys cannot tell; then the first handshake would.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(wrong(TLS_KEY)(format!("is not the key of the certificate in {TLS_CERT}")))
        }
        Err(error) => Err(wrong(TLS_CERT)(error)),
    }
}

fn end_of(certificate: &CertificateDer<'_>) -> Result<Timestamp, String> {
    // Raw: what TLS accepts is not refused here over the form of a serial number.
    let certificate: CertificateInner<Raw> =
        Decode::from_der(certificate).map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let end = certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs();
    // RFC 5280's "no end" is in the year 9999, which is also the last one that fits.
    Ok(i64::try_from(end).ok().and_then(|end| Timestamp::from_second(end).ok()).unwrap_or(Timestamp::MAX))
}

/// What is measured of mTLS. Registered only where there is mTLS: an expiry of 0 would look like one.
#[derive(Debug, Clone)]
pub struct TlsMetrics {
    handshakes: Family<OutcomeLabels, Counter>,
    under_way: Gauge,
    reloads: Family<OutcomeLabels, Counter>,
    not_after: Gauge,
}

impl TlsMetrics {
    /// Registers every family.
    pub fn register(registry: &mut Registry, not_after: Gauge) -> Self {
        let metrics = Self {
            handshakes: zeros(names::TLS_HANDSHAKES, |outcome| OutcomeLabels { outcome }),
            under_way: Gauge::default(),
            reloads: zeros(names::TLS_RELOADS, |outcome| OutcomeLabels { outcome }),
            not_after,
        };
        let m = &metrics;
        registry.register("tollgate_tls_handshakes", "TLS handshakes, by outcome", m.handshakes.clone());
        registry.register("tollgate_tls_handshakes_under_way", "TLS handshakes under way", m.under_way.clone());
        registry.register("tollgate_tls_reloads", "Changes of the TLS files, by outcome", m.reloads.clone());
        registry.register(
            "tollgate_tls_certificate_not_after_seconds",
            "When the served certificate ends, in seconds since 1970",
            m.not_after.clone(),
        );
        metrics
    }
}

#[cfg(test)]
mod tests;
