//! gRPC as bytes: a client that sends messages which were encoded before, so that it costs as little as it can.

use anyhow::{Context as _, Result, anyhow};
use bytes::{Buf as _, BufMut as _, Bytes};
use tokio_stream::Stream;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const LOGS: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

/// One connection to a server.
#[derive(Clone)]
pub struct Connection(Grpc<Channel>);

impl Connection {
    /// To `host:port`.
    pub async fn open(address: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let channel = endpoint.connect().await.with_context(|| format!("nothing speaks HTTP/2 at {address}"))?;
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.map_err(|error| anyhow!("{address} is not ready: {error}"))?;
        Ok(Self(grpc))
    }

    /// One Check; its answer's bytes.
    pub async fn check(&mut self, request: Bytes) -> Result<Bytes> {
        self.0.ready().await.map_err(|error| anyhow!("the connection is gone: {error}"))?;
        let answer = self.0.unary(Request::new(request), PathAndQuery::from_static(CHECK), AsBytes).await;
        Ok(answer.map_err(|status| anyhow!("Check failed: {status}"))?.into_inner())
    }

    /// One stream of log messages, to its end: when this returns the server has taken all of them.
    pub async fn log(&mut self, messages: impl Stream<Item = Bytes> + Send + 'static) -> Result<()> {
        self.0.ready().await.map_err(|error| anyhow!("the connection is gone: {error}"))?;
        let path = PathAndQuery::from_static(LOGS);
        let answer = self.0.client_streaming(Request::new(messages), path, AsBytes).await;
        answer.map_err(|status| anyhow!("the stream of log entries failed: {status}"))?;
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct AsBytes;

impl Codec for AsBytes {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
