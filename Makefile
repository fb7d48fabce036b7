# Two entry points for users: `make demo` and `make test`. Everything installs into .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.PHONY: help demo test lint unit fuzz lab bench golden clean

help:
	@echo "make demo    run the main job on the built-in simulator: no Incus, no root"
	@echo "make test    lint, types, import contracts, unit, property, golden and simulator tests"
	@echo "make fuzz    ask the API whatever its OpenAPI document allows, for ten minutes"
	@echo "make lab     the same job on a real Incus in a virtual NUMA host (root, QEMU, about 35 minutes)"
	@echo "make bench   print the figures that README quotes"
	@echo "make golden  rewrite golden files and examples after a wanted change of output"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || tests/install-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Only the comparison with the optimum needs a solver, so nothing else installs it.
$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

demo: $(STAMP)
	$(BIN)/incus-numa demo

test: lint unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not lab and not bench"

fuzz: $(STAMP)
	INCUS_NUMA_FUZZ_S=600 $(BIN)/python -m pytest -s tests/contract/test_api_fuzz.py

golden: $(STAMP)
	$(BIN)/python -m pytest tests/golden --update-golden

bench: $(BENCH_STAMP)
	$(BIN)/python -m tests.bench

lab: $(STAMP)
	tests/lab/run

clean:
	rm -rf $(VENV) .lab .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage
