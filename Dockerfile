# syntax=docker/dockerfile:1
# `make image` builds it. Both base images can be replaced, for a mirror or a newer patch.
ARG BUILD_IMAGE=docker.io/library/rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# Cargo wants every target that the manifest names to be there; tests and benches are not needed.
RUN sed -n 's/^path = "\(.*\)"$/\1/p' Cargo.toml >targets && \
    while read -r file; do mkdir -p "$(dirname "$file")" && touch "$file"; done <targets
# The caches outlive the build: after an edit only relay itself is compiled. The target
# directory is no part of the image, so the binary is copied out of it.
RUN --mount=type=cache,id=relay-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=relay-target,target=/src/target \
    cargo build --release --locked --bin relay && \
    cp target/release/relay /usr/local/bin/relay

FROM ${RUNTIME_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="relay" \
      org.opencontainers.image.description="Streams Redis Streams to WebSocket clients, beside the API you already have." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY LICENSE /usr/share/doc/relay/LICENSE
COPY --from=build /usr/local/bin/relay /usr/local/bin/relay
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 8081 9091
# Without a shell: there is none in the image.
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/relay", "health", "--config", "/etc/relay/relay.toml"]
ENTRYPOINT ["/usr/local/bin/relay"]
CMD ["run", "--config", "/etc/relay/relay.toml"]
