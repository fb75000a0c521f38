# What a developer runs. `make help` lists the targets; every one works from a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help demo test check test-all dist docs bench bench-models samples screenshots clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(VENV)/.installed  ## train, audit, harden, audit, explain and compare on real digits; prints the page's path
	@$(BIN)/robustcv demo

test: $(VENV)/.installed-test  ## everything the project checks: lint, types, tests (20 min at most)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto -m "not every_case"

check: $(VENV)/.installed-test  ## the fast part of `make test` (about three minutes)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto -m "not slow and not every_case and not browser"

test-all: $(VENV)/.installed-test  ## every case of every table (80 min at most)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto
	$(MAKE) dist docs

dist: $(VENV)/.installed-test  ## build wheel and sdist, install each into a clean environment and run its demo
	rm -rf build dist
	$(BIN)/python -m build --quiet --outdir dist
	for made in dist/*.whl dist/*.tar.gz; do \
	  clean=$$(mktemp -d) && $(PYTHON) -m venv $$clean/venv \
	  && $(BIN)/uv pip install --quiet --python $$clean/venv/bin/python --constraints constraints.txt $$made \
	  && (cd $$clean && venv/bin/robustcv demo --quiet && venv/bin/robustcv doctor) && rm -rf $$clean || exit 1; \
	done

docs: $(VENV)/.installed-docs  ## build the documentation site into reports/site; a warning is an error
	$(BIN)/mkdocs build --quiet --strict

bench: .venv-bench/.installed  ## measure against the usual tools, in an environment of its own
	.venv-bench/bin/python benchmarks/run.py $(if $(AUTOATTACK),--autoattack $(AUTOATTACK))

bench-models: $(VENV)/.installed  ## train the models that the benchmarks attack (an hour on two cores)
	$(BIN)/python benchmarks/models.py

samples: $(VENV)/.installed  ## render the published sample pages again
	$(BIN)/python reports/samples/make_samples.py

screenshots: $(VENV)/.installed-test  ## picture each section: of sample pages, a page of every verb, PAGES; in reports/screenshots
	$(BIN)/python reports/samples/make_screenshots.py --everything reports/samples/*.html $(PAGES)

clean:           ## remove environments and caches, keep reports
	rm -rf .venv .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

# -- environments: made once, made again only when the pins or the metadata change ---------------------------------

$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make: robustcv needs Python 3.11 to 3.13; $$($(PYTHON) --version 2>&1) found. Name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "make: $(PYTHON) cannot make virtual environments: install the package python3-venv (Debian, Ubuntu) and run make again"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)


$(VENV)/.installed: constraints.txt pyproject.toml | $(VENV)/bin/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraints constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraints constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraints constraints.txt --editable '.[docs]'
	@touch $@

.venv-bench/.installed: constraints-bench.txt pyproject.toml | $(VENV)/bin/uv
	$(PYTHON) -m venv .venv-bench
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-bench/bin/python --constraints constraints-bench.txt --editable . -r benchmarks/requirements.txt
	@touch $@
