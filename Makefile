# Needs python3 (3.10 or newer), make and pip; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= runs/quickstart
# What must be installed again when it changes: the kernels are compiled then.
PACKAGE := pyproject.toml setup.py $(wildcard src/sparsebench/inference/*.[ch])

.PHONY: help setup quickstart test test-slow lint clean

help:
	@echo "make quickstart   train a network sparse four ways on real images, write the page about it (minutes)"
	@echo "make test         run the tests (under 12 minutes)"
	@echo "make test-slow    run the tests that take longer (under 30 minutes)"
	@echo "make lint         formatting, linting, types"

setup: .venv/.bench

quickstart: .venv/.bench
	$(BIN)/sparsebench study run quickstart --out $(RESULTS)
	$(BIN)/sparsebench report $(RESULTS)

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

test-slow: .venv/.examples
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info src/*.egg-info

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "error: $(PYTHON) is older than Python 3.10; name another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.bench: .venv/bin/python $(PACKAGE)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	@touch $@

.venv/.examples: .venv/.dev
	$(BIN)/python -m pip install --quiet --editable ".[examples]"
	@touch $@

.venv/.dev: .venv/bin/python $(PACKAGE)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@
