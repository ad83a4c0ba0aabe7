//! Where the gRPC listener is bound, and what guards it there.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Error, address, given, wrong};
use crate::envoy_config::LONGEST_SOCKET_PATH;

/// Names the file of the certificate, with its chain, that Tollgate shows.
pub const TLS_CERT: &str = "TOLLGATE_TLS_CERT";
/// Names the file of that certificate's key.
pub const TLS_KEY: &str = "TOLLGATE_TLS_KEY";
/// Names the file of the authorities one of which must have signed a client's certificate.
pub const TLS_CLIENT_CA: &str = "TOLLGATE_TLS_CLIENT_CA";

/// Where the gRPC listener is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The PEM files of mTLS. What they hold is read at start and not here: they are rewritten while Tollgate runs, and a
/// `tollgate healthcheck` in that moment must not fail over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
}

/// All three files or none.
pub(super) fn tls_files(
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
) -> Result<Option<TlsFiles>, Error> {
    let files = [(TLS_CERT, given(cert)), (TLS_KEY, given(key)), (TLS_CLIENT_CA, given(client_ca))];
    let set = files.iter().find(|(_, path)| path.is_some()).map(|(variable, _)| *variable);
    let missing = files.iter().find(|(_, path)| path.is_none()).map(|(variable, _)| *variable);
    if let (Some(set), Some(missing)) = (set, missing) {
        return Err(wrong(
            missing,
            format!("is not set, but {set} is: mTLS wants all of {TLS_CERT}, _KEY and _CLIENT_CA"),
        ));
    }
    let [cert, key, client_ca] = files.map(|(_, path)| path.map(PathBuf::from));
    Ok(cert.zip(key).zip(client_ca).map(|((cert, key), client_ca)| TlsFiles { cert, key, client_ca }))
}

/// Whoever reaches the gRPC port can write bills, so what another machine could reach wants mTLS, or must be asked for.
pub(super) fn grpc_listen(
    value: Option<String>,
    tls: Option<&TlsFiles>,
    insecure: bool,
    warnings: &mut Vec<String>,
) -> Result<Listen, Error> {
    const VARIABLE: &str = "TOLLGATE_GRPC_LISTEN";
    let text = given(value).unwrap_or_else(|| "127.0.0.1:9001".to_owned());
    if let Some(path) = text.strip_prefix("unix:") {
        // bind's own error would not say how long it may be.
        if !path.starts_with('/') || path.len() > LONGEST_SOCKET_PATH {
            let reason = format!("unix: wants an absolute path of at most {LONGEST_SOCKET_PATH} bytes");
            return Err(wrong(VARIABLE, reason));
        }
        if tls.is_some() {
            return Err(wrong(TLS_CERT, format!("mTLS is for TCP, and {VARIABLE} is a Unix socket, which needs none")));
        }
        return Ok(Listen::Unix(PathBuf::from(path)));
    }
    let address = address(VARIABLE, &text)?;
    if !address.ip().is_loopback() && tls.is_none() {
        if !insecure {
            return Err(wrong(
                VARIABLE,
                format!(
                    "{address} can be reached from other machines, and whoever reaches it can write bills: \
                     use a loopback address or unix:/path, or set up mTLS with {TLS_CERT}, _KEY and _CLIENT_CA, \
                     or set TOLLGATE_INSECURE_LISTEN=on"
                ),
            ));
        }
        warnings.push(format!("TOLLGATE_INSECURE_LISTEN: whoever reaches {address} can write bills"));
    }
    Ok(Listen::Tcp(address))
}
