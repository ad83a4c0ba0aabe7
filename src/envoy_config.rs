//! The Envoy bootstrap: one template, [`Addresses`] put in, one text out.
//!
//! The template is `envoy/envoy.yaml`, compiled in. Its placeholders are filled with JSON values, which are YAML flow
//! values too, so nothing in an address can end its value and begin another one; what was filled in is never looked
//! at again, so an address cannot name a placeholder either. Equal addresses give equal texts.
//!
//! Everything an address can get wrong is said here, by the name of the flag it came from, rather than by Envoy at its
//! start. Nothing is resolved and nothing is opened: a host name goes to Envoy as it is, and Envoy looks it up again
//! and again.

mod tollgate;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Value, json};

pub use tollgate::{Tls, TlsError, TlsFlags};

const TEMPLATE: &str = include_str!("../envoy/envoy.yaml");

/// `sun_path` of Linux holds 108 bytes, the last of them a zero.
pub const LONGEST_SOCKET_PATH: usize = 107;

/// Where everything is that the edge talks to or listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where clients reach the edge; an IP address, port 0 for any.
    pub listen: HostPort,
    /// Envoy's admin interface; an IP address, port 0 for any.
    pub admin: HostPort,
    /// FlowMesh, as Envoy reaches it.
    pub upstream: HostPort,
    /// The gRPC listeners of every Tollgate, as Envoy reaches them.
    pub tollgate: Vec<Endpoint>,
    /// With it Envoy speaks mTLS to all of them.
    pub tls: Option<Tls>,
}

/// A host, without the brackets of an IPv6 address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// A TCP address, or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(HostPort),
    Unix(PathBuf),
}

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    Listen,
    Admin,
    Upstream,
    Tollgate,
    TollgateTlsCa,
    TollgateTlsCert,
    TollgateTlsKey,
    TollgateTlsSds,
    TollgateTlsName,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{flag}: {problem}")]
    Address { flag: Flag, problem: AddressError },
    #[error("{flag}: {problem}")]
    Tls { flag: Flag, problem: TlsError },
    /// The template is not as this module expects it: a mistake of ours.
    #[error("envoy.yaml: `{0}` is no placeholder")]
    Placeholder(String),
}

/// What is wrong with one address. Quoted parts are escaped, so the message is one line whatever was given.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} has no port; write host:port")]
    MissingPort(String),
    #[error("{0:?} is not a port; write host:port with a port of at most 65535")]
    BadPort(String),
    #[error("port 0 means any free port and cannot be connected to")]
    PortZero,
    #[error("the host is empty; write host:port")]
    EmptyHost,
    #[error("{0:?} is a URL; write host:port")]
    Url(String),
    #[error("an IPv6 address goes in brackets: {0:?} should look like [::1]:8000")]
    Unbracketed(String),
    #[error("{0:?} is not an IPv6 address")]
    BadIpv6(String),
    #[error("{0:?} is neither an IP address nor a host name")]
    BadHost(String),
    #[error("Envoy cannot listen on the host name {0:?}; give an IP address (0.0.0.0 for all of IPv4) or localhost")]
    ListenOnName(String),
    #[error("{0} is an address to listen on, not one to connect to")]
    Unspecified(IpAddr),
    #[error("the socket path {0:?} is not absolute; write unix:/path")]
    RelativePath(String),
    #[error("the socket path {0:?} names no file")]
    DirectoryPath(String),
    #[error("the socket path {0:?} is not plain UTF-8 text")]
    UnprintablePath(String),
    #[error("the socket path has {0} bytes; Linux allows {LONGEST_SOCKET_PATH}")]
    LongPath(usize),
    #[error("{0} is given twice")]
    Twice(String),
    #[error("{0} is a Unix socket, and another Tollgate is a host name: Envoy cannot look up both in one cluster")]
    SocketAmongNames(String),
}

impl Addresses {
    /// Reads the texts of the command line; an error names the flag.
    pub fn parse(
        listen: &str,
        admin: &str,
        upstream: &str,
        tollgate: &[impl AsRef<str>],
        tls: TlsFlags,
    ) -> Result<Self, Error> {
        let endpoint = |text: &str| text.parse().map_err(Flag::Tollgate.wrong());
        Ok(Self {
            listen: listen.parse().map_err(Flag::Listen.wrong())?,
            admin: admin.parse().map_err(Flag::Admin.wrong())?,
            upstream: upstream.parse().map_err(Flag::Upstream.wrong())?,
            tollgate: tollgate.iter().map(|text| endpoint(text.as_ref())).collect::<Result<_, _>>()?,
            tls: tls.parse()?,
        })
    }
}

/// The complete bootstrap.
pub fn render(addresses: &Addresses) -> Result<String, Error> {
    let listen = addresses.listen.bound().map_err(Flag::Listen.wrong())?;
    let admin = addresses.admin.bound().map_err(Flag::Admin.wrong())?;
    let upstream = addresses.upstream.reached().map_err(Flag::Upstream.wrong())?;
    let tollgate = tollgate::reached(&addresses.tollgate).map_err(Flag::Tollgate.wrong())?;
    let tls = tollgate::transport_socket(addresses.tls.as_ref(), &addresses.tollgate)?;

    fill(TEMPLATE, |name| match name {
        "listen" => Some(&listen),
        "admin" => Some(&admin),
        "upstream" => Some(&upstream.address),
        "upstream_discovery" => Some(&upstream.discovery),
        "tollgate" => Some(&tollgate.address),
        "tollgate_discovery" => Some(&tollgate.discovery),
        "tollgate_tls" => Some(&tls),
        _ => None,
    })
}

/// What Envoy needs to know of something it connects to.
struct Reached {
    address: Value,
    /// How the cluster finds its hosts: an IP address is one host, a name is looked up again and again.
    discovery: Value,
}

