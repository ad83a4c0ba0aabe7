//! Tollgate as Envoy reaches it: one endpoint or several, in the clear or with mTLS.
//!
//! All endpoints of a cluster are found in the same way. With one host name among them it is by looking up, which
//! leaves IP addresses as they are; a Unix socket cannot be looked up.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{AddressError, Endpoint, Error, Flag, Host, Reached, socket};

/// How Envoy speaks to Tollgate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    secrets: Secrets,
    /// The name or IP address that must be in Tollgate's certificate; without it the host that was connected to.
    name: Option<String>,
}

/// Where Envoy has its own certificate, its key, and the CA of Tollgate's certificate from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Secrets {
    /// PEM files, read when Envoy starts.
    Files { ca: String, cert: String, key: String },
    /// A folder with Envoy's own descriptions of them, which it watches.
    Sds(String),
}

/// The flags, as they were given.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsFlags {
    /// PEM file of the CA of Tollgate's certificate, as Envoy finds it; with it, and the next two, Envoy speaks mTLS to Tollgate
    #[arg(long, value_name = "PATH")]
    pub tollgate_tls_ca: Option<String>,
    /// PEM file of the certificate that Envoy shows Tollgate
    #[arg(long, value_name = "PATH")]
    pub tollgate_tls_cert: Option<String>,
    /// PEM file of that certificate's key
    #[arg(long, value_name = "PATH")]
    pub tollgate_tls_key: Option<String>,
    /// Instead of the three: a folder with tollgate-cert.yaml and tollgate-ca.yaml, which Envoy watches for renewals
    #[arg(long, value_name = "DIR")]
    pub tollgate_tls_sds: Option<String>,
    /// The name that must be in Tollgate's certificate [default: the hosts given with --tollgate]
    #[arg(long, value_name = "NAME")]
    pub tollgate_tls_name: Option<String>,
}

/// What is wrong with the flags of mTLS.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("is missing: mTLS wants --tollgate-tls-ca, --tollgate-tls-cert and --tollgate-tls-key")]
    Missing,
    #[error("is in place of --tollgate-tls-ca, --tollgate-tls-cert and --tollgate-tls-key: give it or them")]
    Both,
    #[error("the path {0:?} is not absolute; Envoy's working folder may be any")]
    RelativePath(String),
    #[error("the path {0:?} is not plain text")]
    UnprintablePath(String),
    #[error("{0:?} is neither a host name nor an IP address")]
    BadName(String),
    #[error("mTLS is for TCP, and {0} is a Unix socket, which needs none")]
    Socket(String),
}

impl TlsFlags {
    /// All of what belongs together, or none of it.
    pub fn parse(self) -> Result<Option<Tls>, Error> {
        let files = [
            (Flag::TollgateTlsCa, self.tollgate_tls_ca),
            (Flag::TollgateTlsCert, self.tollgate_tls_cert),
            (Flag::TollgateTlsKey, self.tollgate_tls_key),
        ];
        let missing = files.iter().find(|(_, path)| path.is_none()).map(|(flag, _)| *flag);
        let some = files.iter().any(|(_, path)| path.is_some());
        for (flag, path) in &files {
            path.as_deref().map_or(Ok(()), check_path).map_err(flag.wrong_tls())?;
        }
        let [ca, cert, key] = files.map(|(_, path)| path);
        let secrets = match (self.tollgate_tls_sds, ca.zip(cert).zip(key)) {
            (Some(_), _) if some => return Err(Flag::TollgateTlsSds.wrong_tls()(TlsError::Both)),
            (Some(folder), _) => {
                check_path(&folder).map_err(Flag::TollgateTlsSds.wrong_tls())?;
                Secrets::Sds(folder.trim_end_matches('/').to_owned())
            }
            (None, Some(((ca, cert), key))) => Secrets::Files { ca, cert, key },
            (None, None) => {
                return match missing.filter(|_| some || self.tollgate_tls_name.is_some()) {
                    Some(flag) => Err(flag.wrong_tls()(TlsError::Missing)),
                    None => Ok(None),
                };
            }
        };
        if let Some(name) = &self.tollgate_tls_name {
            let bad = |_| Flag::TollgateTlsName.wrong_tls()(TlsError::BadName(name.clone()));
            Host::parse(name).map_err(bad)?;
        }
        Ok(Some(Tls { secrets, name: self.tollgate_tls_name }))
    }
}

