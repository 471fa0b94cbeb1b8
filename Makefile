# Targets for people and for CI alike: `make help` lists them.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO      ?= go
# Static, trimmed and the same bytes from the same tree.
BUILD    = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

COUNT    ?= 1
TIMEOUT  ?= 15m
BENCH    ?= .
FUZZTIME ?= 30s

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## both programs into bin/
	$(BUILD) -o bin/bridged ./cmd/bridged
	$(BUILD) -o bin/clusterctl ./cmd/clusterctl

.PHONY: deps
deps: ## what the tests need: HAProxy of several versions, ZooKeeper, cloud-init (Debian and Ubuntu, through apt)
	@hack/deps.sh test

.PHONY: demo
demo: build ## the main job on this machine: a Marathon simulator, sample apps, bridged and a real HAProxy
	@hack/deps.sh demo
	@bin/bridged demo $(ARGS)

.PHONY: demo-cluster
demo-cluster: build ## clusterctl builds, scales and removes the example cluster on a vSphere simulator
	@$(GO) run ./internal/provision/vsim/democluster -clusterctl bin/clusterctl -blueprint examples/dev.yaml $(ARGS)

.PHONY: test
test: deps ## everything, with the race detector
	$(GO) vet ./...
	BRIDGED_REQUIRE_HAPROXY=1 $(GO) test -race -count=$(COUNT) -timeout $(TIMEOUT) ./...

.PHONY: short
short: ## the tests that need nothing but Go
	$(GO) test -short ./...

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, shell syntax
	@test -z "$$(gofmt -l cmd internal templates)" || { gofmt -l cmd internal templates; echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@for f in hack/*.sh .ci/run; do bash -n "$$f"; done

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each (30s)
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: deps ## every benchmark, as a table (BENCH=regexp, COUNT=n)
	@hack/bench.sh '$(BENCH)' $(COUNT)

CHAOS ?= 6m
.PHONY: chaos
chaos: deps ## a random walk of faults under load on each HAProxy version (CHAOS=6m in all; CHAOS_SEED repeats one)
	BRIDGED_REQUIRE_HAPROXY=1 CHAOS=$(CHAOS) $(GO) test -count=1 -timeout 0 -v -run '^TestChaos$$' ./internal/bridge

.PHONY: haproxy-matrix
haproxy-matrix: deps ## the integration tests on each HAProxy version below .deps/haproxy and on the installed one
	BRIDGED_REQUIRE_HAPROXY=1 $(GO) test -count=1 -timeout $(TIMEOUT) ./internal/haproxy/... ./internal/bridge
	@for bin in $$(command -v haproxy) .deps/haproxy/*/haproxy; do \
	  name=$$($$bin -v | sed -nE '1s/.*version ([0-9]+\.[0-9]+).*/\1/p'); \
	  echo "TestChaos on HAProxy $$name"; \
	  CHAOS_HAPROXY=$$name BRIDGED_REQUIRE_HAPROXY=1 $(GO) test -count=1 -timeout $(TIMEOUT) -run '^TestChaos$$' ./internal/bridge || exit 1; \
	done

.PHONY: cover
cover: ## test coverage by function
	$(GO) test -coverprofile=bin/cover.out ./...
	$(GO) tool cover -func=bin/cover.out | tail -n 1

.PHONY: image
image: ## container image with bridged and HAProxy (needs docker or podman)
	docker build -t bridged:$(VERSION) --build-arg VERSION=$(VERSION) .

.PHONY: generate
generate: ## write the man pages, completions and reference pages that are made from the code
	$(GO) test ./cmd/bridged ./cmd/clusterctl -run TestGenerated -args -generate

.PHONY: deb rpm
deb rpm: build ## package with both programs into dist/
	@hack/package.sh $@ $(VERSION)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
