//! Ports: which are taken, and one that is free.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
};

use anyhow::{Context as _, Result, bail};

/// A port that is wanted, for whom, and the setting that chooses another.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The number; 0 is any free one.
    pub number: u16,
    /// What will listen there.
    pub owner: &'static str,
    /// The environment variable that changes it.
    pub variable: &'static str,
}

/// Whether all of these can be listened on at once.
///
/// # Errors
/// One line that names the first that cannot, and how to choose another.
pub fn check_ports(ports: &[Port]) -> Result<()> {
    let mut held = Vec::new();
    for (at, Port { number, owner, variable }) in ports.iter().copied().enumerate() {
        if number == 0 {
            continue;
        }
        if let Some(other) = ports[..at].iter().find(|other| other.number == number) {
            bail!("port {number} is wanted twice ({} and {owner}): choose another with {variable}=…", other.owner);
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, number)) {
            Ok(listener) => held.push(listener),
            Err(error) => {
                let state = match error.kind() {
                    ErrorKind::AddrInUse => "taken".to_owned(),
                    ErrorKind::PermissionDenied => "reserved for root".to_owned(),
                    _ => format!("out of reach ({error})"),
                };
                bail!("port {number} ({owner}) is {state}: choose another with {variable}=…");
            }
        }
    }
    Ok(())
}

/// A port of this machine that is free now. Another process may take it before it is used, so prefer
/// port 0 where whoever listens tells which port it got.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr().context("a bound port has no address")?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_one_line_that_says_what_to_do() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = taken.local_addr().unwrap().port();
        let wanted = [
            Port { number: 0, owner: "lum.id", variable: "LUM_ID_PORT" },
            Port { number, owner: "Envoy edge", variable: "EDGE_PORT" },
        ];
        let error = check_ports(&wanted).unwrap_err();
        let line = format!("port {number} (Envoy edge) is taken: choose another with EDGE_PORT=…");
        assert_eq!(format!("{error:#}"), line);
        drop(taken);
        check_ports(&wanted).unwrap();
    }

    #[test]
    fn one_port_for_two_is_refused() {
        let number = free_port().unwrap();
        let wanted = [
            Port { number, owner: "Envoy edge", variable: "EDGE_PORT" },
            Port { number, owner: "lum.id", variable: "LUM_ID_PORT" },
        ];
        let error = check_ports(&wanted).unwrap_err().to_string();
        assert!(error.contains("wanted twice (Envoy edge and lum.id): choose another with LUM_ID_PORT"), "{error}");
    }
}
