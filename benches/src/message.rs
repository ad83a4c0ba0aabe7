//! The Check that Envoy sends, captured once from a real one.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, check_response::HttpResponse};
use http::{Method, Request, header};
use prost::Message as _;
use tollgate_local::stack::{Envoy, http_client, wait_for};

use crate::{
    bootstrap,
    context::Context,
    paced::Call,
    servers::{Floor, READY, TOKEN},
    wire::Connection,
};

/// What Envoy 1.40 asks when a client polls a task, under the bootstrap that ships. `tollgate-benches capture` makes it anew.
const CAPTURED: &[u8] = include_bytes!("../data/check.binpb");
/// Where it is in the repository.
const PATH: &str = "benches/data/check.binpb";
/// The task that was polled; the stand-in has another one.
const TASK: &str = "tsk-00000000-0000-4000-8000-000000000000";

/// The captured request, about this task.
///
/// # Errors
/// When what was captured is no such request.
pub fn request(task: &str) -> Result<CheckRequest> {
    let mut request = CheckRequest::decode(CAPTURED).context("what was captured is no CheckRequest")?;
    let http = request.attributes.as_mut().and_then(|all| all.request.as_mut()?.http.as_mut());
    let path = &mut http.context("what was captured is no Check of a request")?.path;
    *path = path.replace(TASK, task);
    Ok(request)
}

/// The message as gRPC frames it.
#[must_use]
pub fn framed(request: &CheckRequest) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(request.encoded_len()).unwrap_or(u32::MAX));
    frame.put_slice(&request.encode_to_vec());
    frame.freeze()
}

/// A frame whose token is replaced by another that is as long.
pub struct Tokens {
    frame: Bytes,
    at: usize,
}

impl Tokens {
    /// Finds [`TOKEN`] in a frame.
    ///
    /// # Errors
    /// When it is not there, or more than once.
    pub fn of(frame: Bytes) -> Result<Self> {
        let mut found = frame.windows(TOKEN.len()).enumerate().filter(|(_, part)| *part == TOKEN.as_bytes());
        let (Some((at, _)), None) = (found.next(), found.next()) else { bail!("{TOKEN} is not once in the message") };
        Ok(Self { frame, at })
    }

    /// The frame with this one.
    #[must_use]
    pub fn with(&self, token: &str) -> Bytes {
        let mut frame = BytesMut::from(self.frame.as_ref());
        if let Some(place) = frame.get_mut(self.at..self.at + TOKEN.len())
            && token.len() == TOKEN.len()
        {
            place.copy_from_slice(token.as_bytes());
        }
        frame.freeze()
    }
}

/// Where a Check goes.
#[must_use]
pub fn url(address: SocketAddr) -> String {
    format!("http://{address}/envoy.service.auth.v3.Authorization/Check")
}

/// A Check over HTTP/2.
///
/// # Errors
/// When the address makes no URL.
pub fn call(address: SocketAddr, frame: Bytes) -> Result<Call> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(url(address))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())
        .context("no request")?;
    Ok(Call { request, body: Some(frame) })
}

/// An OK.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// In bytes, framed.
    pub length: usize,
    /// Headers that it sets.
    pub set: usize,
    /// Headers that it removes.
    pub removed: usize,
    /// Fields of metadata that it has for the access log.
    pub fields: usize,
}

/// Asks once, and wants an OK.
///
/// # Errors
/// When it is refused.
pub async fn must_be_ok(address: SocketAddr, request: &CheckRequest) -> Result<Allowed> {
    // As it comes: the same message may be encoded in more bytes than one way.
    let sent = Connection::open(&address.to_string()).await?.check(request.encode_to_vec().into()).await?;
    let length = sent.len() + 5;
    let answer = CheckResponse::decode(sent).context("what was answered is no CheckResponse")?;
    let fields = answer.dynamic_metadata.as_ref().map_or(0, |metadata| metadata.fields.len());
    match (&answer.status, &answer.http_response) {
        (Some(status), Some(HttpResponse::OkResponse(ok))) if status.code == 0 => {
            Ok(Allowed { length, set: ok.headers.len(), removed: ok.headers_to_remove.len(), fields })
        }
        _ => bail!("{address} refuses: {answer:?}"),
    }
}

/// Lets a client poll a task through a real Envoy and keeps the Check that comes of it.
///
/// # Errors
/// When none comes, or it cannot be kept.
pub async fn capture(context: &Context) -> Result<()> {
    let folder = context.folder()?;
    let file = folder.path().join("check");
    let floor = Floor::start(context, &["--record", &file.display().to_string()]).await?;
    let bootstrap = bootstrap::shipped(context, floor.address).await?;
    let envoy = Envoy::start(&context.envoy()?, &bootstrap, folder.path(), 1, None).await?;
    envoy.wait_for_tollgate(READY).await?;
    let url = format!("{}/api/v1/tasks/{TASK}?view=status", envoy.edge_url());
    http_client()?.get(url).bearer_auth(TOKEN).header("user-agent", "flowmesh-sdk").send().await?;
    let message =
        wait_for("a Check", READY, async || std::fs::read(&file).ok().filter(|read| !read.is_empty())).await?;
    std::fs::write(context.root.join(PATH), message).with_context(|| format!("cannot write {PATH}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_captured_is_a_poll_of_a_task_with_the_headers_that_the_bootstrap_allows() {
        let request = request("tsk-1").unwrap();
        let attributes = request.attributes.unwrap();
        let http = attributes.request.unwrap().http.unwrap();
        assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/api/v1/tasks/tsk-1?view=status"));
        let headers = http.header_map.unwrap().headers;
        let header =
            |name: &str| headers.iter().find(|header| header.key == name).map(|header| header.raw_value.clone());
        assert_eq!(header("authorization"), Some(format!("Bearer {TOKEN}").into_bytes()));
        assert_eq!(header("x-request-id").map(|id| id.len()), Some(36));
        assert!(header("x-forwarded-for").is_some());
        assert_eq!(header("user-agent"), None, "it is not among those that are allowed");
        assert!(attributes.metadata_context.unwrap().filter_metadata.contains_key("tollgate"));
    }

    #[test]
    fn a_frame_says_how_long_its_message_is_and_another_token_changes_nothing_else() {
        let request = request("tsk-1").unwrap();
        let frame = framed(&request);
        assert_eq!(frame[0], 0);
        assert_eq!(u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize, frame.len() - 5);
        let tokens = Tokens::of(frame.clone()).unwrap();
        let other = crate::servers::fresh_token(7);
        let changed = tokens.with(&other);
        assert_eq!(changed.len(), frame.len());
        let text = |frame: &Bytes| String::from_utf8_lossy(frame).into_owned();
        assert_eq!(text(&changed).replace(&other, TOKEN), text(&frame));
        assert_ne!(changed, frame);
        assert!(Tokens::of(changed).is_err());
    }
}
