//! Check spoken to directly, as by an Envoy whose configuration is weaker than the shipped one.

use std::collections::HashMap;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::Edge;

/// A connection to Tollgate's socket.
pub struct Direct(AuthorizationClient<Channel>);

impl Direct {
    pub async fn connect(edge: &Edge) -> Self {
        let path = edge.dir.path().canonicalize().expect("a path").join("grpc.sock");
        let connect = move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(UnixStream::connect(path).await?)) }
        };
        let endpoint = Endpoint::from_static("http://tollgate");
        let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await.expect("Tollgate listens");
        Self(AuthorizationClient::new(channel))
    }

    /// 200 when the request is let through, else the status of the refusal.
    pub async fn status(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> i32 {
        let headers: HashMap<String, String> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let http = HttpRequest { method: method.to_owned(), path: path.to_owned(), headers, ..HttpRequest::default() };
        let request = Some(Request { http: Some(http), ..Request::default() });
        let request = CheckRequest { attributes: Some(AttributeContext { request, ..AttributeContext::default() }) };
        let response = self.0.check(request).await.expect("an answer").into_inner();
        match response.http_response {
            // Envoy goes by the code alone.
            _ if response.status.is_none_or(|status| status.code == 0) => 200,
            Some(HttpResponse::DeniedResponse(denied)) => denied.status.map_or(0, |status| status.code),
            _ => 0,
        }
    }
}
