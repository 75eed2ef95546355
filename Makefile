# Everything a newcomer types: `make demo`, `make test`, `make check`. Each makes the environment it
# needs, if it is not there. There are five. `.venv` is the user's: Layertap and what it runs with.
# `.venv-test` also has the tests' tools, and libtpu, torch and Ray among them, which would change
# how a user's runs start. `.venv-contract` has the trainers that we hand activations to, with all
# that these bring along. `.venv-browser` drives a browser, `.venv-docs` builds the pages.

PYTHON ?= python3
VENV := .venv
TESTS := .venv-test
CONTRACT := .venv-contract
BROWSER := .venv-browser
DOCS := .venv-docs
MERMAID := 12.3.0
BIN := $(TESTS)/bin
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: bench demo test test-slow proof soak mutants contract browser docs diagrams reference tutorials release-check check lint format clean

demo: $(VENV)/.installed
	$(VENV)/bin/layertap demo

test: $(TESTS)/.installed
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not whole and not slow and not proof"

test-slow: $(TESTS)/.installed
	HYPOTHESIS_PROFILE=many $(BIN)/pytest -q -n 2 --dist loadfile -m "(whole or slow or hypothesis) and not proof"

# Hours: every TPU configuration, every measure, 200 kills, the longest example. A sample of each is
# in `make test-slow`.
proof: $(TESTS)/.installed
	$(BIN)/pytest -q -m proof
	$(MAKE) soak

soak: $(TESTS)/.installed
	PYTHONPATH=tests/support $(BIN)/python -m soak $(SOAK)

mutants: $(TESTS)/.installed
	$(BIN)/python -m benchmarks.mutants $(MUTANTS)

# The real SAELens, dictionary_learning, sparsify and datasets take what we hand them
# (docs/export.md).
contract: $(CONTRACT)/.installed
	$(CONTRACT)/bin/python -m pytest -q -c tests/contract/pytest.ini --confcutdir tests/contract tests/contract

# The page of `layertap view` in the system's Chromium, which is installed where that is possible.
browser: $(BROWSER)/.installed
	@command -v chromium chromium-browser google-chrome >/dev/null || [ -n "$$LAYERTAP_BROWSER" ] || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -qq -y chromium >/dev/null; } || \
		echo "no Chromium, and none could be installed: the tests of the page are skipped"
	$(BROWSER)/bin/python -m pytest -q -c tests/browser/pytest.ini --confcutdir tests/browser tests/browser

# The pages as a site, in build/docs. It fails at dead links, pages that nobody finds, and misspelt
# words.
docs: $(DOCS)/.installed
	$(DOCS)/bin/codespell --skip '*.svg,*.jsonl,*.png,__pycache__,*.egg-info' \
		README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md CITATION.cff docs src examples benchmarks scripts
	$(DOCS)/bin/sphinx-build -q -n -E -W --keep-going -c docs/site -d build/doctrees -b html . build/docs
	@echo "open build/docs/index.html"

# Writes docs/commands.md and docs/api.md, which are made of the code.
reference: $(TESTS)/.installed
	$(BIN)/python docs/site/reference.py

# Runs the scripts that are tutorials, and writes docs/tutorials: half an hour on two cores.
tutorials: $(TESTS)/.installed
	$(BIN)/python docs/site/tutorials.py $(TUTORIALS)

# Draws the Mermaid blocks that changed (docs/site/diagrams.py). It takes npm, to fetch Mermaid, and
# Chromium.
diagrams: $(BROWSER)/.installed build/mermaid-$(MERMAID)/package/dist/mermaid.min.js
	$(BROWSER)/bin/python docs/site/draw_diagrams.py build/mermaid-$(MERMAID)/package/dist/mermaid.min.js \
		$(shell git ls-files '*.md')

# What a release would hold: built, checked, installed into an empty environment, and run there
# (docs/releasing.md).
RELEASE := build/release
release-check: export PYTHONPATH :=  # a layertap that is found there would pass for the wheel
release-check:
	rm -rf $(RELEASE) *.egg-info src/*.egg-info
	$(PYTHON) -m venv $(RELEASE)/tools
	$(RELEASE)/tools/bin/python -m pip install --quiet --disable-pip-version-check build twine
	$(RELEASE)/tools/bin/python -m build --outdir $(RELEASE)/dist
	$(RELEASE)/tools/bin/twine check --strict $(RELEASE)/dist/*
	$(PYTHON) -m venv $(RELEASE)/empty
	$(RELEASE)/empty/bin/python $(PIP) $(RELEASE)/dist/*.whl
	mkdir $(RELEASE)/run
	cd $(RELEASE)/run && ../empty/bin/layertap --version && ../empty/bin/layertap demo

check: lint test

bench: $(TESTS)/.installed
	$(BIN)/python -m benchmarks

lint: $(TESTS)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(TESTS)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(TESTS) $(CONTRACT) $(BROWSER) $(DOCS) build layertap-demo

$(VENV)/bin/python $(TESTS)/bin/python $(CONTRACT)/bin/python $(BROWSER)/bin/python $(DOCS)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Layertap needs Python 3.11 or later; give it as: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@D:/bin=)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Layertap into $(VENV)"
	$(VENV)/bin/python $(PIP) --editable .
	touch $@

$(TESTS)/.installed: pyproject.toml constraints.txt | $(TESTS)/bin/python
	@echo "installing Layertap and what its tests need into $(TESTS)"
	$(TESTS)/bin/python $(PIP) --editable '.[test]'
	touch $@

$(CONTRACT)/.installed: pyproject.toml constraints.txt $(wildcard tests/contract/*.txt) | $(CONTRACT)/bin/python
	@echo "installing Layertap and the trainers that it hands activations to into $(CONTRACT)"
	$(CONTRACT)/bin/python $(PIP) --constraint tests/contract/constraints.txt --editable . \
		--requirement tests/contract/requirements.txt
	$(CONTRACT)/bin/python $(PIP) --constraint tests/contract/constraints.txt --no-deps \
		--requirement tests/contract/without_dependencies.txt
	touch $@

$(BROWSER)/.installed: pyproject.toml constraints.txt tests/browser/requirements.txt | $(BROWSER)/bin/python
	@echo "installing Layertap and Playwright into $(BROWSER)"
	$(BROWSER)/bin/python $(PIP) --editable . --requirement tests/browser/requirements.txt
	touch $@

$(DOCS)/.installed: docs/site/requirements.txt | $(DOCS)/bin/python
	@echo "installing Sphinx into $(DOCS)"
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/site/requirements.txt
	touch $@

build/mermaid-$(MERMAID)/package/dist/mermaid.min.js:
	mkdir -p build/mermaid-$(MERMAID)
	cd build/mermaid-$(MERMAID) && npm pack --silent mermaid@$(MERMAID) && tar xzf mermaid-$(MERMAID).tgz
	touch $@
