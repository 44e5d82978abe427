# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.

PYTHON ?= python3
# Development needs no GPU: name an index or a file here if your pip would bring the CUDA build of torch.
TORCH ?= torch==2.13.0
FRAMES ?= 1024

# The Python of a GPU machine, with torch, triton, nanobind, scikit-build-core and pytest; nothing is downloaded.
GPU_PYTHON ?= python3
GPU_ARGS ?=
# What compilers keep from one run to the next.
GPU_CACHE := $(CURDIR)/build/gpu/cache
GPU_INSTALL = $(GPU_PYTHON) -m pip --disable-pip-version-check --quiet install --no-index --no-build-isolation \
  --no-deps --upgrade --target build/gpu/site --config-settings=build-dir=build/gpu/cmake .

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# What the native module is made of; other changes need no reinstall, since the package is installed in place.
NATIVE := pyproject.toml CMakeLists.txt $(wildcard engine/csrc/*.* engine/csrc/*/*)
CPP_TESTS := $(wildcard tests/cpp/*)
CPP_EXAMPLE := $(wildcard cmake/* examples/cpp/*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

bench: $(VENV)/.installed  ## render 1024 frames with the demo bundle; leaves out/bench.json, .mp4 and .png
	@mkdir -p out
	$(BIN)/nuwaxl-bench --frames $(FRAMES) --json out/bench.json --out out/bench.mp4

test: lint cpp-test cpp-sanitize cpp-example  ## run all checks and all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" $(PYTEST_PARALLEL)

test-slow: $(VENV)/.installed-dev  ## run the slow tests
	$(BIN)/pytest -m slow

gpu:  ## on a machine with a GPU: its tests, kernels and sd15 against torch; leaves out/gpu/gpu.json and gpu.md
	@$(GPU_PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || \
	  { echo "make gpu: expected a GPU that torch can use; found none by $(GPU_PYTHON);" \
	    "run it on a machine that has one, or name its Python: make gpu GPU_PYTHON=..." >&2; exit 2; }
	@echo "Building nuwaxl with $(GPU_PYTHON) into build/gpu, without network ..."
	@$(GPU_INSTALL)
	@mkdir -p out/gpu
	PYTHONPATH="$(CURDIR)/build/gpu/site$${PYTHONPATH:+:$$PYTHONPATH}" NUWAXL_CACHE="$(GPU_CACHE)/nuwaxl" \
	  TRITON_CACHE_DIR="$(GPU_CACHE)/triton" TORCHINDUCTOR_CACHE_DIR="$(GPU_CACHE)/inductor" \
	  $(GPU_PYTHON) -m nuwaxl.bench.gpu --out out/gpu $(GPU_ARGS)

lint: $(VENV)/.installed-dev  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

cpp-test: build/cpp/plain.passed  ## the C++ tests
cpp-sanitize: build/cpp/address.passed build/cpp/thread.passed  ## the C++ tests under ASan + UBSan, and under TSan
cpp-example: build/cpp/example.passed  ## install the C++ library below build/, and build and run the example on it

clean:  ## remove what was built; .venv and out/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.NOTPARALLEL:
.PHONY: help bench gpu test test-slow lint cpp-test cpp-sanitize cpp-example clean

# A file of tests stays in one process, so that what its tests share is made once. A test that hangs ends the run with
# the stacks of its threads; the longest takes a minute on two cores.
PYTEST_PARALLEL := -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 0 \
  -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "expected Python 3.11 or newer; found $$($(PYTHON) --version 2>&1); name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# An install compiles the native module; the development install therefore counts as the plain one too.
$(VENV)/.installed: $(BIN)/python $(NATIVE)
	@echo "Installing nuwaxl and an inference runtime into $(VENV) ..."
	@$(PIP) install --editable ".[cpu]"
	@touch $@

# torch comes first and pinned, so that the extras that want it take that build.
$(VENV)/.installed-dev: $(BIN)/python $(NATIVE)
	@echo "Installing nuwaxl and what development needs into $(VENV) ..."
	@$(PIP) install $(TORCH)
	@$(PIP) install --editable ".[cpu,train,export,tensorrt-rtx,dev]"
	@touch $(VENV)/.installed $@

SANITIZE_plain :=
SANITIZE_address := address,undefined
SANITIZE_thread := thread

build/cpp/%.passed: $(VENV)/.installed-dev $(NATIVE) $(CPP_TESTS)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/cpp/$* -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DNUWAXL_MODULE=OFF -DNUWAXL_TESTS=ON -DNUWAXL_SANITIZE=$(SANITIZE_$*)
	$(BIN)/cmake --build build/cpp/$*
	$(BIN)/ctest --test-dir build/cpp/$* --output-on-failure --no-tests=error
	@touch $@

# The example sees what is installed, as another program would, and nothing of the source tree.
build/cpp/example.passed: export PATH := $(CURDIR)/$(BIN):$(PATH)
build/cpp/example.passed: $(VENV)/.installed-dev $(NATIVE) $(CPP_EXAMPLE)
	rm -rf build/cpp/prefix
	cmake -S . -B build/cpp/library -G Ninja -DNUWAXL_MODULE=OFF
	cmake --build build/cpp/library
	cmake --install build/cpp/library --component cpp --prefix build/cpp/prefix
	cmake -S examples/cpp -B build/cpp/example -G Ninja -DCMAKE_PREFIX_PATH=$(CURDIR)/build/cpp/prefix
	cmake --build build/cpp/example
	build/cpp/example/own_devices
	@touch $@
