//! The names by which people may ask for the admin listener's pages.

use std::net::IpAddr;

use super::{Error, given, wrong};

const VARIABLE: &str = "TOLLGATE_ADMIN_HOSTS";
/// Ends of names that nobody can have in the public DNS.
const PRIVATE: [&str; 3] = [".localhost", ".local", ".internal"];

/// Names that are known beside the addresses, and those that can only be somebody's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdminHosts(Vec<String>);

impl AdminHosts {
    pub(super) fn parse(value: Option<String>) -> Result<Self, Error> {
        let value = given(value).unwrap_or_default();
        let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
        let known = names.map(|name| if is_name(name) { Ok(plain(name)) } else { Err(wrong(VARIABLE, no_name(name))) });
        Ok(Self(known.collect::<Result<_, _>>()?))
    }

    /// Whether a request with this `Host`, of which the port may be part, can be meant for this listener. Whoever owns a
    /// public name can have it resolve to this machine, and so read with somebody else's browser what is served here; they
    /// own no address, no name without a dot, and no name of a private domain.
    #[must_use]
    pub fn knows(&self, host: &str) -> bool {
        let Some(name) = without_port(host) else { return false };
        if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return true;
        }
        let name = plain(name);
        is_name(&name)
            && (!name.contains('.') || PRIVATE.iter().any(|end| name.ends_with(end)) || self.0.contains(&name))
    }
}

impl std::fmt::Display for AdminHosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

fn no_name(name: &str) -> String {
    format!("{name:?} is no host name; it has no scheme, no port and no path")
}

/// `None` when what follows the name is no port.
fn without_port(host: &str) -> Option<&str> {
    let end = if host.starts_with('[') { host.find(']')? + 1 } else { host.find(':').unwrap_or(host.len()) };
    let (name, port) = host.split_at(end);
    let digits = port.strip_prefix(':').unwrap_or(port);
    (port.len() != 1 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// As names are compared.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(value: &str) -> Result<AdminHosts, String> {
        AdminHosts::parse(Some(value.to_owned())).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_and_names_that_nobody_else_can_have_are_known() {
        let none = AdminHosts::default();
        for host in [
            "127.0.0.1",
            "127.0.0.1:9090",
            "[::1]:9090",
            "[2001:db8::1]",
            "10.0.0.5:80",
            "localhost",
            "LocalHost.:9090",
            "tollgate:9090",
            "node_1",
            "a.localhost",
            "tollgate.flowmesh.svc.cluster.local:9090",
            "tollgate.internal",
        ] {
            assert!(none.knows(host), "{host}");
        }
    }

    #[test]
    fn a_name_that_somebody_may_own_is_known_when_it_is_named() {
        let named = hosts("console.example.com, Other.example.com.,").expect("valid");
        assert_eq!(named.to_string(), "console.example.com,other.example.com");
        for host in ["console.example.com", "Console.Example.com:443", "other.example.com."] {
            assert!(named.knows(host) && !AdminHosts::default().knows(host), "{host}");
        }
        for host in [
            "evil.example:9090",
            "127.0.0.1.nip.io",
            "localhost.evil.example",
            "xconsole.example.com",
            "local.evil.example",
            "",
            ".",
            ":9090",
            "tollgate:",
            "tollgate:9090x",
            "tollgate:9090:1",
            "[::1",
            "[::1]x",
            "user@tollgate",
            "a b",
            "\u{e9}",
        ] {
            assert!(!named.knows(host), "{host}");
        }
    }

    #[test]
    fn what_is_no_name_is_an_error_that_names_the_variable() {
        for value in ["https://console.example.com", "console.example.com:443", "a/b", "*", "a b"] {
            let error = hosts(value).expect_err(value);
            assert!(error.starts_with("TOLLGATE_ADMIN_HOSTS: "), "{error}");
        }
        assert_eq!(hosts(" ").expect("unset"), AdminHosts::default());
    }
}
