//! Check over gRPC.
//!
//! The service is `envoy-types`', and what it decodes is not: of the request only what is looked at ([`crate::wire`]), and
//! of the answer nothing is built that is ready ([`Answer`]).

use std::pin::Pin;
use std::sync::Arc;

use axum::http;
use bytes::BufMut;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};

use super::Authz;
use super::response::Answer;
use crate::wire::CheckRequest;
use crate::wire::codec::Whole;

pub use envoy_types::pb::envoy::service::auth::v3::authorization_server::SERVICE_NAME;

/// The path of the one method.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Serves Checks. Cheap to clone.
#[derive(Clone)]
pub struct CheckServer(Arc<Authz>);

impl CheckServer {
    #[must_use]
    pub fn new(authz: Authz) -> Self {
        Self(Arc::new(authz))
    }

    /// Answers a call of [`CHECK`].
    pub async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        Grpc::new(CheckCodec).unary(Method(self.0), request).await
    }
}

struct Method(Arc<Authz>);

impl UnaryService<CheckRequest> for Method {
    type Response = Answer;
    type Future = BoxFuture<Result<Response<Answer>, Status>>;

    /// Answers every request, whatever it is, with gRPC status OK and the decision inside. At an error status Envoy would
    /// decide by itself, and one with `failure_mode_allow` would let the request through.
    fn call(&mut self, request: Request<CheckRequest>) -> Self::Future {
        let authz = self.0.clone();
        Box::pin(async move { Ok(Response::new(authz.check(request.into_inner()).await)) })
    }
}

/// A request is a few hundred bytes, and so is its answer; tonic would set 8 KiB aside for each.
const BUFFERS: (usize, usize) = (1024, 32 * 1024);

struct CheckCodec;

impl Codec for CheckCodec {
    type Encode = Answer;
    type Decode = CheckRequest;
    type Encoder = AnswerEncoder;
    type Decoder = Whole<CheckRequest>;

    fn encoder(&mut self) -> AnswerEncoder {
        AnswerEncoder
    }

    fn decoder(&mut self) -> Whole<CheckRequest> {
        Whole::new(BufferSettings::new(BUFFERS.0, BUFFERS.1))
    }
}

struct AnswerEncoder;

impl Encoder for AnswerEncoder {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        answer.parts().iter().for_each(|part| buffer.put_slice(part));
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFERS.0, BUFFERS.1)
    }
}
