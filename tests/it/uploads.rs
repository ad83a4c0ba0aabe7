//! Uploads of any size: they stream through, and a refused one is refused before it is read.

use axum::body::Bytes;
use tokio::io::AsyncWriteExt;
use tollgate_local::stack::{ACME, ALICE};

use crate::harness::{Answer, Edge, Http2, Memory, http2, read_answer};

const MIB: usize = 1024 * 1024;
const LARGE: usize = 200 * MIB;
/// What the edge may hold more at any moment of a large upload than after a small one.
const FLAT_MIB: u64 = 24;
static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// Uploads so many bytes over HTTP/1.1, as fast as the edge takes them, until it answers; how many it took.
async fn http1(edge: &Edge, path: &str, token: &str, size: usize) -> (usize, Answer) {
    let (mut reader, mut writer) = edge.connect().await.into_split();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\
         content-type: multipart/form-data; boundary=x\r\ncontent-length: {size}\r\n\r\n"
    );
    writer.write_all(head.as_bytes()).await.expect("sent");
    let answer = read_answer(&mut reader);
    tokio::pin!(answer);
    let mut sent = 0;
    while sent < size {
        let piece = &PIECE[..PIECE.len().min(size - sent)];
        tokio::select! {
            biased;
            answer = &mut answer => return (sent, answer),
            written = writer.write(piece) => match written {
                Ok(written) => sent += written,
                // The edge does not want more; its answer says why.
                Err(_) => break,
            },
        }
    }
    (sent, answer.await)
}

/// The same over HTTP/2.
async fn http2(edge: &Edge, path: &str, token: &str, size: usize) -> (usize, Answer) {
    let mut client = Http2::connect(edge).await;
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/x-ndjson")];
    let request = client.request("POST", path, &headers);
    let (response, mut stream) = client.send(request, true).await;
    tokio::pin!(response);
    let mut sent = 0;
    while sent < size {
        stream.reserve_capacity(PIECE.len());
        tokio::select! {
            biased;
            response = &mut response => return (sent, http2::read(response.expect("an answer")).await),
            capacity = std::future::poll_fn(|context| stream.poll_capacity(context)) => {
                let Some(Ok(capacity)) = capacity else { break };
                let piece = Bytes::from_static(&PIECE).slice(..capacity.min(PIECE.len()).min(size - sent));
                sent += piece.len();
                if stream.send_data(piece, sent == size).is_err() {
                    break;
                }
            }
        }
    }
    (sent, http2::read(response.await.expect("an answer")).await)
}

#[tokio::test]
async fn an_upload_of_200_mb_arrives_whole_and_is_held_by_nobody() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let files = format!("/api/v1/results/{}/files", tasks[0]);
    let traces = format!("/api/v1/traces/tasks/{}/spans", tasks[0]);
    let arrived = || usize::try_from(edge.seen().pop().expect("arrived").body_len).expect("a size");
    // What a connection needs at all is not what this is about.
    for size in [8 * MIB, LARGE] {
        let before = Memory::of(&edge);
        let (sent, answer) = http1(&edge, &files, ACME.token, size).await;
        assert_eq!((sent, answer.status, arrived()), (size, 200, size), "{answer:?}");
        let (sent, answer) = http2(&edge, &traces, ACME.token, size).await;
        assert_eq!((sent, answer.status, arrived()), (size, 200, size), "{answer:?}");
        before.assert_flat(&edge, FLAT_MIB);
    }
    edge.finish().await;
}

#[tokio::test]
async fn an_upload_with_a_bad_token_is_refused_before_it_is_read() {
    let edge = Edge::start().await;
    let path = "/api/v1/results/tsk-1/files";
    for token in ["unknown", ""] {
        let (sent, answer) = http1(&edge, path, token, LARGE).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(answer.json()["detail"].is_string(), "{answer:?}");
        // Envoy holds twice its limit of 4 MiB while it asks, and the kernel what both sockets may.
        assert!(sent < 32 * MIB, "{sent}");
        let (sent, answer) = http2(&edge, path, token, LARGE).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(answer.json()["detail"].is_string(), "{answer:?}");
        assert!(sent < MIB, "{sent}");
    }
    assert!(edge.seen().is_empty(), "{:?}", edge.seen());
    edge.finish().await;
}
