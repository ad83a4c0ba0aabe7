//! Served tasks: what is between a client and somebody's model server passes as it is, and nothing else.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Edge, Memory, SOON};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn the_authorization_of_a_served_task_arrives_as_it_was_sent() {
    let edge = Edge::start().await;
    for (sent, arrives) in [
        (&[][..], &[][..]),
        (&[&b""[..]], &[""]),
        (&[b"Bearer lm_pat_live_alice"], &["Bearer lm_pat_live_alice"]),
        (&[b"Bearer a,Bearer b"], &["Bearer a,Bearer b"]),
        (&[b"Basic YTpi"], &["Basic YTpi"]),
        (&[b"bearer\ta  b"], &["bearer\ta  b"]),
        (&[b"Bearer k\xffy"], &["Bearer k\u{fffd}y"]),
        (&["Bearer k\u{fc}y".as_bytes()], &["Bearer k\u{fc}y"]),
        // As every proxy may, Envoy makes one list of two lines of a name.
        (&[b"Bearer a", b"Bearer b"], &["Bearer a,Bearer b"]),
    ] {
        let mut request =
            b"GET /api/v1/serve/tasks/tsk-1/v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".to_vec();
        for value in sent {
            request.extend_from_slice(&[b"authorization: ", *value, b"\r\nX-FlowMesh-Scopes: *\r\n"].concat());
        }
        request.extend_from_slice(b"\r\n");
        assert_eq!(edge.raw(request).await.status, 200);
        let seen = edge.seen().pop().expect("arrived");
        assert_eq!(seen.header_values("authorization"), arrives);
        assert!(!seen.headers.iter().any(|(name, _)| name.starts_with("x-flowmesh")), "{seen:?}");
    }
    assert_eq!(edge.stack.lum_id.introspection_count(), 0, "lum.id never sees a served task's key");
    edge.finish().await;
}

#[tokio::test]
async fn a_served_task_is_talked_to_while_it_answers() {
    let edge = Edge::start().await;
    let mut stream = edge.connect().await;
    let head = "POST /api/v1/serve/tasks/tsk-1/v1/stream HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    for word in ["once", "upon", "a-time"] {
        let chunk = format!("{:x}\r\n{word}\r\n", word.len());
        stream.write_all(chunk.as_bytes()).await.expect("sent");
        let echo = tokio::time::timeout(SOON, async {
            while !answer.ends_with(chunk.as_bytes()) {
                assert_ne!(stream.read_buf(&mut answer).await.expect("open"), 0);
            }
        });
        echo.await.expect("an echo before the next word");
    }
    edge.finish().await;
}

#[tokio::test]
async fn a_hundred_megabytes_to_a_served_task_and_back_are_held_by_nobody() {
    let edge = Edge::start().await;
    // What a connection needs at all is not what this is about.
    for size in [8 * MIB, 100 * MIB] {
        let before = Memory::of(&edge);
        let (mut reader, mut writer) = edge.connect().await.into_split();
        let head = format!(
            "POST /api/v1/serve/tasks/tsk-1/v1/stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
        );
        writer.write_all(head.as_bytes()).await.expect("sent");
        let write = async {
            let piece = vec![b'x'; MIB];
            for _ in 0..size / MIB {
                writer.write_all(&piece).await.expect("taken");
            }
        };
        let read = async {
            let (mut buffer, mut bytes) = (vec![0; MIB], 0);
            loop {
                match reader.read(&mut buffer).await.expect("open") {
                    0 => return bytes,
                    read => bytes += read,
                }
            }
        };
        let ((), echoed) = tokio::time::timeout(SOON, async { tokio::join!(write, read) }).await.expect("in time");
        // And the head, and the lengths of the chunks.
        assert!((size..size + size / 50).contains(&echoed), "{echoed} of {size}");
        before.assert_flat(&edge, 24);
    }
    edge.finish().await;
}
