//! Check spoken to directly, as by an Envoy whose configuration is weaker than the shipped one.

use std::collections::HashMap;
use std::path::PathBuf;

use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::Edge;

/// A connection to Tollgate's socket.
#[derive(Clone)]
pub struct Direct(pub AuthorizationClient<Channel>);

/// As Envoy sends it, without what Tollgate does not read.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> CheckRequest {
    let headers: HashMap<String, String> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let http = HttpRequest { method: method.to_owned(), path: path.to_owned(), headers, ..HttpRequest::default() };
    let request = Some(Request { http: Some(http), ..Request::default() });
    CheckRequest { attributes: Some(AttributeContext { request, ..AttributeContext::default() }) }
}

/// A read with this token, over a connection from this address.
pub fn read_from(source: &str, token: &str) -> CheckRequest {
    let mut request = request("GET", "/api/v1/tasks", &[("authorization", &format!("Bearer {token}"))]);
    let socket = SocketAddress { address: source.to_owned(), ..SocketAddress::default() };
    let address = Address { address: Some(address::Address::SocketAddress(socket)) };
    if let Some(attributes) = &mut request.attributes {
        attributes.source = Some(Peer { address: Some(address), ..Peer::default() });
    }
    request
}

/// 200 when the request is let through, else the status of the refusal.
pub fn status(response: &CheckResponse) -> i32 {
    match &response.http_response {
        // Envoy goes by the code alone.
        _ if response.status.as_ref().is_none_or(|status| status.code == 0) => 200,
        Some(HttpResponse::DeniedResponse(denied)) => denied.status.map_or(0, |status| status.code),
        _ => 0,
    }
}

/// The value of a header of a refusal.
pub fn denied_header(response: &CheckResponse, name: &str) -> Option<String> {
    let Some(HttpResponse::DeniedResponse(denied)) = &response.http_response else { return None };
    let mut headers = denied.headers.iter().filter_map(|option| option.header.clone());
    headers.find(|header| header.key == name).map(|header| header.value)
}

/// Where Tollgate's socket is.
pub fn socket(edge: &Edge) -> PathBuf {
    edge.dir.path().canonicalize().expect("a path").join("grpc.sock")
}

/// A connection to Tollgate's socket, for whatever gRPC.
pub async fn channel(edge: &Edge) -> Channel {
    channel_to(socket(edge)).await
}

async fn channel_to(path: PathBuf) -> Channel {
    let connect = move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(UnixStream::connect(path).await?)) }
    };
    let endpoint = Endpoint::from_static("http://tollgate");
    endpoint.connect_with_connector(tower::service_fn(connect)).await.expect("Tollgate listens")
}

impl Direct {
    pub async fn connect(edge: &Edge) -> Self {
        Self::connect_to(socket(edge)).await
    }

    pub async fn connect_to(socket: PathBuf) -> Self {
        Self(AuthorizationClient::new(channel_to(socket).await))
    }

    pub async fn check(&mut self, request: CheckRequest) -> CheckResponse {
        self.0.check(request).await.expect("an answer").into_inner()
    }

    /// 200 when the request is let through, else the status of the refusal.
    pub async fn status(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> i32 {
        status(&self.check(request(method, path, headers)).await)
    }
}
