# Every target first makes or updates .venv from pyproject.toml; when nothing changed that takes no time.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help venv quickstart test check bench clean

help:
	@echo "make quickstart   from five seconds of footage to a trained model and its report, in minutes, on any machine"
	@echo "make test         all tests (those for a GPU skip without one)"
	@echo "make check        format, lint, types, import directions"
	@echo "make bench        loader benchmarks -> benchmarks/results, docs (.venv/bin/pip install '.[bench]' adds the peers)"
	@echo "make venv         only the environment"

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("lavila needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: PyTorch, DALI and the rest, a few GB and minutes the first time ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/python tools/quickstart.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python benchmarks/loader.py

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
