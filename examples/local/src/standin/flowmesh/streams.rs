//! Answers that take their time: log streams, downloads, the SSH proxy, and whatever a served task says.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{
        FromRequestParts,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{Method, StatusCode, header, request::Parts},
    response::Response,
};
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    super::{json, text},
    Inner,
    routes::{detail, not_found},
    state::State,
};

/// The size of one piece of a download.
const PIECE: usize = 64 * 1024;

/// Events until the task is terminal.
pub(super) fn task_logs(inner: &Arc<Inner>, id: &str) -> Response {
    if inner.state().task(id).is_none_or(|of| of.task.unregistered) {
        return not_found("log stream");
    }
    let id = id.to_owned();
    events(inner.clone(), move |state| state.task(&id).is_none_or(|of| of.task.status.is_terminal()))
}

/// Events until every task of the workflow is terminal.
pub(super) fn workflow_logs(inner: &Arc<Inner>, id: &str) -> Response {
    if inner.state().workflow(id).is_none() {
        return not_found("log stream");
    }
    let id = id.to_owned();
    events(inner.clone(), move |state| {
        state.workflow(&id).is_none_or(|of| {
            let mut tasks = of.tasks.iter();
            tasks.all(|&at| state.tasks[at].task.status.is_terminal())
        })
    })
}

fn events(inner: Arc<Inner>, ended: impl Fn(&State) -> bool + Send + 'static) -> Response {
    let next = move |n: Option<u64>| {
        let (over, interval) = {
            let state = inner.state();
            (n.is_some() && ended(&state), state.options.event_interval)
        };
        async move {
            let n = n?;
            if over {
                return Some((Ok::<_, Infallible>("event: eos\ndata:\n\n".to_owned()), None));
            }
            if n > 0 {
                tokio::time::sleep(interval).await;
            }
            let event = format!("id: {n}-0\nevent: log\ndata: {{\"message\":\"line {n}\"}}\n\n");
            Some((Ok(event), Some(n + 1)))
        }
    };
    let body = Body::from_stream(stream::unfold(Some(0), next));
    let mut response = text(StatusCode::OK, "text/event-stream", body);
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    response
}

/// So many bytes, made as they are read.
pub(super) fn download(length: usize) -> Response {
    let pieces = stream::unfold(length, |left| async move {
        let size = left.min(PIECE);
        (size > 0).then(|| (Ok::<_, Infallible>(vec![b'x'; size]), left - size))
    });
    let body = Body::from_stream(pieces);
    let mut response = text(StatusCode::OK, "application/octet-stream", body);
    response.headers_mut().insert(header::CONTENT_LENGTH, header::HeaderValue::from(length));
    response
}

/// What runs behind a served task: `POST …/stream` sends the body back as it comes in, everything else
/// says what was asked. Nobody checks that the task exists.
pub(super) async fn serve(parts: &Parts, task_id: &str, body: Body) -> Response {
    if parts.method == Method::POST && parts.uri.path().ends_with("/stream") {
        return text(StatusCode::OK, "application/octet-stream", body);
    }
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return detail(StatusCode::BAD_REQUEST, "There was an error parsing the body");
    };
    let mut headers: Map<String, Value> = Map::new();
    for (name, value) in &parts.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let joined = match headers.get(name.as_str()).and_then(Value::as_str) {
            Some(first) => format!("{first}, {value}"),
            None => value,
        };
        headers.insert(name.to_string(), joined.into());
    }
    let path = parts.uri.path_and_query().map(ToString::to_string);
    let echo = json!({
        "task_id": task_id,
        "method": parts.method.as_str(),
        "path": path,
        "headers": headers,
        "body_bytes": body.len(),
    });
    json(StatusCode::OK, &echo)
}

/// Sends every message back until one side has had enough.
pub(super) async fn ssh(inner: &Inner, mut parts: Parts, task_id: &str, stop: CancellationToken) -> Response {
    let Ok(upgrade) = WebSocketUpgrade::from_request_parts(&mut parts, &()).await else {
        return detail(StatusCode::NOT_FOUND, "Not Found");
    };
    if inner.state().task(task_id).is_none_or(|of| of.task.unregistered) {
        return detail(StatusCode::FORBIDDEN, "Forbidden");
    }
    upgrade.on_upgrade(async move |socket| {
        // Cut off like every other connection when the server stops.
        let _ = stop.run_until_cancelled(echo(socket)).await;
    })
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let echoed = match message {
            Message::Text(_) | Message::Binary(_) => socket.send(message).await,
            Message::Close(_) => return,
            // Pings are answered by the protocol itself.
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        };
        if echoed.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::{
        super::{
            super::testing::client,
            Outcome,
            tests::{one, start},
        },
        *,
    };

    #[tokio::test]
    async fn a_served_task_echoes_what_it_was_asked() {
        let flowmesh = start().await;
        let url = format!("{}/api/v1/serve/tasks/tsk-1/v1/chat", flowmesh.url());
        let request = client().put(format!("{url}?x=1")).bearer_auth("key").body("abc");
        let echo: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(echo["method"], "PUT");
        assert_eq!(echo["path"], "/api/v1/serve/tasks/tsk-1/v1/chat?x=1");
        assert_eq!(echo["headers"]["authorization"], "Bearer key");
        assert_eq!(echo["body_bytes"], 3);
        let request = client().post(format!("{url}/stream")).body("as it comes");
        let body = request.send().await.unwrap().text().await.unwrap();
        assert_eq!(body, "as it comes");

        flowmesh.answer_with_headers("PUT /api/v1/serve/", &[("x-flowmesh-task-id", "forged")]);
        let response = client().put(&url).send().await.unwrap();
        assert_eq!(response.headers()["x-flowmesh-task-id"], "forged");
    }

    #[tokio::test]
    async fn a_log_stream_stays_open_until_the_task_ends() {
        let flowmesh = start().await;
        let (_, task) = one(&flowmesh);
        let url = format!("{}/api/v1/tasks/{task}/logs/stream", flowmesh.url());
        let response = client().get(url).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut events = response.bytes_stream();
        for n in 0..2 {
            let event = events.next().await.unwrap().unwrap();
            assert!(event.starts_with(format!("id: {n}-0\nevent: log\n").as_bytes()));
        }
        flowmesh.complete(&task, Outcome::done(1.0, 1.0));
        let mut rest = Vec::new();
        while let Some(event) = events.next().await {
            rest.extend(event.unwrap());
        }
        assert!(rest.ends_with(b"event: eos\ndata:\n\n"));
    }

    #[tokio::test]
    async fn the_ssh_proxy_echoes_until_the_server_stops() {
        let flowmesh = start().await;
        let (_, task) = one(&flowmesh);
        let address = flowmesh.url().replace("http://", "");
        let mut socket = TcpStream::connect(&address).await.unwrap();
        let upgrade = format!(
            "GET /api/v1/ssh/tasks/{task}/proxy?token=t HTTP/1.1\r\nHost: {address}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write_all(upgrade.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"));
        // A final text frame, masked with zeros.
        socket.write_all(b"\x81\x82\0\0\0\0hi").await.unwrap();
        let mut frame = [0; 4];
        socket.read_exact(&mut frame).await.unwrap();
        assert_eq!(&frame, b"\x81\x02hi");

        flowmesh.stop().await;
        let closed = tokio::time::timeout(Duration::from_secs(5), socket.read_u8()).await;
        assert!(closed.expect("closed in time").is_err());
    }
}
