//! An access-log service in Tollgate's place that keeps what Envoy sends.

use std::sync::{Arc, Mutex, PoisonError};

use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;

use super::Edge;

type Entries = Arc<Mutex<Vec<HttpAccessLogEntry>>>;

/// What has been sent so far.
#[derive(Clone, Default)]
pub struct Recorder(Entries);

impl Recorder {
    /// Replaces Envoy by one that sends its log here, with these changes besides.
    pub async fn instead_of_tollgate(edge: &mut Edge, changes: &[(&str, &str)]) -> Self {
        let recorder = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(AccessLogServiceServer::<Self>::NAME, ServingStatus::Serving).await;
        let server = tonic::transport::Server::builder()
            .add_service(health_service)
            .add_service(AccessLogServiceServer::new(recorder.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        // Ends with the test.
        tokio::spawn(server);
        let here = format!(
            "load_assignment: {{cluster_name: recorder, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
             {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
        );
        edge.change_bootstrap(&[&[("load_assignment: *tollgate", here.as_str())], changes].concat()).await;
        recorder
    }

    pub fn entries(&self) -> Vec<HttpAccessLogEntry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl AccessLogService for Recorder {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(logs.log_entry);
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}
