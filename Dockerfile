# syntax=docker/dockerfile:1

FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin heliostat && install -D target/release/heliostat /out/heliostat

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin heliostat \
    && install -d -o heliostat -g heliostat -m 0700 /data
COPY --from=build /out/heliostat /usr/local/bin/heliostat
USER heliostat
VOLUME /data
# Devices; the embedded CSP chat server. The admin port stays inside: it listens on loopback.
EXPOSE 8443 5222
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s --retries=3 CMD ["heliostat", "healthcheck"]
# SIGTERM: every device gets its farewell before the process ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["heliostat"]
CMD ["serve", "--data", "/data", "--listen", "0.0.0.0:8443", "--csp-listen", "0.0.0.0:5222"]
