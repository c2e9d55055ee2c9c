# Every target first makes or updates .venv from pyproject.toml; when nothing changed that takes no time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Of make soak.
MINUTES ?= 30

# Of pytest. tests/conftest.py says how many processes there are, and which tests stay together.
PROCESSES ?= --numprocesses auto --dist loadscope --no-loadscope-reorder

.PHONY: help venv quickstart learn loop demo test check bench soak clean

help:
	@echo "make quickstart   from five seconds of footage to a trained model and its report, in minutes, on any machine"
	@echo "make learn        trains a classifier, a dual encoder and a narrator from random weights, and checks their scores"
	@echo "make loop         a narrator writes captions for clips without, and a dual encoder trains on both kinds"
	@echo "make demo         trains a dual encoder in minutes, indexes videos that it has not seen, and opens a page to search them"
	@echo "make test         all tests (those for a GPU skip without one); TESTS=tests/engine for some of them"
	@echo "make check        format, lint, types, import directions"
	@echo "make bench        loader benchmarks -> benchmarks/results, docs (.venv/bin/pip install '.[bench]' adds the peers)"
	@echo "make soak         $(MINUTES) minutes of training while faults are injected -> docs/RELIABILITY.md; MINUTES=2 for a short one"
	@echo "make venv         only the environment"
	@echo "With another Python (3.11, 3.12 and 3.13 will do): make PYTHON=python3.12 VENV=.venv312 ..."

venv: $(INSTALLED)

# An environment that is there is used as it is: say so where PYTHON asks for another Python than its own.
ifneq ($(filter command environment,$(origin PYTHON)),)
ifneq ($(wildcard $(BIN)/python),)
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
ifneq ($(shell $(PYTHON) -c '$(VERSION)'),$(shell $(BIN)/python -c '$(VERSION)'))
$(error $(VENV) has Python $(shell $(BIN)/python -c '$(VERSION)'), not that of $(PYTHON); add VENV=FOLDER for a second one, or remove it)
endif
endif
endif

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("lavila needs Python 3.11, 3.12 or 3.13; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch, DALI and the rest, a few GB and minutes the first time ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/python tools/quickstart.py

learn: $(INSTALLED)
	$(BIN)/python tools/learn.py

loop: $(INSTALLED)
	$(BIN)/python tools/loop.py

demo: $(INSTALLED)
	$(BIN)/python tools/try_demo.py

# Tests start hundreds of interpreters. Without compiled files in __pycache__, each would compile all modules anew.
test: $(INSTALLED)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest $(PROCESSES) $(TESTS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.summary

soak: $(INSTALLED)
	$(BIN)/python tools/make_toy_data.py
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
