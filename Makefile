# Everything a checkout needs, from nothing: `make demo`, `make test`. Each target sets up what it lacks in .venv, once.
#
#   PYTHON=python3.12      interpreter for a new .venv              (default python3; 3.11 or later for constraints.txt)
#   PIP_ARGS="..."         passed to every pip install, e.g. --extra-index-url with PyTorch's index of CPU builds
#   PYTEST_ARGS="-k conv"  passed to pytest
#   GLASSCONV_CUDA, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS: see "Building" in README.md
#   BENCH_ARGS=--quick     passed to the benchmark of the neighbor search or of the convolution
#   GPU_PYTHON=python3     interpreter for `make gpu`, with torch and a GPU; GPU_ARGS: its arguments

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
DEMO_OUT ?= runs/demo
GPU_PYTHON ?= python3
GPU_ARGS ?=
BENCH_ARGS ?=
STATIC_ARGS ?=

# Whoever builds here runs here: the architecture of this machine's GPUs is enough, else one that newer GPUs can run too.
ifndef TORCH_CUDA_ARCH_LIST
GPU_ARCHS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+[.][0-9]+$$' | sort -u)
export TORCH_CUDA_ARCH_LIST := $(or $(GPU_ARCHS),9.0+PTX)
endif

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
BASE_STAMP := $(VENV)/.glassconv-base
TOOLS_STAMP := $(VENV)/.glassconv-tools
PEERS_STAMP := $(VENV)/.glassconv-peers
CXX_SOURCES = $(shell find csrc tests/emulated -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | grep -v clebsch_gordan)

# One worker per core; a worker's own threads would only compete with the other workers. (Slow tests use all cores themselves.)
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 -o junit_family=xunit1

.PHONY: help demo test ci-full lint format build emulated sanitized gpu static bench bench-neighbors bench-conv clean

help:
	@echo "make demo     train a small network on the packaged sample; metrics and plots in $(DEMO_OUT)"
	@echo "make test     the tests for every change"
	@echo "make ci-full  everything CI checks, then the long tests"
	@echo "make lint     formatting, lint and types;  make format: apply the formatting"
	@echo "make build    the native extension, in place;  make emulated: the CUDA kernels for the CPU, which tests run"
	@echo "make gpu      checks on a GPU, with GPU_PYTHON and without .venv"
	@echo "make static   the compiler's report of the CUDA kernels, in benchmarks/results/static"
	@echo "make bench    benchmarks, with records in benchmarks/results;  make bench-neighbors: of the neighbor search alone"
	@echo "make bench-conv  the benchmark of the convolution, beside e3nn and the machine's limits"
	@echo "make clean    remove build products and caches (not .venv)"

# pip is the last thing a new environment gets: without it the creation was interrupted.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "glassconv: $(PYTHON) not found; install Python 3.11 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "glassconv: $(PYTHON) is $$($(PYTHON) --version 2>&1), the tested versions need 3.11 or later; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "glassconv: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo "glassconv: $(PYTHON) cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

# torch first and alone, so that nothing installed after it can choose another one; the extension is compiled against it.
$(BASE_STAMP): constraints.txt | $(BIN)/pip
	@echo "glassconv: installing torch and the build requirements"
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) setuptools wheel ninja pybind11 numpy
	@touch $@

# Without the extension: pip would compile it in a folder that it throws away, `make build` recompiles only what changed.
$(TOOLS_STAMP): pyproject.toml setup.py $(BASE_STAMP)
	@command -v $${CXX:-g++} >/dev/null || { echo "glassconv: no C++ compiler ($${CXX:-g++}); install g++ 12 or later (Debian, Ubuntu: apt install g++), or set CXX" >&2; exit 1; }
	@echo "glassconv: installing what the package and its extras need"
	@GLASSCONV_NATIVE=0 $(PIP_INSTALL) --no-build-isolation -e '.[train,simulate,test,static,dev]'
	@touch $@

# The libraries that benchmarks compare with: 200 MB, and nothing but benchmarks needs them.
$(PEERS_STAMP): pyproject.toml $(TOOLS_STAMP)
	@echo "glassconv: installing what the benchmarks compare with"
	@GLASSCONV_NATIVE=0 $(PIP_INSTALL) --no-build-isolation -e '.[bench]'
	@touch $@

build: $(TOOLS_STAMP)
	@$(PY) setup.py --quiet build_ext --inplace

emulated: build
	@$(PY) tests/emulated/build.py

sanitized: build
	@$(PY) tests/emulated/build.py --sanitize
	@$(PY) tests/emulated/run_sanitized.py

# Threads that wait asleep: on a machine with other work, spinning ones make an epoch many times slower.
demo: build
	OMP_WAIT_POLICY=passive $(BIN)/glassconv train --demo --out $(DEMO_OUT)

test: build emulated
	$(PYTEST) -m "not slow" --junitxml=build/test-results.xml $(PYTEST_ARGS)

ci-full: build
	.ci/run
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

lint: $(TOOLS_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy

format: $(TOOLS_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Where there is a GPU there is a torch for it: neither an environment nor a package is installed.
gpu:
	$(GPU_PYTHON) benchmarks/gpu_check.py $(GPU_ARGS)

static: $(TOOLS_STAMP)
	$(PY) benchmarks/static_report.py $(STATIC_ARGS)

bench: build $(PEERS_STAMP)
	@set -- benchmarks/bench_*.py; for script; do echo "== $$script"; $(PY) "$$script"; done

bench-neighbors: build $(PEERS_STAMP)
	$(PY) benchmarks/bench_neighbors.py $(BENCH_ARGS)

bench-conv: build $(PEERS_STAMP)
	$(PY) benchmarks/bench_convolution.py $(BENCH_ARGS)

clean:
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -f glassconv/_C*.so glassconv/_build.json
	find glassconv tests benchmarks csrc .ci -name __pycache__ -prune -exec rm -rf {} +
