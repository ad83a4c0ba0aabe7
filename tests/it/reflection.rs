//! gRPC server reflection, as `grpcurl` uses it.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::process::Command;

use prost::Message;
use prost_types::FileDescriptorProto;
use tonic::Code;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_reflection::pb::v1alpha;

use crate::harness::Edge;
use crate::harness::direct::channel;

/// One question over a stream of its own.
async fn ask(channel: &Channel, question: MessageRequest) -> Result<MessageResponse, tonic::Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await?.into_inner();
    let ServerReflectionResponse { message_response, .. } = answers.message().await?.expect("an answer");
    Ok(message_response.expect("of some kind"))
}

async fn files(channel: &Channel, question: MessageRequest) -> Vec<FileDescriptorProto> {
    match ask(channel, question).await.expect("an answer") {
        MessageResponse::FileDescriptorResponse(files) => {
            let files = files.file_descriptor_proto.iter();
            files.map(|file| FileDescriptorProto::decode(file.as_slice()).expect("a descriptor")).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn reflection_lists_the_services_and_describes_a_check() {
    let edge = Edge::with(&[("TOLLGATE_GRPC_REFLECTION", "on")]).await;
    let channel = channel(&edge).await;
    let listed = ask(&channel, MessageRequest::ListServices(String::new())).await.expect("an answer");
    let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
    let names: BTreeSet<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    let expected = [
        "envoy.service.accesslog.v3.AccessLogService",
        "envoy.service.auth.v3.Authorization",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ];
    assert_eq!(names, expected.into());
    let symbol = "envoy.service.auth.v3.CheckRequest".to_owned();
    let found = files(&channel, MessageRequest::FileContainingSymbol(symbol)).await;
    let check = found.iter().flat_map(|file| &file.message_type).find(|message| message.name() == "CheckRequest");
    let attributes = check.and_then(|check| check.field.iter().find(|field| field.name() == "attributes"));
    let kind = attributes.expect("a CheckRequest with attributes").type_name();
    assert_eq!(kind, ".envoy.service.auth.v3.AttributeContext");
    // As a client does: whatever a file imports can be had.
    let (mut known, mut wanted) = (HashSet::new(), found);
    while let Some(file) = wanted.pop() {
        for import in &file.dependency {
            if known.insert(import.clone()) {
                wanted.extend(files(&channel, MessageRequest::FileByFilename(import.clone())).await);
            }
        }
    }
    assert!(known.contains("envoy/service/auth/v3/attribute_context.proto"), "{known:?}");

    let older = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::iter([older])).await.expect("older tools, too");
    assert!(answers.into_inner().message().await.expect("an answer").is_some());
    edge.finish().await;
}

#[tokio::test]
async fn reflection_is_off_unless_asked_for() {
    let edge = Edge::start().await;
    let channel = channel(&edge).await;
    let refused = ask(&channel, MessageRequest::ListServices(String::new())).await.expect_err("off");
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    edge.finish().await;
}

/// Where the source of `envoy-types` is, in the version of Cargo.lock.
fn envoy_types() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let version = Command::new("rustc").arg("-vV").output().expect("rustc runs").stdout;
    let version = String::from_utf8(version).expect("text");
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    // What is built here is there; what other systems need may not be.
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--manifest-path", manifest])
        .args(["--filter-platform", host])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == "envoy-types").expect("a dependency");
    PathBuf::from(package["manifest_path"].as_str().expect("a path")).parent().expect("a folder").join("proto")
}

#[test]
fn the_schema_that_ships_is_that_of_the_types_that_are_served() {
    let protos = envoy_types();
    let roots = ["data-plane-api", "xds", "protoc-gen-validate", "googleapis"].map(|root| protos.join(root));
    let services = ["envoy/service/auth/v3/external_auth.proto", "envoy/service/accesslog/v3/als.proto"];
    let mut compiler = protox::Compiler::new(roots).expect("folders");
    compiler.include_imports(true).include_source_info(false).open_files(services).expect("compiled");
    let schema = compiler.file_descriptor_set().encode_to_vec();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/src/reflection/envoy.binpb");
    if std::env::var_os("UPDATE_ENVOY_SCHEMA").is_some() {
        std::fs::write(shipped, &schema).expect("written");
    }
    let same = std::fs::read(shipped).expect("read") == schema;
    assert!(same, "src/reflection/envoy.binpb is of other files: run this test with UPDATE_ENVOY_SCHEMA=1");
}