impl HostPort {
    /// The address of something that Envoy binds.
    fn bound(&self) -> Result<Value, AddressError> {
        let address = match Host::parse(&self.host)? {
            Host::Ip(address) => address,
            Host::Name(name) if name.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST.into(),
            Host::Name(name) => return Err(AddressError::ListenOnName(name.to_owned())),
        };
        let mut socket = json!({"address": address.to_string(), "port_value": self.port});
        if address == IpAddr::from(Ipv6Addr::UNSPECIFIED) {
            socket["ipv4_compat"] = true.into(); // [::] means both families, as it does elsewhere on Linux
        }
        Ok(json!({"socket_address": socket}))
    }

    /// The address of something that Envoy connects to.
    fn reached(&self) -> Result<Reached, AddressError> {
        let (host, discovery) = match Host::parse(&self.host)? {
            Host::Ip(address) if address.is_unspecified() => return Err(AddressError::Unspecified(address)),
            Host::Ip(address) => (address.to_string(), "STATIC"),
            Host::Name(name) => (name.to_owned(), "STRICT_DNS"),
        };
        if self.port == 0 {
            return Err(AddressError::PortZero);
        }
        Ok(Reached {
            address: json!({"socket_address": {"address": host, "port_value": self.port}}),
            discovery: discovery.into(),
        })
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    /// Port 0 is read here and refused by [`render`] where it makes no sense.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains("://") {
            return Err(AddressError::Url(text.to_owned()));
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (inside, after) = rest.split_once(']').ok_or_else(|| AddressError::BadIpv6(text.to_owned()))?;
            inside.parse::<Ipv6Addr>().map_err(|_| AddressError::BadIpv6(inside.to_owned()))?;
            let port = after.strip_prefix(':').ok_or_else(|| AddressError::MissingPort(text.to_owned()))?;
            (inside, port)
        } else {
            let (host, port) = text.rsplit_once(':').ok_or_else(|| AddressError::MissingPort(text.to_owned()))?;
            if host.contains(':') || text.parse::<Ipv6Addr>().is_ok() {
                return Err(AddressError::Unbracketed(text.to_owned()));
            }
            (host, port)
        };
        if port.is_empty() {
            return Err(AddressError::MissingPort(text.to_owned()));
        }
        // u16's own parser would also take "+80".
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(AddressError::BadPort(port.to_owned()));
        }
        Host::parse(host)?;
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(|_| AddressError::BadPort(port.to_owned()))? })
    }
}

impl FromStr for Endpoint {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) => {
                let path = PathBuf::from(path);
                socket(&path)?;
                Ok(Self::Unix(path))
            }
            None => text.parse().map(Self::Tcp),
        }
    }
}

enum Host<'a> {
    Ip(IpAddr),
    Name(&'a str),
}

impl<'a> Host<'a> {
    fn parse(host: &'a str) -> Result<Self, AddressError> {
        if host.is_empty() {
            return Err(AddressError::EmptyHost);
        }
        if let Ok(address) = host.parse() {
            return Ok(Self::Ip(address));
        }
        let bad = || AddressError::BadHost(host.to_owned());
        let name = host.strip_suffix('.').unwrap_or(host);
        // Underscores are no host names by the book, but names of containers have them.
        let label = |part: &str| {
            (1..=63).contains(&part.len())
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(bad());
        }
        // "127.1" or "10.0.0.256": an IP address was meant, and a resolver would read it in its own way.
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(bad());
        }
        Ok(Self::Name(host))
    }
}

/// A Unix socket that Envoy connects to.
fn socket(path: &Path) -> Result<Reached, AddressError> {
    let shown = || path.to_string_lossy().into_owned();
    let text = path
        .to_str()
        .filter(|text| !text.chars().any(char::is_control))
        .ok_or_else(|| AddressError::UnprintablePath(shown()))?;
    if !path.is_absolute() {
        return Err(AddressError::RelativePath(shown())); // Envoy's working directory is not ours
    }
    if text.ends_with('/') {
        return Err(AddressError::DirectoryPath(shown()));
    }
    if text.len() > LONGEST_SOCKET_PATH {
        return Err(AddressError::LongPath(text.len()));
    }
    Ok(Reached { address: json!({"pipe": {"path": text}}), discovery: "STATIC".into() })
}

/// Replaces each `${name}` in one pass.
fn fill<'a>(template: &str, value: impl Fn(&str) -> Option<&'a Value>) -> Result<String, Error> {
    let mut filled = String::with_capacity(template.len() + 512);
    let mut rest = template;
    while let Some(start) = rest.find("${") {
        filled.push_str(&rest[..start]);
        let placeholder = &rest[start..];
        let line = placeholder.lines().next().unwrap_or(placeholder);
        let end = line.find('}').ok_or_else(|| Error::Placeholder(line.to_owned()))?;
        let value = value(&placeholder[2..end]).ok_or_else(|| Error::Placeholder(placeholder[..=end].to_owned()))?;
        filled.push_str(&value.to_string());
        rest = &placeholder[end + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

impl Flag {
    fn wrong(self) -> impl FnOnce(AddressError) -> Error {
        move |problem| Error::Address { flag: self, problem }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen => "--listen",
            Self::Admin => "--admin",
            Self::Upstream => "--upstream",
            Self::Tollgate => "--tollgate",
            Self::TollgateTlsCa => "--tollgate-tls-ca",
            Self::TollgateTlsCert => "--tollgate-tls-cert",
            Self::TollgateTlsKey => "--tollgate-tls-key",
            Self::TollgateTlsSds => "--tollgate-tls-sds",
            Self::TollgateTlsName => "--tollgate-tls-name",
        })
    }
}

#[cfg(test)]
mod tests;
