# make demo | test | test-all | fuzz | bench | docs | gpu | lint | clean, on a machine with Python 3.11 or newer, make and a C++ compiler.
#   PYTHON=python3.12   the interpreter of the virtual environment    VENV=.venv   where it lies
#   ARGS="tests/ops -x" more arguments for pytest, demo or bench      JOBS=2       test processes
#   FUZZ_SECONDS=60    of each fuzz target
# Without the CPU build of torch at hand: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=
FUZZ_SECONDS ?= 60

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
# One thread a process: the tests are many small ones, and JOBS processes share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:benchmark --numprocesses $(JOBS) --dist loadgroup

.PHONY: help demo test test-all fuzz bench docs gpu lint clean
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

# libFuzzer through atheris: stops at the first failure, whose input it writes to runs/fuzz.
fuzz: $(VENV)/.fuzzers
	mkdir -p runs/fuzz
	for target in tests/fuzz/*.py; do \
		$(BIN)/python $$target -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -artifact_prefix=runs/fuzz/ || exit 1; \
	done

bench: $(VENV)/.installed
	$(BIN)/python -m bench $(ARGS)

# Writes site/index.html; a link that leads nowhere or a docstring that cannot be read is an error.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

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

$(VENV)/.fuzzers: $(VENV)/.installed
	$(PIP) atheris
	@touch $@

clean:
	rm -rf build dist site *.egg-info specfast/_C*.so .pytest_cache .ruff_cache $(VENV)/.installed
	find specfast kernels tests -type d -name __pycache__ -prune -exec rm -rf {} +
