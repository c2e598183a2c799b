# syntax=docker/dockerfile:1
FROM rust:1.95.0-slim-bookworm AS build
# libopus is built from source. Debian's security updates would break a version pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked --bin callreel \
    && install -D target/dist/callreel /out/callreel

FROM debian:12-slim
# Root certificates for wss:// servers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/callreel --create-home callreel \
    && install -d -o callreel -g callreel /var/lib/callreel/recordings
COPY --from=build /out/callreel /usr/local/bin/callreel
USER 10001:10001
WORKDIR /var/lib/callreel
VOLUME /var/lib/callreel/recordings
ENTRYPOINT ["callreel"]
CMD ["--help"]
