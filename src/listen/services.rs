//! Which service a call is for.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::{Request, Response};
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::access_log::server::{LogServer, STREAM};
use crate::authz::server::{CHECK, CheckServer};

/// What the gRPC listener serves. Nearly every call is a Check, which has its way by itself: it does not go through
/// the router, which clones, boxes and matches for each.
#[derive(Clone)]
pub struct Services {
    check: CheckServer,
    log: LogServer,
    others: Routes,
}

impl Services {
    /// `others` answers what neither of the two is asked, also of methods that nobody knows.
    #[must_use]
    pub fn new(check: CheckServer, log: LogServer, others: Routes) -> Self {
        Self { check, log, others: others.prepare() }
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // None of them ever lets anybody wait.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.uri().path() {
            CHECK => {
                let check = self.check.clone();
                Box::pin(async move { Ok(check.answer(request).await) })
            }
            STREAM => {
                let log = self.log.clone();
                Box::pin(async move { Ok(log.answer(request).await) })
            }
            _ => Box::pin(self.others.call(request)),
        }
    }
}
