//! A certificate authority of one's own, for mTLS between Envoy and Tollgate.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};

/// Signs certificates; gone with its handle.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// A new one with a key of its own. The name may be another one's, too.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().context("cannot make a key")?;
        let pem = params.self_signed(&key).context("cannot sign the authority's own certificate")?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Its own certificate, as PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A new certificate for these host names and IP addresses, good to the end of `last_year`.
    ///
    /// # Errors
    /// When a name is none, or there is no randomness.
    pub fn issue(&self, names: &[&str], last_year: i32) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).context("not a name for a certificate")?;
        params.not_after = date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().context("cannot make a key")?;
        let cert = params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Identity { cert: cert.pem(), key: key.serialize_pem() })
    }
}

impl Identity {
    /// Writes `NAME.pem` and `NAME.key` into a folder, each by a rename; their paths.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        replace(&cert, &self.cert)?;
        replace(&key, &self.key)?;
        Ok((cert, key))
    }
}

/// Puts a file in the place of another one, so that nobody sees half of it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
