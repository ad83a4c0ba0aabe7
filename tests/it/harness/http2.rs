//! A client that speaks HTTP/2, and says what no library would.

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};

use super::{Answer, Edge, SOON};

/// One connection to the edge.
pub struct Http2 {
    send: SendRequest<Bytes>,
    authority: String,
}

impl Http2 {
    pub async fn connect(edge: &Edge) -> Self {
        let authority = edge.stack.envoy.edge_url().trim_start_matches("http://").to_owned();
        let (send, connection) = h2::client::handshake(edge.connect().await).await.expect("HTTP/2");
        // Ends with the connection, which ends with the edge or with this client.
        tokio::spawn(connection);
        Self { send, authority }
    }

    /// A request whose headers are as given, duplicates kept.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let uri = format!("http://{}{path}", self.authority);
        let mut request = Request::builder().method(method).uri(uri).body(()).expect("a request");
        *request.headers_mut() = header_map(headers);
        request
    }

    /// Sends a head, with a body to follow or none.
    pub async fn send(
        &mut self,
        request: Request<()>,
        has_body: bool,
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        self.send = self.send.clone().ready().await.expect("the connection is open");
        self.send.send_request(request, !has_body).expect("sent")
    }

    /// Sends a request whole and reads its answer. What ends without one has status 0.
    pub async fn exchange(&mut self, request: Request<()>, body: &str, trailers: &[(&str, &str)]) -> Answer {
        let (response, mut stream) = self.send(request, true).await;
        // What is refused early may be reset before its end.
        let _ = stream.send_data(Bytes::copy_from_slice(body.as_bytes()), trailers.is_empty());
        if !trailers.is_empty() {
            let _ = stream.send_trailers(header_map(trailers));
        }
        match tokio::time::timeout(SOON, response).await.expect("an answer in time") {
            Ok(response) => read(response).await,
            Err(_) => Answer { status: 0, headers: Vec::new(), body: String::new() },
        }
    }
}

/// The whole of an answer.
pub async fn read(response: Response<RecvStream>) -> Answer {
    let (head, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(Ok(chunk)) = tokio::time::timeout(SOON, stream.data()).await.expect("a body in time") {
        // It was read, so as much again may come.
        let _ = stream.flow_control().release_capacity(chunk.len());
        body.extend_from_slice(&chunk);
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    Answer { status: head.status.as_u16(), headers, body: String::from_utf8_lossy(&body).into_owned() }
}

fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        (name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
    };
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter().map(pair) {
        map.append(name, value);
    }
    map
}
