//! Result posts of every shape: the body is FlowMesh's to judge, and passes byte for byte.

use tollgate_local::stack::{ACME, ALICE, wait_for};
use tollgate_local::standin::Seen;

use crate::harness::{Answer, Edge, SOON, answer};

const MIB: usize = 1024 * 1024;

async fn post(edge: &Edge, body: &[u8], chunked: bool) -> Answer {
    let mut request = format!(
        "POST /api/v1/results HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-type: application/json\r\n",
        ACME.token
    )
    .into_bytes();
    if chunked {
        request.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        // The first chunk alone is less than what Check is shown.
        let (first, rest) = body.split_at(body.len().min(100));
        for chunk in [first, rest].into_iter().filter(|chunk| !chunk.is_empty()) {
            request.extend_from_slice(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        request.extend_from_slice(b"0\r\n\r\n");
    } else {
        request.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        request.extend_from_slice(body);
    }
    edge.raw(request).await
}

fn last_result(edge: &Edge) -> Seen {
    let results = edge.seen().into_iter().rfind(|seen| seen.path_and_query == "/api/v1/results");
    results.expect("a result arrived")
}

#[tokio::test]
async fn a_body_that_is_no_result_passes_and_harms_nobody() {
    let edge = Edge::start().await;
    let deep = format!(r#"{{"task_id":"tsk-none","result":{}"#, "[".repeat(100_000));
    let odd_ids = r#"{"task_id":"tsk/../x","worker_id":"a b"}"#;
    for body in [
        &b""[..],
        b"null",
        b"[]",
        b"\"tsk-1\"",
        b"<html>",
        b"{\"task_id\":",
        b"{\"task_id\":7,\"worker_id\":{}}",
        b"{\"task_id\":\"tsk-none\",\"task_id\":\"tsk-other\"}",
        b"\xff\xfe{\"task_id\":\"tsk-none\"}",
        b"{\"task_id\":\"tsk-none\",\"x\":\"\x00\xff\"}",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        odd_ids.as_bytes(),
        deep.as_bytes(),
        &vec![b' '; 8 * MIB],
        &vec![0xff; 5000],
    ] {
        let what = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        for chunked in [false, true] {
            let answer = post(&edge, body, chunked).await;
            // FlowMesh's own answer, of one kind or the other.
            assert!(matches!(answer.status, 404 | 422), "{what}: {answer:?}");
            let seen = last_result(&edge);
            assert_eq!(usize::try_from(seen.body_len), Ok(body.len()), "{what}");
            assert_eq!(seen.body_prefix, body[..body.len().min(seen.body_prefix.len())], "{what}");
            assert_eq!(seen.header("x-flowmesh-principal-id"), Some(ACME.sub), "{what}");
            assert_eq!(seen.header("x-flowmesh-supplier-id"), None, "{what}");
        }
    }
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    edge.finish().await;
}

#[tokio::test]
async fn of_two_task_ids_in_one_body_the_one_that_flowmesh_takes_is_billed() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 2).await;
    // JSON parsers take the last, Python's among them.
    let body = format!(r#"{{"task_id":"{}","task_id":"{}","result":{{}}}}"#, tasks[0], tasks[1]);
    assert_eq!(post(&edge, body.as_bytes(), false).await.status, 200);
    assert_eq!(edge.entries(1).await[0].task_id, tasks[1]);
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(2).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_second_task_id_after_what_check_is_shown_costs_no_charge() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 2).await;
    let body =
        format!(r#"{{"task_id":"{}","result":{{"text":"{}"}},"task_id":"{}"}}"#, tasks[0], "x".repeat(MIB), tasks[1]);
    assert_eq!(post(&edge, body.as_bytes(), true).await.status, 200);
    // Check took the first for it, which goes on. The second is settled when somebody looks, or by the next sweep.
    let path = format!("/api/v1/tasks/{}?view=status", tasks[1]);
    let done = async || {
        let status = answer(edge.get(&path).bearer_auth(ALICE.token)).await.json()["status"] == "DONE";
        status.then_some(())
    };
    wait_for("the second task's end", SOON, done).await.expect("done");
    assert_eq!(edge.entries(1).await[0].task_id, tasks[1]);
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(2).await;
    edge.finish().await;
}

#[tokio::test]
async fn a_result_that_is_cut_off_on_its_way_leaves_everything_as_it_was() {
    let edge = Edge::start().await;
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    let head = format!(
        "POST /api/v1/results HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n",
        ACME.token
    );
    for sent in [0, 10, 5000, 90_000] {
        let mut stream = edge.connect().await;
        let body = format!(r#"{{"task_id":"{}","result":"{}"#, tasks[0], "x".repeat(90_000));
        let request = format!("{head}{}", &body[..sent]);
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.expect("sent");
        if sent > 4096 {
            // As soon as Check has seen enough the rest goes on to FlowMesh.
            let arrived = async || (last_result_len(&edge) >= 4096).then_some(());
            wait_for("the beginning at FlowMesh", SOON, arrived).await.expect("arrived");
        }
        drop(stream);
    }
    let task = edge.stack.flowmesh.task(&tasks[0]).expect("known");
    assert!(!task.status.is_terminal(), "{task:?}");
    assert_eq!(answer(edge.get("/api/v1/tasks").bearer_auth(ALICE.token)).await.status, 200);
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    edge.finish().await;
}

fn last_result_len(edge: &Edge) -> u64 {
    edge.seen().into_iter().rfind(|seen| seen.path_and_query == "/api/v1/results").map_or(0, |seen| seen.body_len)
}
