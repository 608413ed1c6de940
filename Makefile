# `make help` lists what there is. CI runs .ci/run, which calls these targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOLANGCI := .cache/bin/golangci-lint
ORACLE := .cache/oracle/bin/python

# The program needs no C compiler; CGO is asked for by name where the race
# detector does.
export CGO_ENABLED := 0

# Packages with goroutines of their own, for the race detector, which makes code
# ten times slower. Kernels are left out: they are assembly, it cannot see into
# them. Skipped is long arithmetic on one goroutine; of the tokenizer, the one
# test that shares a tokenizer runs.
RACE := ./allreduce ./checkpoint/... ./coordinator ./coordinator/raftlog ./data ./device/opaque ./internal/console ./internal/gossip \
  ./internal/monitor ./internal/vfs ./proto/leader ./client ./fleet ./worker/agent
RACE_SKIP := TestOpaqueConforms/(Operations|Invariance)|TestOpaqueGivesTheBitsOfTheGenericPath|TestTheDemosPacksAreThoseOfPython

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/skein, one static binary
	@go build -trimpath -ldflags '$(LDFLAGS)' -o bin/skein ./cmd/skein
	@echo "bin/skein $(VERSION)"

.PHONY: operator
operator: ## bin/skein-operator, which runs Skein in Kubernetes; one static binary
	@go build -trimpath -ldflags '$(LDFLAGS)' -o bin/skein-operator ./cmd/skein-operator
	@echo "bin/skein-operator $(VERSION)"

IMAGES ?= localhost
.PHONY: image
image: build operator ## bin/skein.tar and bin/skein-operator.tar: OCI archives of images IMAGES/…:VERSION, made without Docker
	@for program in skein skein-operator; do \
	  go run ./scripts/image --name $(IMAGES)/$$program:$(VERSION) --binary bin/$$program --out bin/$$program.tar; \
	  echo "bin/$$program.tar $(IMAGES)/$$program:$(VERSION)"; done

.PHONY: kube
kube: ## a real API server of Kubernetes into .cache/kube, once, for the tests of k8s/ (some eight minutes)
	@scripts/kube.sh

.PHONY: helm
helm: ## helm into .cache/bin, once, for the tests of k8s/helm and docs/KUBERNETES.md (two minutes)
	@cd tools/helm && go build -trimpath -o ../../.cache/bin/helm helm.sh/helm/v3/cmd/helm

.PHONY: kube-nodes
kube-nodes: ## kubelet, containerd, scheduler, controllers and DNS into .cache/kube, once, for make e2e (some ten minutes more)
	@scripts/kube.sh nodes

NODES ?= 200
.PHONY: kube-scale
kube-scale: ## NODES=200 nodes with nothing behind them and NODES/4 queued jobs of four workers, under Kubernetes' own scheduler
	@SKEIN_NODES=$(NODES) go test -v -tags invariants -count=1 -run TestTheSchedulerPlacesGangsWholeOrNotAtAll ./k8s/apitest \
	  | grep --line-buffered -Ev '^(=== |--- PASS|PASS|ok )'

STEPS ?= 12000
.PHONY: e2e
e2e: ## Skein on three real nodes of Kubernetes on this machine, as root: installed, scaled, crashed, drained, rolled, deleted; STEPS=12000 of the job, 0 for a short form
	@lacks=$$(k8s/e2e/nodes.sh lacks "$$(scripts/kube.sh nodes --where)"); \
	  if [ -n "$$lacks" ]; then echo "e2e SKIPPED: $$lacks"; exit; fi; \
	  $(MAKE) image; go run ./scripts/image --name $(IMAGES)/skein:$(VERSION)-next --binary bin/skein --out bin/skein-next.tar; \
	  trap 'k8s/e2e/nodes.sh down .cache/kube/e2e/state >.cache/kube/e2e/down.log' EXIT; mkdir -p .cache/kube/e2e; \
	  SKEIN_E2E=$(IMAGES)/skein:$(VERSION) SKEIN_E2E_STEPS=$(STEPS) go test -v -count=1 -timeout 60m ./k8s/e2e \
	  | grep --line-buffered -Ev '^(=== |--- PASS|PASS|ok )'

.PHONY: test
test: vet race ## what CI runs: vet, gofmt, every test with invariants on, the race detector where there is a C compiler
	go test -tags invariants ./...

.PHONY: vet
vet: ## gofmt and go vet
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l); \
	  if [ -n "$$unformatted" ]; then echo "not formatted; run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	go vet -tags invariants ./...

.PHONY: race
race: ## the packages with goroutines under the race detector, where there is a C compiler
	@if command -v cc >/dev/null; then \
	  set -x; CGO_ENABLED=1 go test -race -short -tags invariants -skip '$(RACE_SKIP)' $(RACE); \
	  CGO_ENABLED=1 go test -race -short -tags invariants -run 'Goroutines' ./tokenizer; \
	else echo "race detector skipped: no C compiler (cc) here"; fi

.PHONY: fetch
fetch: ## models, vocabularies and texts of others into .cache/testdata, pinned by version and hash
	@scripts/fetch.sh all

.PHONY: demo
demo: build ## fine-tune SmolLM2-135M-Instruct on a cluster of seven processes and show it before and after
	@scripts/fetch.sh demo
	@scripts/demo.sh

.PHONY: demo-check
demo-check: build ## train the job of the last demo in one process; the weights must be the same
	@scripts/demo.sh check

.PHONY: oracle
oracle: ## PyTorch and Hugging Face in .cache/oracle, for parity, bench and new golden numbers
	@scripts/oracle.sh

.PHONY: parity
parity: build oracle fetch ## live against PyTorch: SmolLM2's held-out loss, the demo's recipe
	@scripts/parity.sh

.PHONY: kills
kills: ## fifty kill -9 at random moments of a job; every run must end on the undisturbed hash
	SKEIN_KILLS=$${SKEIN_KILLS:-50} go test -tags invariants -count=1 -timeout 60m -run TestAKilledJob -v ./cmd/skein

KILLS ?= 20
FAULTS ?= 200
.PHONY: chaos
chaos: ## KILLS=20 times kill -9 of a whole cluster, then FAULTS=200 of every kind on single processes, links and the store; SEED=n repeats a run
	@SKEIN_CHAOS=$(KILLS) SKEIN_FAULTS=$(FAULTS) SKEIN_CHAOS_SEED=$(SEED) go test -v -tags invariants -count=1 -timeout 120m \
	  -run 'TestEveryProcessIsKilled|TestFaultsOfEveryKind' ./cmd/skein | grep --line-buffered -Ev '^(=== |--- PASS|PASS|ok )'

MINUTES ?= 30
.PHONY: soak
soak: ## MINUTES=30 of undisturbed training with every core busy: no new generation, no election
	@SKEIN_SOAK=$(MINUTES) go test -v -tags invariants -count=1 -timeout 24h -run TestNobodyIsAccusedWhileEveryCoreIsBusy ./cmd/skein \
	  | grep --line-buffered -Ev '^(=== |--- PASS|PASS|ok )'

.PHONY: linear
linear: ## N=50 kills and partitions of coordinators under clients; one order must explain all answers. SEED=n repeats the draw
	@SKEIN_LINEAR="$${N:-50}" SKEIN_LINEAR_SEED=$(SEED) go test -v -tags invariants -count=1 -timeout 60m -run 'Linearizable' ./coordinator/linear

.PHONY: sim
sim: ## SEED=n plays one schedule of the simulated cluster with its trace; without, N (a million) from FROM (1) on
	@if [ -n "$(SEED)" ]; then SEED=$(SEED) go test -tags invariants -count=1 -run TestEverySchedule -v ./sim; \
	else SKEIN_SIM="$${N:-1000000} $${FROM:-1}" go test -tags invariants -count=1 -timeout 24h -run TestEverySchedule -v ./sim; fi

BENCH ?=
.PHONY: bench
bench: build oracle fetch ## compare with PyTorch in the same run; BENCH=prefix selects
	@scripts/bench.sh '$(BENCH)'

.PHONY: bench-quick
bench-quick: build ## our side of the benchmarks alone, on little data, to see that it runs
	@scripts/bench.sh --quick

.PHONY: bench-recovery
bench-recovery: oracle ## goodput with a worker killed each minute, beside torchrun; MINUTES=10 a line, STEPS="1 11" seconds, OURS=only
	@scripts/bench-recovery.sh

STRIKES ?= 10
.PHONY: bench-reaction
bench-reaction: ## how soon a fault is noticed and the next step is taken, a new leader answers, the workers change: STRIKES=10 of each, as root
	@SKEIN_REACTION=$(STRIKES) go test -v -count=1 -timeout 60m -run 'TestBenchReaction$$' ./cmd/skein | grep --line-buffered -Ev '^(=== |--- PASS|PASS|ok )'

WORKERS ?= 1000
.PHONY: bench-scale
bench-scale: build ## WORKERS=1000 workers of fake jobs against three coordinators; docs/SCALE.md says what that shows
	@go build -o .cache/bin/scalebench ./cmd/scalebench
	@.cache/bin/scalebench -workers $(WORKERS)

CROSS ?=
.PHONY: cross
cross: ## other machines: macOS builds; the hashes with GOAMD64=v3 and, under QEMU, as arm64; its tests (CROSS=short: not)
	@scripts/cross.sh $(CROSS)

INPUTS ?= 20000x
.PHONY: fuzz-smoke
fuzz-smoke: ## every fuzz target on so many INPUTS (20000x)
	@scripts/fuzz.sh $(INPUTS)

.PHONY: lint
lint: $(GOLANGCI) ## golangci-lint, pinned in tools/go.mod
	@$(GOLANGCI) run ./...

$(GOLANGCI): tools/go.mod tools/go.sum
	@echo "building golangci-lint, once"
	@mkdir -p $(@D)
	@cd tools && go build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: generate
generate: ## everything that a program writes: kernels (needs gcc and binutils), the job file's reference, Kubernetes' definitions
	go generate ./...
	go test ./jobspec -run Reference -rewrite >/dev/null
	go test ./k8s/crd -run Generated -rewrite >/dev/null
	go test ./k8s/helm -run Generated -rewrite >/dev/null

.PHONY: check-generated
check-generated: generate ## generate, then a clean tree
	@if [ -n "$$(git status --porcelain)" ]; then echo "make generate changed the tree:"; git status --short; exit 1; fi

.PHONY: clean
clean: ## remove what make build and make demo made; fetched files stay
	rm -rf bin demo-out
