//! As much of a WebSocket client as an echo needs.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Answer, Edge, SOON, parse};

/// An open WebSocket.
pub struct WebSocket(TcpStream);

impl WebSocket {
    /// Asks for one. The head of the answer when it is not 101.
    pub async fn open(edge: &Edge, target: &str, headers: &str) -> Result<Self, Answer> {
        let mut stream = edge.connect().await;
        let request = format!(
            "GET {target} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        let read = tokio::time::timeout(SOON, async {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
        });
        read.await.expect("an answer in time");
        let answer = parse(&String::from_utf8_lossy(&head));
        if answer.status == 101 { Ok(Self(stream)) } else { Err(answer) }
    }

    /// Says two letters and hears them again.
    pub async fn assert_alive(&mut self) {
        // A final text frame, masked with zeros; then the same, unmasked.
        self.0.write_all(b"\x81\x82\0\0\0\0hi").await.expect("sent");
        let mut frame = [0; 4];
        let read = tokio::time::timeout(SOON, self.0.read_exact(&mut frame)).await;
        read.expect("an echo in time").expect("the WebSocket is open");
        assert_eq!(&frame, b"\x81\x02hi");
    }
}
