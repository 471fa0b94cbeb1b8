# bridged with its own HAProxy: bridged starts `haproxy -W` and keeps it in step with Marathon.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/bridged ./cmd/bridged

FROM debian:trixie-slim
# setcap: HAProxy binds ports below 1024 without being root.
RUN apt-get update \
 && apt-get install -y --no-install-recommends haproxy ca-certificates libcap2-bin \
 && setcap cap_net_bind_service=+ep /usr/sbin/haproxy \
 && apt-get purge -y libcap2-bin && apt-get autoremove -y && rm -rf /var/lib/apt/lists/* \
 && useradd --system --home-dir /var/lib/bridged --create-home bridged \
 && install -d -o bridged -g bridged /run/haproxy /etc/bridged /etc/haproxy \
 && chown -R bridged:bridged /etc/haproxy
COPY --from=build /out/bridged /usr/bin/bridged
USER bridged
VOLUME /var/lib/bridged
EXPOSE 9377
ENTRYPOINT ["/usr/bin/bridged"]
CMD ["run", "--supervise", "--haproxy-socket", "/run/haproxy/admin.sock", "--haproxy-master-socket", "/run/haproxy/master.sock"]
