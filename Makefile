# make demo     train a tiny model with PPO on this machine's CPU, in one process
# make check    linters, types and the fast tests (under two minutes once installed)
# make test     the whole suite with the real Ray, vLLM and DeepSpeed on the CPU
# make bench    measure speed and memory against a bare loop and TRL; writes benchmarks/RESULTS.md (about 15 minutes)
# make certificate  measure that nothing which must not change a gradient does; writes docs/certificate.md (a few minutes)
# make faults   inject every fault that a run must survive; writes docs/faults.md (about ten minutes)
# make soak     2000 RL steps on Ray, vLLM and DeepSpeed, and what they leave behind (about seven minutes)
# make learning  every advantage estimator learns in one process and on Ray, apart and together; writes docs/learning.md
# make cluster  install what `.venv/bin/openrlhf demo --cluster` needs on a machine without a GPU
# make docs     build the documentation as a site in site/, every link checked
# make lock     write requirements/*.lock from the versions in .venv (see requirements/lock.py)
#
# Everything lives in .venv; a lock file is installed once and again when it changes.

PYTHON ?= python3
PYTEST_ARGS ?=
# Test files that run at once. A slow one starts several processes of its own, so more workers than cores do not pay.
TEST_WORKERS ?= 2
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

# The one place for the environment of demos and tests. One thread a process: several spinning thread pools on a few
# cores are many times slower. TORCH_COMPILE_DISABLE removes a long stall at vLLM's first request, the engine stays in
# its own process, and compiled extensions are kept beside the packages that they were compiled for.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
export TORCH_COMPILE_DISABLE ?= 1
export DS_ACCELERATOR ?= cpu
export VLLM_ENABLE_V1_MULTIPROCESSING ?= 0
export VLLM_CPU_KVCACHE_SPACE ?= 1
export VLLM_NO_USAGE_STATS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export WANDB_MODE ?= offline
export MPLBACKEND ?= agg
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions
export PATH := $(BIN):$(PATH)

.PHONY: demo check test bench certificate learning docs faults soak cluster lock
.DELETE_ON_ERROR:

demo: $(VENV)/.base
	$(BIN)/openrlhf demo

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --dist worksteal -m "not slow and not cluster and not gpu" --ignore=tests/cluster $(PYTEST_ARGS)

test: $(VENV)/.test
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile -m "not gpu" $(PYTEST_ARGS)

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks --write

certificate: $(VENV)/.test
	$(BIN)/python -m certificate --write

learning: $(VENV)/.test
	$(BIN)/python -m certificate.learning --write

faults: $(VENV)/.test
	$(BIN)/python -m tests.faults --write

soak: $(VENV)/.test
	$(BIN)/python -m tests.faults.soak --write

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

cluster: $(VENV)/.cluster

lock: $(BIN)/python
	$(BIN)/python requirements/lock.py

# torch comes first and with its own dependencies: the index of this machine decides between a CPU and a CUDA build.
# The rest is a complete list already, so pip has nothing to resolve.
$(VENV)/.%: requirements/%.lock pyproject.toml | $(BIN)/python
	@echo "installing requirements/$*.lock into $(VENV) (the first time takes minutes)"
	$(PIP) install --constraint $< $(shell grep '^torch==' requirements/base.lock)
	$(PIP) install --no-deps --requirement $<
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
