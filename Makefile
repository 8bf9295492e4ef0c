# All that a developer runs. `make` lists the targets. Needs Go; `make test` sets up or names what else it needs.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Pinned, so that a finding appears with a commit and not with the calendar.
GOLANGCI_VERSION    := v2.15.0
BENCHSTAT_VERSION   := v0.0.0-20260908200009-22c9c6c9d4da
GOVULNCHECK_VERSION := v1.9.0

TOOLS       := bin/tools
GOLANGCI    := $(TOOLS)/golangci-lint@$(GOLANGCI_VERSION)
BENCHSTAT   := $(TOOLS)/benchstat@$(BENCHSTAT_VERSION)
GOVULNCHECK := $(TOOLS)/govulncheck@$(GOVULNCHECK_VERSION)

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

ARGS         ?=
PKGS         ?= ./...
TEST_TIMEOUT ?= 20m
FUZZTIME     ?= 5m
CRASH_ROUNDS ?= 10000
SOAK         ?= 10m
BENCH        ?= .
BENCH_COUNT  ?= 6

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the static binaries into bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/...

.PHONY: demo
demo: build ## play the whole loop on this machine (ARGS=--yes: without asking)
	@.ci/need bwrap || echo 'the agent will not be confined'
	./bin/bottle demo $(ARGS)

.PHONY: test
test: ## run all tests with the race detector, after setting up what they need
	@.ci/need cc git curl node bwrap busybox
	@.ci/engine require
	@code=0; CGO_ENABLED=1 go test -race -timeout $(TEST_TIMEOUT) $(PKGS) || code=$$?; .ci/engine report; exit $$code

.PHONY: e2e
e2e: ## run the real Claude Code in bottles, offline (needs node; npm installs it once)
	@.ci/need bwrap busybox curl git ps node npm
	@.ci/engine require
	@claude=$$(.ci/claude); image=; ! .ci/engine answers || image=$$(.ci/claude image); \
	BOTTLE_E2E_CLAUDE=$$claude BOTTLE_E2E_IMAGE=$$image CGO_ENABLED=0 go test -v -run '^TestClaudeCode$$' -parallel 3 -timeout 15m -count 1 ./cmd/bottle; .ci/engine report

.PHONY: lint
lint: $(GOLANGCI) ## vet, lint, and check the format
	go vet $(PKGS)
	$(GOLANGCI) run $(PKGS)

.PHONY: fmt
fmt: $(GOLANGCI) ## format
	$(GOLANGCI) fmt

.PHONY: bench
bench: $(BENCHSTAT) ## run the benchmarks and print one table (BENCH=regexp, BENCH_COUNT=n)
	@dirs=$$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -r -n1 dirname | sort -u); \
	[[ -n $$dirs ]] || { echo 'make bench: no benchmarks'; exit 0; }; \
	go test -p 1 -run '^$$' -bench '$(BENCH)' -benchmem -count $(BENCH_COUNT) -timeout 60m $$dirs | tee bin/bench.txt; \
	$(BENCHSTAT) bin/bench.txt

.PHONY: crash
crash: ## kill an apply at each step, CRASH_ROUNDS times, and look at what recovery makes of it
	BOTTLE_CRASH_ROUNDS=$(CRASH_ROUNDS) go test -run Crash -timeout 80m -count 1 ./apply/...

.PHONY: soak
soak: ## use a bottle without a pause for SOAK, kill its daemons meanwhile, and print what was lost
	BOTTLE_SOAK=$(SOAK) go test -v -run '^TestSoak$$' -timeout 0 -count 1 ./cmd/bottle

# Minimising is bounded in tries: an input whose coverage varies would hold the fuzzer for a minute each.
.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME
	@list=$$(go test -list '^Fuzz' $(PKGS)); \
	awk '/^Fuzz/ {t[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, t[i]} !/^Fuzz/ {n = 0}' <<<"$$list" | \
	while read -r pkg target; do \
		echo "== $$pkg $$target"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x "$$pkg" </dev/null; \
	done

.PHONY: vuln
vuln: $(GOVULNCHECK) ## look for known vulnerabilities in what is called (asks the Go vulnerability database)
	$(GOVULNCHECK) $(PKGS)

.PHONY: clean
clean: ## remove bin/, the tools included
	rm -rf bin

# install PACKAGE: the version is part of the file's name, so that a new pin installs anew.
define install
@mkdir -p $(TOOLS)
GOBIN=$(CURDIR)/$(TOOLS) GOFLAGS= go install $(1)@$(lastword $(subst @, ,$@))
@mv $(TOOLS)/$(notdir $(1)) $@
endef

$(GOLANGCI):
	$(call install,github.com/golangci/golangci-lint/v2/cmd/golangci-lint)

$(BENCHSTAT):
	$(call install,golang.org/x/perf/cmd/benchstat)

$(GOVULNCHECK):
	$(call install,golang.org/x/vuln/cmd/govulncheck)