fn check_path(path: &str) -> Result<(), TlsError> {
    if path.chars().any(char::is_control) {
        return Err(TlsError::UnprintablePath(path.to_owned()));
    }
    if !path.starts_with('/') {
        return Err(TlsError::RelativePath(path.to_owned()));
    }
    Ok(())
}

/// The hosts of both clusters, and how they are found.
pub(super) fn reached(endpoints: &[Endpoint]) -> Result<Reached, AddressError> {
    let mut hosts = Vec::new();
    let mut discovery = Value::from("STATIC");
    let mut socket_path = None;
    for (at, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..at].contains(endpoint) {
            return Err(AddressError::Twice(endpoint.to_string()));
        }
        let one = match endpoint {
            Endpoint::Tcp(address) => address.reached()?,
            Endpoint::Unix(path) => {
                socket_path = Some(endpoint.to_string());
                socket(path)?
            }
        };
        if one.discovery != "STATIC" {
            discovery = one.discovery;
        }
        hosts.push(json!({"endpoint": {"address": one.address}}));
    }
    match socket_path {
        Some(path) if discovery != "STATIC" => Err(AddressError::SocketAmongNames(path)),
        _ => Ok(Reached { address: hosts.into(), discovery }),
    }
}

/// The clusters' `transport_socket`; null, which is as if it were not there, for none.
pub(super) fn transport_socket(tls: Option<&Tls>, endpoints: &[Endpoint]) -> Result<Value, Error> {
    let Some(Tls { secrets, name }) = tls else { return Ok(Value::Null) };
    let mut names = Vec::new();
    for endpoint in endpoints {
        match endpoint {
            Endpoint::Tcp(address) if !names.contains(&address.host) => names.push(address.host.clone()),
            Endpoint::Tcp(_) => {}
            Endpoint::Unix(_) => {
                let flag = if matches!(secrets, Secrets::Sds(_)) { Flag::TollgateTlsSds } else { Flag::TollgateTlsCa };
                return Err(flag.wrong_tls()(TlsError::Socket(endpoint.to_string())));
            }
        }
    }
    if let Some(name) = name {
        names = vec![name.clone()];
    }
    let alternatives: Vec<Value> = names.iter().map(|name| alternative(name)).collect();
    let verified = json!({"match_typed_subject_alt_names": alternatives});
    // TLS 1.3 is not the default of every Envoy's clients.
    let versions = json!({"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"});
    let mut common = json!({"alpn_protocols": ["h2"], "tls_params": versions});
    match secrets {
        Secrets::Files { ca, cert, key } => {
            common["tls_certificates"] =
                json!([{"certificate_chain": {"filename": cert}, "private_key": {"filename": key}}]);
            common["validation_context"] = verified;
            common["validation_context"]["trusted_ca"] = json!({"filename": ca});
        }
        Secrets::Sds(folder) => {
            let secret = |name: &str| {
                let source = json!({"path": format!("{folder}/{name}.yaml")});
                json!({"name": name, "sds_config": {"path_config_source": source, "resource_api_version": "V3"}})
            };
            common["tls_certificate_sds_secret_configs"] = json!([secret("tollgate-cert")]);
            common["combined_validation_context"] = json!({
                "default_validation_context": verified,
                "validation_context_sds_secret_config": secret("tollgate-ca"),
            });
        }
    }
    let mut context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": common,
    });
    // One name can be asked for by SNI; an address cannot.
    if let [name] = names.as_slice()
        && name.parse::<IpAddr>().is_err()
    {
        context["sni"] = name.trim_end_matches('.').into();
    }
    Ok(json!({"name": "envoy.transport_sockets.tls", "typed_config": context}))
}

/// What of a certificate must match.
fn alternative(name: &str) -> Value {
    match name.parse::<IpAddr>() {
        Ok(address) => json!({"san_type": "IP_ADDRESS", "matcher": {"exact": address.to_string()}}),
        Err(_) => json!({"san_type": "DNS", "matcher": {"exact": name.trim_end_matches('.')}}),
    }
}

impl Flag {
    fn wrong_tls(self) -> impl FnOnce(TlsError) -> Error {
        move |problem| Error::Tls { flag: self, problem }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) if address.host.contains(':') => write!(f, "[{}]:{}", address.host, address.port),
            Self::Tcp(address) => write!(f, "{}:{}", address.host, address.port),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
