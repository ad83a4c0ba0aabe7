//! gRPC server reflection: what the gRPC listener serves, in a form that `grpcurl` and its like can read.
//!
//! Off unless asked for. It tells nothing of this Tollgate but which protocols it speaks, and the same listener takes bills
//! anyway, so who may reach it is decided there.
//!
//! Envoy's schema is `envoy.binpb`, without comments: the descriptors of the two services and of whatever they import,
//! compiled from the `.proto` files that come with `envoy-types` and under the same licence (Apache-2.0). A test compiles
//! them anew and compares, so it cannot differ from the types that are served.

use tonic_reflection::server::{Builder, Error, v1, v1alpha};

/// `google.protobuf.FileDescriptorSet` of `envoy.service.auth.v3`, `envoy.service.accesslog.v3` and their imports.
const ENVOY: &[u8] = include_bytes!("reflection/envoy.binpb");

fn builder() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(ENVOY)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// `grpc.reflection.v1`.
///
/// # Errors
/// Not in practice: the descriptors are part of the program.
pub fn v1() -> Result<v1::ServerReflectionServer<impl v1::ServerReflection>, Error> {
    builder().build_v1()
}

/// `grpc.reflection.v1alpha`, which older tools ask for.
///
/// # Errors
/// As [`v1()`].
pub fn v1alpha() -> Result<v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>, Error> {
    builder().build_v1alpha()
}
