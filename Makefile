# pullab. `make help` lists what there is to do.
SHELL := /bin/bash
GO ?= go
BIN := $(CURDIR)/bin
TOOLS := $(CURDIR)/.cache/tools
MODULES := $(shell sed -n 's|^\t\./||p' go.work)
ALL := $(addsuffix /...,$(addprefix ./,$(MODULES)))
LDFLAGS := -s -w
GUESTBIN := services/pullab/guestbin/bin
FUZZTIME ?= 20s
CONFIG ?= pullab.yaml
IMAGE_PREFIX ?= pullab

BUF_VERSION := v1.75.0
PROTOC_GEN_GO_VERSION := v1.36.12
GOLANGCI_VERSION := v2.15.0
NATS_SERVER_VERSION := v2.15.2

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

.PHONY: run
run: build qemu ## one boot job with a real kernel through the whole lab, on this machine
	$(BIN)/pullab up --demo --once $(DEMO_FLAGS)

.PHONY: test
test: guest qemu ## every test of every module
	$(GO) vet $(ALL)
	$(GO) test -timeout 20m $(TESTFLAGS) $(ALL)

.PHONY: race
race: guest ## the tests without real kernels, under the race detector
	$(GO) test -race -short -timeout 25m $(ALL)

.PHONY: build
build: guest ## bin/pullab and a binary per service
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ \
		./services/pullab/cmd/pullab ./services/poller/cmd/poller ./services/translator/cmd/translator \
		./services/runner/cmd/runner ./services/submitter/cmd/submitter ./services/standin/cmd/pullab-standin

.PHONY: guest
guest: ## the program that runs inside the machines, for both arches
	@mkdir -p $(GUESTBIN)
	@for a in amd64 arm64; do \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$a $(GO) build -trimpath -ldflags '$(LDFLAGS)' \
			-o $(GUESTBIN)/pullab-guest-$$a ./services/guest/cmd/pullab-guest || exit 1; \
	done

.PHONY: qemu
qemu: ## install QEMU when root, else print the one command that does
	@deploy/install-qemu

.PHONY: lint
lint: $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION) ## the walls: golangci-lint over every module
	@for m in $(MODULES); do echo "lint $$m"; (cd $$m && $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION) run --config $(CURDIR)/.golangci.yaml ./...) || exit 1; done

.PHONY: proto
proto: $(TOOLS)/buf-$(BUF_VERSION) $(TOOLS)/protoc-gen-go-$(PROTOC_GEN_GO_VERSION) ## lint the protos and generate the Go code
	@ln -sf protoc-gen-go-$(PROTOC_GEN_GO_VERSION) $(TOOLS)/protoc-gen-go
	cd proto && $(TOOLS)/buf-$(BUF_VERSION) lint && PATH=$(TOOLS):$$PATH $(TOOLS)/buf-$(BUF_VERSION) generate

.PHONY: proto-check
proto-check: proto ## fail when the generated code is not what the protos say
	@test -z "$$(git status --porcelain -- proto)" || { git status --short -- proto; git --no-pager diff --stat -- proto; echo "proto/gen is stale: commit what 'make proto' wrote"; exit 1; }

.PHONY: walls
walls: ## every module builds alone: go.work hides a missing requirement
	@for m in $(MODULES); do echo "GOWORK=off $$m"; (cd $$m && GOWORK=off GOFLAGS=-mod=readonly $(GO) build ./...) || exit 1; done

.PHONY: docs
docs: ## write docs/configuration.md from the configuration structs
	$(GO) run ./services/pullab/cmd/pullab config docs > docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md

.PHONY: bench
bench: guest qemu ## jobs per second, durable writes, memory, and what the demo adds to a bare boot
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m ./services/pullab/...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s)
	@for d in $$(grep -rl --include=*_test.go '^func Fuzz' $(MODULES) | xargs -n1 dirname | sort -u); do \
		for f in $$(grep -rhoE '^func Fuzz[A-Za-z0-9_]+' $$d/*_test.go | awk '{print $$2}'); do \
			echo "fuzz $$d $$f"; $(GO) test ./$$d -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x || exit 1; \
		done; done

.PHONY: poller
poller: ## the poller against CONFIG (pullab.yaml), for ever
	$(GO) run ./services/poller/cmd/poller --config $(CONFIG)

.PHONY: poller-once
poller-once: ## one poll against CONFIG (pullab.yaml)
	$(GO) run ./services/poller/cmd/poller --config $(CONFIG) --once

.PHONY: images
images: ## container images FROM scratch: no registry needed
	deploy/images/build $(IMAGE_PREFIX)

.PHONY: nats-image
nats-image: ## a NATS server image FROM scratch, built from the Go module
	NATS_SERVER_VERSION=$(NATS_SERVER_VERSION) deploy/images/build-nats $(IMAGE_PREFIX)

.PHONY: compose-test
compose-test: ## docker compose brings the demo job to accepted rows
	@docker info >/dev/null 2>&1 || echo "!!! NO CONTAINER ENGINE ('docker info' fails): images were NOT built, docker-compose.yml was NOT tested" >&2
	@! docker info >/dev/null 2>&1 || $(MAKE) --no-print-directory compose-run

.PHONY: compose-run
compose-run: images nats-image
	cd deploy/composetest && GOWORK=off IMAGE_PREFIX=$(IMAGE_PREFIX) TESTCONTAINERS_RYUK_DISABLED=true TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1 \
		$(GO) test -count=1 -v -timeout 15m ./...

.PHONY: clean
clean: ## remove what make made
	rm -rf $(BIN) .cache $(GUESTBIN)/pullab-guest-*

$(TOOLS)/buf-$(BUF_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOWORK=off $(GO) install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION) && mv $(TOOLS)/buf $@

$(TOOLS)/protoc-gen-go-$(PROTOC_GEN_GO_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOWORK=off $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION) && mv $(TOOLS)/protoc-gen-go $@

$(TOOLS)/golangci-lint-$(GOLANGCI_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOWORK=off $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION) && mv $(TOOLS)/golangci-lint $@
