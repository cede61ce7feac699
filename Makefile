# Every target sets itself up: a virtual environment in .venv, nothing outside it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help demo programs test check format bench soak crash-matrix fuzz model-check mutants clean

help:
	@echo "make demo    two daemons on this machine, a program moved live between them (about 3 min)"
	@echo "make test    the tests"
	@echo "make check   format, lint, types, import rules"
	@echo "make format  rewrite Python and C in the house format"
	@echo "make bench   live against stop-and-copy, overhead; JSON and a report in bench-results/ (hours;"
	@echo "             BENCH=--quick: minutes)"
	@echo "make soak    hundreds of moves at random instants (SOAK_MOVES), and of random faults"
	@echo "             (SOAK_FAULTS); SOAK_SEED"
	@echo "make crash-matrix  every boundary of a move x every fault (CRASH_MATRIX_FILTER), about an hour"
	@echo "make programs  the workload suite and programs of others moved five times, both trackers (an hour)"
	@echo "make fuzz    every parser fuzzed, guided by coverage (FUZZ_SECONDS for each, 60)"
	@echo "make model-check  every run of the hand-off with three faults (minutes, 1 GiB)"
	@echo "make mutants  remove every defence in turn, see which test notices (about 10 min)"

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[toolchain]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) -e '.[toolchain,dev]'
	touch $@

demo: $(VENV)/.run
	$(BIN)/python -m optmigd.bench.demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff format --check optmigd protocol enclave_shim config tests
	$(BIN)/ruff check optmigd protocol enclave_shim config tests
	$(BIN)/clang-format --dry-run -Werror $(shell git ls-files '*.c' '*.h')
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format optmigd protocol enclave_shim config tests
	$(BIN)/ruff check --fix optmigd protocol enclave_shim config tests
	$(BIN)/clang-format -i $(shell git ls-files '*.c' '*.h')

bench: $(VENV)/.run
	$(BIN)/optmigctl bench $(BENCH)
	$(BIN)/python -m optmigd.bench.syscost
	$(BIN)/python -m optmigd.bench.compute
	$(BIN)/python -m optmigd.bench.tracker
	$(BIN)/python -m optmigd.bench.quiesce

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak -s --timeout 0 tests/migration tests/faults

crash-matrix: $(VENV)/.dev
	$(BIN)/python -m tests.faults.matrix

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz.run all $(FUZZ_SECONDS)

programs: $(VENV)/.dev
	$(BIN)/python -m tests.programs

model-check: $(VENV)/.dev
	$(BIN)/python -m tests.model

mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutation

clean:
	rm -rf $(VENV) build dist bench-results *.egg-info
