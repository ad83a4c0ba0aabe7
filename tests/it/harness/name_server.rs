//! A name server on loopback, which knows the addresses that it is told of, whatever name it is asked for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What it answers: `None` that it is in trouble (SERVFAIL).
type Says = Arc<Mutex<Option<Vec<Ipv4Addr>>>>;

/// Bytes before the question.
const HEADER: usize = 12;

pub struct NameServer {
    address: SocketAddr,
    says: Says,
    task: JoinHandle<()>,
}

impl NameServer {
    pub async fn start(addresses: &[Ipv4Addr]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = socket.local_addr().expect("an address");
        let says = Says::new(Mutex::new(Some(addresses.to_vec())));
        let task = tokio::spawn(serve(socket, says.clone()));
        Self { address, says, task }
    }

    /// From now on the name has these addresses.
    pub fn say(&self, addresses: &[Ipv4Addr]) {
        *self.says.lock().expect("whole") = Some(addresses.to_vec());
    }

    /// From now on every question fails.
    pub fn fail(&self) {
        *self.says.lock().expect("whole") = None;
    }

    /// What makes an Envoy ask this one in place of the machine's: a part of a bootstrap.
    pub fn in_bootstrap(&self) -> String {
        format!(
            r#"
typed_dns_resolver_config:
  name: envoy.network.dns_resolver.cares
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig
    resolvers: [{{socket_address: {{address: {}, port_value: {}}}}}]
"#,
            self.address.ip(),
            self.address.port()
        )
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, says: Says) {
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question).await {
        let says = says.lock().expect("whole").clone();
        if let Some(answer) = answer(&question[..length], says.as_deref()) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// RFC 1035: the header, the question as it came, and an A record for each address.
fn answer(asked: &[u8], says: Option<&[Ipv4Addr]>) -> Option<Vec<u8>> {
    // The name ends with an empty label; its type and class follow.
    let name = asked.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    let question = asked.get(HEADER..HEADER + name + 5)?;
    let is_a = question[name + 1..name + 3] == [0, 1];
    let records = says.filter(|_| is_a).unwrap_or_default();
    let trouble = if says.is_some() { 0 } else { 2 };
    let mut answer =
        vec![asked[0], asked[1], 0x81, 0x80 | trouble, 0, 1, 0, u8::try_from(records.len()).ok()?, 0, 0, 0, 0];
    answer.extend_from_slice(question);
    for address in records {
        // A pointer to the name; type A, class IN; good for a second; four bytes.
        answer.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}
