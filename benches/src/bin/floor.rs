//! The floor: what no ext_authz server on tonic can beat without leaving tonic's generic path.
//!
//! It answers every Check with the same ready-made OK of eight headers and drops log entries once they are decoded: the
//! generated servers, a plain `Server::builder()`, the multi-threaded runtime that Tollgate has, and nothing else. It also
//! says that it is well, which Envoy asks of it.
//!
//! `--record FILE` writes each Check's message there, to know what an Envoy sends.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use envoy_types::pb::envoy::{
    config::core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
    service::{
        accesslog::v3::{
            StreamAccessLogsMessage, StreamAccessLogsResponse,
            access_log_service_server::{AccessLogService, AccessLogServiceServer},
        },
        auth::v3::{
            CheckRequest, CheckResponse, OkHttpResponse,
            authorization_server::{Authorization, AuthorizationServer},
            check_response::HttpResponse,
        },
    },
};
use envoy_types::pb::google::rpc;
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

/// What Tollgate would say of a supplier's worker, as long as it is in reality, and one more.
const HEADERS: [(&str, &str); 8] = [
    ("x-flowmesh-principal-id", "user-alice"),
    ("x-flowmesh-external-id", "user-alice"),
    ("x-flowmesh-org-id", "lumid"),
    ("x-flowmesh-principal-type", "user"),
    ("x-flowmesh-scopes", "*"),
    ("x-flowmesh-supplier-id", "acme"),
    ("x-flowmesh-region", "eu-1"),
    ("x-flowmesh-tier", "standard"),
];

/// Answers every Check with the same OK.
#[derive(Parser)]
struct Cli {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Write the message of each Check into this file, over the one before
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

struct Floor {
    answer: CheckResponse,
    record: Option<PathBuf>,
}

#[tonic::async_trait]
impl Authorization for Floor {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        if let Some(path) = &self.record {
            std::fs::write(path, request.into_inner().encode_to_vec())?;
        }
        Ok(Response::new(self.answer.clone()))
    }
}

struct Drop;

#[tonic::async_trait]
impl AccessLogService for Drop {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut entries = request.into_inner();
        while entries.message().await?.is_some() {}
        Ok(Response::new(StreamAccessLogsResponse::default()))
    }
}

fn answer() -> CheckResponse {
    let header = |(name, value): (&str, &str)| HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    };
    let ok = OkHttpResponse { headers: HEADERS.into_iter().map(header).collect(), ..OkHttpResponse::default() };
    CheckResponse {
        status: Some(rpc::Status::default()),
        http_response: Some(HttpResponse::OkResponse(ok)),
        dynamic_metadata: None,
    }
}

async fn serve(cli: Cli) -> Result<()> {
    let listener = TcpListener::bind(cli.listen).await.with_context(|| format!("cannot listen at {}", cli.listen))?;
    println!("serving on {}", listener.local_addr()?);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<AuthorizationServer<Floor>>().await;
    reporter.set_serving::<AccessLogServiceServer<Drop>>().await;
    Server::builder()
        .add_service(AuthorizationServer::new(Floor { answer: answer(), record: cli.record }))
        .add_service(AccessLogServiceServer::new(Drop))
        .add_service(health)
        // As tonic does by itself where it binds the address.
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .context("the server ended")
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}
