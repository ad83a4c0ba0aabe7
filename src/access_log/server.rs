//! The log service over gRPC: `envoy-types`' service, with messages of which only what is looked at is decoded
//! ([`crate::wire`]).

use std::pin::Pin;
use std::sync::Arc;

use axum::http;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsResponse;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec};
use tonic::server::{ClientStreamingService, Grpc};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstEncoder;

use super::AccessLog;
use crate::wire::StreamAccessLogsMessage;
use crate::wire::codec::Whole;

pub use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::SERVICE_NAME;

/// The path of the one method.
pub const STREAM: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

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

    /// Answers a call of [`STREAM`], at its end.
    pub async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let mut grpc = Grpc::new(LogCodec).max_decoding_message_size(self.message_bytes);
        grpc.client_streaming(Method(self.log), request).await
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
