# Everything a newcomer types: `make demo`, `make test`, `make check`. Each makes .venv, with what it needs, if it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: bench demo test test-slow soak check lint format clean

demo: $(VENV)/.run-time
	$(BIN)/layertap demo

test: $(VENV)/.test
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/.test
	$(BIN)/pytest -q -m slow

soak: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m soak $(SOAK)

check: lint test

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) layertap-demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Layertap needs Python 3.11 or later; give it as: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-time: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Layertap into $(VENV)"
	$(INSTALL) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Layertap and what its tests need into $(VENV)"
	$(INSTALL) --editable '.[test]'
	touch $@ $(VENV)/.run-time
