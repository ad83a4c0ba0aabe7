//! The log service over gRPC: `envoy-types`' service, with messages of which only what is looked at is decoded
//! ([`crate::wire`]).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsResponse;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::SERVICE_NAME;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec};
use tonic::server::{ClientStreamingService, Grpc, NamedService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstEncoder;
use tower::Service;

use super::AccessLog;
use crate::wire::StreamAccessLogsMessage;
use crate::wire::codec::Whole;

/// The path of the one method.
const STREAM: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Serves log streams. Cheap to clone.
#[derive(Clone)]
pub struct LogServer {
    log: Arc<AccessLog>,
    message_bytes: usize,
}

impl LogServer {
    /// `message_bytes`: the longest message that is taken.
    #[must_use]
    pub fn new(log: AccessLog, message_bytes: usize) -> Self {
        Self { log: Arc::new(log), message_bytes }
    }
}

impl NamedService for LogServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<http::Request<B>> for LogServer
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let Self { log, message_bytes } = self.clone();
        Box::pin(async move {
            if request.uri().path() != STREAM {
                return Ok(Status::unimplemented("").into_http());
            }
            let mut grpc = Grpc::new(LogCodec).max_decoding_message_size(message_bytes);
            Ok(grpc.client_streaming(Method(log), request).await)
        })
    }
}

struct Method(Arc<AccessLog>);

impl ClientStreamingService<StreamAccessLogsMessage> for Method {
    type Response = StreamAccessLogsResponse;
    type Future = BoxFuture<Result<Response<StreamAccessLogsResponse>, Status>>;

    fn call(&mut self, request: Request<Streaming<StreamAccessLogsMessage>>) -> Self::Future {
        let log = self.0.clone();
        Box::pin(async move { log.take(request.into_inner()).await.map(Response::new) })
    }
}

struct LogCodec;

impl Codec for LogCodec {
    type Encode = StreamAccessLogsResponse;
    type Decode = StreamAccessLogsMessage;
    type Encoder = ProstEncoder<StreamAccessLogsResponse>;
    type Decoder = Whole<StreamAccessLogsMessage>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Whole::new(BufferSettings::default())
    }
}
