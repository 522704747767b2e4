# Everything that is done with this repository; `make` alone lists it.
#
#   PYTHON=…   the Python that .venv is made with (3.10 or newer; python3 unless told)
#   ARGS=…     passed on to `make demo`, `make bench` and to pytest by `make test`
#   BLOCK_SPARSE_CUDA=OFF   leaves the CUDA backend out, ON insists on it; else it is built if nvcc works

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# cmake, ninja and clang-format come from PyPI into the environment.
TOOLS := PATH="$(BIN):$$PATH"

SIZE ?= small
TEXT ?=
ARGS ?=

# What the shared library is made of.
LIBRARY_SOURCES := CMakeLists.txt pyproject.toml $(shell find cmake include src -type f)
CXX_FILES = $(shell find include src tests benchmarks -name '*.h' -o -name '*.cc' -o -name '*.cu' \
  -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help build test test-cpp test-python test-gpu test-oldest sanitize lint format bench demo wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

build: $(VENV)/.package build/python/.tests  ## set everything up: .venv, editable install, C++ tests

$(VENV)/.requirements: pyproject.toml scripts/system_packages.sh scripts/create_venv.sh
	@PYTHON="$(PYTHON)" scripts/system_packages.sh $(VENV)
	@PYTHON="$(PYTHON)" scripts/create_venv.sh $(VENV)
	@touch $@

# Python files are used in place, but an editable install knows only the modules there were; so which
# files there are counts as a source too. The list is written only when it changes.
.PHONY: list-again
$(VENV)/.files: list-again | $(VENV)/.requirements
	@find cmake include python src -name __pycache__ -prune -o -type f -print | sort >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# One build tree for the library and the C++ tests, so that nothing is compiled twice.
$(VENV)/.package: export BLOCK_SPARSE_TESTS = ON
$(VENV)/.package: $(VENV)/.requirements $(VENV)/.files $(LIBRARY_SOURCES)
	@$(TOOLS) uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# Ninja knows best what is out of date, so it is always asked.
.PHONY: build/python/.tests
build/python/.tests: $(VENV)/.package
	@$(TOOLS) cmake --build build/python

build/%/build.ninja: CMakePresets.json | $(VENV)/.requirements
	@$(TOOLS) cmake --preset $*

test: test-cpp test-python  ## all tests, C++ and Python, that need no GPU

test-cpp: build
	@$(TOOLS) ctest --test-dir build/python --label-exclude gpu --parallel 2 --progress \
	  --output-on-failure --no-tests=error

# One thread a worker: those that need more ask for them.
test-python: build
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

test-gpu: build  ## the CUDA tests in C++, and all Python tests on cuda; needs a GPU
	@tests/gpu.sh $(ARGS)

test-oldest: build  ## the same shared library under the oldest torch supported
	@tests/oldest.sh

sanitize: build/sanitize/build.ninja  ## C++ tests, and damaged input from Python, under ASan and UBSan
	@$(TOOLS) cmake --build --preset sanitize
	@$(TOOLS) ctest --preset sanitize
	@tests/sanitize.sh

wheel: $(VENV)/.requirements  ## build and check the wheel that users install
	@scripts/check_wheel.sh $(VENV)

lint: $(VENV)/.requirements  ## ruff, mypy and clang-format, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.requirements  ## format everything in place
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

# The driver of libxsmm is there only where libxsmm was found.
LIBXSMM := build/bench/benchmarks/cpp/libxsmm/libblock_sparse_libxsmm.so
LIMITS := build/bench/benchmarks/cpp/libblock_sparse_limits.so

bench: build build/bench/build.ninja  ## measure every product against nn.Linear and what else there is
	@$(TOOLS) cmake --build --preset bench --target benchmark_libraries
	@$(BIN)/python -m pytorch_block_sparse bench --device cpu \
	  --shapes benchmarks/shapes/cpu.txt --json benchmarks/output/bench.json \
	  --limits $(LIMITS) \
	  $(if $(wildcard $(LIBXSMM)),--libxsmm $(LIBXSMM)) $(ARGS)

demo: $(VENV)/.package  ## train a sparse RoBERTa beside its dense twin [SIZE=small|roberta] [TEXT=path]
	@$(BIN)/python -m examples.demo --size "$(SIZE)" $(if $(TEXT),--text "$(TEXT)") $(ARGS)

clean:  ## remove everything that was built, .venv excepted
	rm -rf build dist demo-output benchmarks/output
