# Two images from one build:
#   docker build .                       Tollgate, the one to run
#   docker build --target standins .     what docker-compose.yml uses in place of lum.id, Runmesh and FlowMesh
# Written for the classic builder too: no BuildKit mounts, and no step that would need them.

ARG BUILD_IMAGE=rust:1.95-slim-bookworm
# The same Debian as the build image's, or the binary asks for a newer C library than there is. No shell, no package manager.
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# --- The dependencies, which change seldom and take minutes, in a layer of their own: built with empty packages of ours.
FROM ${BUILD_IMAGE} AS build
WORKDIR /build
# Nothing is built twice here, so the files for doing that faster would only be size.
ENV CARGO_INCREMENTAL=0
COPY Cargo.toml Cargo.lock ./
COPY examples/local/Cargo.toml examples/local/
# Never built here, but a member of the workspace.
COPY benches/Cargo.toml benches/
RUN mkdir -p src examples/local/src benches/src \
 && echo 'fn main() {}' | tee src/main.rs benches/src/main.rs > examples/local/src/main.rs \
 && touch src/lib.rs examples/local/src/lib.rs benches/stages.rs \
 && cargo build --release --locked --bins -p tollgate -p tollgate-local \
    # What was built of these must not be taken for the real thing, which may have older files.
 && rm -rf src examples target/release/.fingerprint/tollgate* target/release/tollgate*

# --- Ours. (Nothing is copied a second time: the classic builder loses a layer that changes nothing.)
COPY migrations migrations
COPY envoy/envoy.yaml envoy/
COPY examples/local examples/local
COPY src src
RUN cargo build --release --locked --bins -p tollgate -p tollgate-local \
 && mkdir -p out/empty \
 && cp target/release/tollgate target/release/tollgate-local out/

# --- The stand-ins
FROM ${RUNTIME_IMAGE} AS standins
LABEL org.opencontainers.image.title="tollgate-local" \
      org.opencontainers.image.description="Stand-ins for lum.id, Runmesh and FlowMesh, to try Tollgate with" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /build/out/tollgate-local /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/tollgate-local"]

# --- Tollgate
FROM ${RUNTIME_IMAGE} AS tollgate
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tollgate" \
      org.opencontainers.image.description="lum.id identity, Runmesh balance preflight, supplier attribution and billing for an unmodified FlowMesh, beside Envoy" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
# A volume that is mounted here for the first time gets its owner from these folders.
COPY --from=build --chown=65532:65532 /build/out/empty /var/lib/tollgate
COPY --from=build --chown=65532:65532 /build/out/empty /run/tollgate
COPY --from=build /build/out/tollgate /usr/local/bin/
# A number and not a name, so that whoever runs it can see that it is not root.
USER 65532:65532
WORKDIR /var/lib/tollgate
ENV TOLLGATE_LEDGER=sqlite:/var/lib/tollgate/ledger.db
EXPOSE 9001 9090
# Not ready is a ledger that cannot be read, or a stop.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["/usr/local/bin/tollgate", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["serve"]
