# syntax=docker/dockerfile:1

# One static binary in an otherwise empty image. Against musl, because a static glibc cannot look up names of chat servers.
FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates musl-tools \
    && rm -rf /var/lib/apt/lists/* \
    && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --target "$(uname -m)-unknown-linux-musl" --bin heliostat \
    && install -D "target/$(uname -m)-unknown-linux-musl/release/heliostat" /out/usr/local/bin/heliostat \
    && strip --strip-debug /out/usr/local/bin/heliostat
# What an authority's certificate is checked with (ACME), the manual, and where everything is kept.
RUN install -D /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt \
    && /out/usr/local/bin/heliostat man --dir /out/usr/local/share/man/man1 \
    && install -d -m 0700 -o 10001 -g 10001 /out/data

FROM scratch
LABEL org.opencontainers.image.title="Heliostat" \
      org.opencontainers.image.description="An open mediator server for device groups, and the chat servers behind it" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /out/ /
USER 10001:10001
# Also where SQLite puts what does not fit into memory: there is no /tmp.
WORKDIR /data
VOLUME /data
# Devices; the embedded CSP chat server. The admin door stays inside: it listens on loopback.
EXPOSE 8443 5222
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s --retries=3 CMD ["/usr/local/bin/heliostat", "healthcheck"]
# Every device gets its farewell before the process ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/heliostat"]
CMD ["serve", "--data", "/data", "--listen", "0.0.0.0:8443", "--csp-listen", "0.0.0.0:5222"]
