# make demo | test | test-all | bench | gpu | lint | clean, on a machine with Python 3.11 or newer, make and a C++ compiler.
#   PYTHON=python3.12   the interpreter of the virtual environment    VENV=.venv   where it lies
#   ARGS="tests/ops -x" more arguments for pytest, demo or bench      JOBS=2       test processes
# Without the CPU build of torch at hand: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
# One thread a process: the tests are many small ones, and JOBS processes share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:benchmark --numprocesses $(JOBS) --dist loadgroup

.PHONY: help demo test test-all bench gpu lint clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

# Threads that wait for each other must not spin: on busy cores that costs several times the work itself.
demo: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/specfast demo $(ARGS)

test: $(VENV)/.installed
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed
	$(PYTEST) $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python -m bench $(ARGS)

# Meant to take under ten minutes: what needs a GPU, what runs on either, and in any case the benchmarks, into
# bench/results/<device>.json. Compiling for other GPUs needs none and is left to `make test`.
gpu: $(VENV)/.installed
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make gpu needs a CUDA device; torch finds none")'
	status=0; \
	$(PYTEST) -m gpu || status=1; \
	$(PYTEST) -m "not gpu and not slow" --ignore=tests/kernels/test_compile.py tests/kernels tests/ops || status=1; \
	$(BIN)/python -m bench $(ARGS) || status=1; \
	exit $$status

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -type f | xargs $(BIN)/clang-format --dry-run -Werror

# Build requirements come first and pinned, so that the package's own build needs no isolated environment.
$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"specfast needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) setuptools pybind11
	$(PIP) --no-build-isolation --editable ".[demo,test]"
	@touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(PIP) ruff clang-format
	@touch $@

clean:
	rm -rf build dist *.egg-info specfast/_C*.so .pytest_cache .ruff_cache $(VENV)/.installed
	find specfast kernels tests -type d -name __pycache__ -prune -exec rm -rf {} +
