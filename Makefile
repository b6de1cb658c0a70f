# One local command for everything: `make help` lists them. Override with `make NAME=value target`.

VENV ?= .venv
# A version manager may put a `python3.12` on the path that only says it is not installed: ask each by running it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& command -v $$python && break; done)
DATA ?=
COMPARE ?=
NAMES ?=
QUICK ?=
# Other people's videos and schemas: tests that need them run where they are, and `make check` says when they are not.
CLIPS ?= $(abspath ../shared/clips)
KUBERAY_CRDS ?= $(abspath ../shared/data/kuberay-crds)
export CLIPS KUBERAY_CRDS
KUSTOMIZE := $(shell kubectl version --client 2>/dev/null | grep 'Kustomize Version: v[5-9]')
NOT_HERE := $(if $(wildcard $(CLIPS)/manifest.csv),,clips) $(if $(wildcard $(KUBERAY_CRDS)/*.yaml),,kuberay) \
	$(if $(KUSTOMIZE),,kustomize)
FAST := not faults and not slow and not s3 and not cluster and not deploy $(foreach mark,$(NOT_HERE),and not $(mark))

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
RUN_READY := $(VENV)/.ready-to-run
DEV_READY := $(VENV)/.ready-to-develop
DOCS_READY := $(VENV)/.ready-to-document

# DeepSpeed looks for ninja, and a job for `python`, on the path.
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo demo-images setup check test test-ray test-slow test-faults test-s3 test-cluster test-deploy bench audit docs constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUN_READY) ## the whole way, from videos to tags; DATA=folder for your own videos, COMPARE=true also from scratch
	$(BIN)/python -m jobs.demo $(if $(DATA),'source=$(DATA)') $(if $(COMPARE),'compare=$(COMPARE)')

demo-images: $(RUN_READY) ## the same with images; DATA=folder for your own
	$(BIN)/python -m jobs.demo media=image output=build/demo-images videos=240 $(if $(DATA),'source=$(DATA)') $(if $(COMPARE),'compare=$(COMPARE)')

setup: $(DEV_READY) ## .venv with everything pinned, developers' tools included

check: $(DEV_READY) ## format, lint, types, boundaries, fast tests without Ray
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@test -z "$(strip $(NOT_HERE))" || echo "What the tests marked $(NOT_HERE) need is not here (CLIPS=, KUBERAY_CRDS=, a kubectl with Kustomize 5): they are left out."
	OMP_NUM_THREADS=1 $(PYTEST) -n 3 --dist worksteal -m "not ray and $(FAST)"

test: check test-ray ## check, then everything that needs Ray, DeepSpeed, MLflow or moto

test-ray: $(DEV_READY)
	OMP_NUM_THREADS=1 $(PYTEST) -n 3 --dist loadfile -m "ray and $(FAST)"

test-slow: MARK = slow
test-faults: MARK = faults
test-s3: MARK = s3
test-cluster: MARK = cluster
test-deploy: MARK = deploy
test-slow: ## whole runs of minutes: the README's commands, every ZeRO stage, two hosts, images, all real clips
test-faults: ## kills, fuzzing, dead servers
test-s3: ## a real S3 server
test-cluster: ## two hosts in network namespaces
test-deploy: ## image build, Slurm, Prometheus
test-slow test-faults: $(DEV_READY)
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile -m $(MARK)
test-s3 test-cluster test-deploy: $(DEV_READY)
	$(PYTEST) -m $(MARK)

bench: $(DEV_READY) ## ratios side by side into build/bench.json; NAMES="a b" picks some, QUICK=1 shortens
	$(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick) $(NAMES)

audit: $(DEV_READY) ## known faults of packages, bill of materials, linters; says what it could not reach
	@test -x build/audit/bin/pip-audit || { $(BIN)/python -m venv build/audit && build/audit/bin/python -m pip install \
		--quiet --disable-pip-version-check 'pip-audit>=2.9,<3' 'cyclonedx-bom>=7,<8'; } || echo "pip-audit and cyclonedx-bom could not be installed."
	$(BIN)/python -m tests.support.audit

docs: $(DOCS_READY) ## the documentation as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

constraints: $(DEV_READY) ## pin anew what pyproject.toml asks for, keeping pins that still fit
	$(BIN)/python -m pip install --quiet uv
	printf 'setuptools\nwheel\n' | $(BIN)/uv pip compile pyproject.toml - --extra dev --extra deepspeed --extra docs --extra postgresql \
		--universal --python-version 3.11 --python $(BIN)/python --no-build-isolation-package deepspeed \
		--no-emit-index-url --annotation-style line --custom-compile-command "make constraints" \
		--quiet --output-file constraints.txt

clean: ## remove build/ and caches; .venv stays
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with venv found; give one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and DeepSpeed without build isolation, because DeepSpeed is built from source against that torch.
$(RUN_READY): constraints.txt pyproject.toml | $(BIN)/python
	@echo "[1/2] torch, CPU or CUDA build as pip finds it"
	$(PIP) setuptools wheel torch
	@echo "[2/2] Ray, DeepSpeed, MLflow and what else the programs need"
	$(PIP) --no-build-isolation --editable '.[deepspeed]'
	@touch $@

# The official model is a peer in tests. Its own dependencies (timm, torchvision) do not load with a CPU build of torch.
$(DEV_READY): $(RUN_READY)
	@echo "Developers' tools and the peers that tests compare with"
	$(PIP) --no-build-isolation --editable '.[deepspeed,dev]'
	$(PIP) --no-deps hiera-transformer==0.1.4
	@touch $@

$(DOCS_READY): $(RUN_READY)
	@echo "MkDocs, its theme and the API reference"
	$(PIP) --no-build-isolation --editable '.[deepspeed,docs]'
	@touch $@
