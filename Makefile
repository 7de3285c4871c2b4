# Aether's commands. Everything they need is installed into .venv (pinned, with hashes) or, for Kubernetes, into the
# user's cache folder. What a target starts and nobody asked to keep, it ends.

.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -q --custom-compile-command "make lock"
comma := ,
IMAGE_EXTRAS := --extra operator --extra runtime --extra gateway --extra cli

.PHONY: help
help: ## print this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements/dev.txt pyproject.toml
	@echo "installing the packages of requirements/dev.txt into .venv" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

.PHONY: install
install: $(STAMP) ## install the pinned packages into .venv

.PHONY: demo
demo: $(STAMP) ## run the bank on this machine: NATS, a runtime, a kill, nothing lost
	@$(BIN)/aether demo

.PHONY: demo-kubernetes
demo-kubernetes: $(STAMP) ## run the bank on a kind cluster with helm, and kill a pod
	@$(BIN)/python -m tests.e2e.demo

.PHONY: check
check: $(STAMP) ## lint, types, unit and architecture tests, in under a minute
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary -p aether_api -p aether_model -p aether_kube -p aether_nats -p aether_runtime -p aether_operator -p aether_cli -p bench -p tests
	@$(BIN)/pyright
	@$(BIN)/pytest -q --numprocesses=2 tests/architecture tests/unit

.PHONY: test
test: $(STAMP) ## run everything, the real Kubernetes included
	@$(MAKE) --no-print-directory check
	@$(BIN)/pytest -q tests/contract tests/released tests/integration tests/simulation
	@$(BIN)/pytest -q tests/e2e # by itself: its operator would mend what the tests of the CRDs write

.PHONY: simulate
simulate: $(STAMP) ## simulate clusters in storms, one for each seed (SEEDS=1-1000); failing seeds are printed, their traces kept
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),1-100)

.PHONY: bench
bench: $(STAMP) ## run the benches (ONLY=name,name ROUNDS= SECONDS= SMALL=1 PROFILE=1)
	@$(BIN)/python -m bench $(subst $(comma), ,$(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(SMALL),--small) $(if $(PROFILE),--profile build/bench) $(if $(REQUIRE_PEERS),--require-peers)

.PHONY: bench-docs
bench-docs: $(STAMP) ## run the benches on a quiet machine and write their tables into docs/performance.md
	@$(BIN)/python -m bench $(subst $(comma), ,$(ONLY)) --require-peers --save build/bench.jsonl
	@$(BIN)/python -m bench.report build/bench.jsonl

.PHONY: bench-peers
bench-peers: $(STAMP) ## install what the benches compare with, into the user's cache
	@$(BIN)/python -m bench.install

.PHONY: cluster
cluster: $(STAMP) ## start a kind cluster and keep it; prints its kubeconfig
	@$(BIN)/python -m tests.cluster up --keep

.PHONY: clean-cluster
clean-cluster: $(STAMP) ## remove the clusters, and the Docker engine if it was started here
	@$(BIN)/python -m tests.cluster clean

.PHONY: crds
crds: $(STAMP) ## generate crds/ and the CRD chart from the types
	@$(BIN)/python -m aether_operator.crdgen

.PHONY: image
image: $(STAMP) ## build the container image aether:dev
	@$(BIN)/python -m tests.cluster image

.PHONY: lock
lock: $(STAMP) ## pin every package anew, with hashes
	@$(LOCK) requirements/build.in -o requirements/build.txt
	@$(LOCK) pyproject.toml $(IMAGE_EXTRAS) -o requirements/image.txt
	@$(LOCK) pyproject.toml $(IMAGE_EXTRAS) --extra dev -o requirements/dev.txt
	@$(LOCK) bench/eventsourcing_peer/requirements.in -o bench/eventsourcing_peer/requirements.txt
	@sed -i '/^aether-actors/d' requirements/image.txt requirements/dev.txt

.PHONY: format
format: $(STAMP) ## format the code and mend what can be mended by itself
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .
