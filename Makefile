# MaxCoin Green Energy. `make` lists what there is.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DEMO_DIR ?= demo

.DEFAULT_GOAL := help
.PHONY: help venv demo test coverage check fmt bench guide pi fuzz chaos invariants proofs wheels contracts web screenshots vectors lock services clean slither mutants

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv with everything in it

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard native/*.c native/*.h native/build_scrypt.py)
	@scripts/system-packages $(PYTHON)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: venv ## a day of measured sunlight becomes tokens, in ./demo
	@$(BIN)/maxgreen demo --dir $(DEMO_DIR)

services: venv ## get the real services that the tests use, where this machine can have them
	@scripts/services

test: venv services ## run all tests, with real Mosquitto, PostgreSQL, InfluxDB and anvil where they can be had
	@scripts/test

coverage: venv services ## run the tests, and show which lines and branches they reach
	@scripts/test --cov --cov-report=term

check: venv ## what CI checks besides the tests: format, lint, types, imports, contracts, rules, vectors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/vectors.py --check
	$(BIN)/python scripts/rules.py
	$(BIN)/python scripts/dashboards.py --check
	$(BIN)/python scripts/alarms.py --check
	$(BIN)/python scripts/contract_pages.py --check
	scripts/contracts check
	scripts/web check

fmt: venv ## format the sources
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet . || true

bench: venv ## measure, side by side with peers
	@$(BIN)/python benchmarks/scrypt.py
	@$(BIN)/python benchmarks/agent.py
	@$(BIN)/python benchmarks/ingest.py
	@$(BIN)/python benchmarks/settlement.py
	@$(BIN)/python benchmarks/dapp.py

guide: venv services ## follow docs/operator.md word for word on Debian 12 and 13 (10 minutes, as root)
	@MAXGREEN_GUIDE_ROOTS="debian12 debian13" $(BIN)/python -m pytest tests/deploy/test_guide_operator.py

pi: venv services ## install the agent on an emulated 64-bit Pi (20 minutes, as root)
	@scripts/debian-roots $${XDG_CACHE_HOME:-$$HOME/.cache}/maxgreen/roots debian13-arm64
	@CI=true MAXGREEN_INSTALL_ROOTS=debian13-arm64 $(BIN)/python -m pytest tests/deploy/test_install.py

fuzz: venv ## fuzz the decoder and judging, ten million runs each (hours)
	@$(BIN)/pip install --quiet --disable-pip-version-check 'atheris>=3'
	@mkdir -p build/fuzz/decode build/fuzz/judge
	@$(BIN)/python -m tests.ingest.fuzz decode -runs=10000000 -max_len=2000 build/fuzz/decode tests/ingest/corpus/decode
	@$(BIN)/python -m tests.ingest.fuzz judge -runs=10000000 -max_len=400 build/fuzz/judge tests/ingest/corpus/judge

chaos: venv services ## trouble ingest's servers, networks, disk and clock 200 times, on each database and broker (an hour)
	@$(BIN)/python -m tests.ingest.chaos /tmp/maxgreen-chaos 200 sqlite
	@$(BIN)/python -m tests.ingest.chaos /tmp/maxgreen-chaos 200 postgresql
	@$(BIN)/python -m tests.ingest.chaos /tmp/maxgreen-chaos 200 postgresql 1 nats
	@$(BIN)/python -m tests.ingest.chaos /tmp/maxgreen-chaos 30 postgresql 1 nats 20 'nats node'

wheels: ## build wheels for this machine and for 64-bit Raspberry Pi OS into dist/
	@PYTHON=$(PYTHON) scripts/wheels

invariants: ## act on the contracts at random a million times (ten minutes)
	@FOUNDRY_PROFILE=long scripts/contracts invariants

slither: ## look for known faults of contracts with slither (half a minute)
	@test -x build/slither/bin/slither || { $(PYTHON) -m venv build/slither && build/slither/bin/pip install --quiet --disable-pip-version-check slither-analyzer==0.11.6; }
	@cd contracts && PATH="$(CURDIR)/contracts/node_modules/.bin:$$PATH" ../build/slither/bin/slither .

proofs: ## prove roles and soul-bound badges for every caller and call with halmos (two minutes)
	@test -x build/halmos/bin/halmos || { $(PYTHON) -m venv build/halmos && build/halmos/bin/pip install --quiet --disable-pip-version-check halmos==0.3.3; }
	@PATH="$(CURDIR)/build/halmos/bin:$$PATH" scripts/contracts proofs

mutants: venv ## count which changed guards and operators of the contracts the tests notice (an hour)
	@$(BIN)/python -m tests.chain.mutants --json build/mutants.json

contracts: venv ## compile the contracts into maxgreen/chain/artifacts, and make their pages
	@scripts/contracts build
	@$(BIN)/python scripts/contract_pages.py

web: venv ## bundle the pages' scripts and styles into dapp/static
	@scripts/web build

screenshots: venv services ## take the pictures of the pages in docs/pages again
	@$(BIN)/python scripts/screenshots.py

vectors: venv ## write docs/vectors again
	@$(BIN)/python scripts/vectors.py

lock: venv ## write constraints.txt again, with the newest versions
	@$(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --no-annotate --upgrade \
		--extra dev --extra pi --extra postgres --extra nats --extra s3 --extra pdf --extra dask --extra checks --extra bench --extra pkcs11 --extra tpm pyproject.toml -o constraints.txt

clean: ## remove what was built, but no cache outside this folder
	@rm -rf $(VENV) build dist *.egg-info native/_scrypt* native/_p256* .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage contracts/node_modules
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
