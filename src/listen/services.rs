//! Which service a call is for.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::{Request, Response};
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::authz::server::{CHECK, CheckServer};

/// What the gRPC listener serves. Nearly every call is a Check, which has its way by itself: it does not go through
/// the router, which clones, boxes and matches for each.
#[derive(Clone)]
pub struct Services {
    check: CheckServer,
    others: Routes,
}

impl Services {
    #[must_use]
    pub fn new(check: CheckServer, others: Routes) -> Self {
        // Other methods of its service are answered like all that nobody knows.
        Self { others: others.add_service(check.clone()).prepare(), check }
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Neither of the two ever lets anybody wait.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() == CHECK { self.check.call(request) } else { Box::pin(self.others.call(request)) }
    }
}
