# Needs Python 3.11 to 3.13. Everything goes into .venv, or into the virtual environment that is active.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo serve test lint bench results pictures docs docs-serve viz mlflow clean

PYTHON ?= python3
VENV ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
KEDRO := $(BIN)/kedro
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

install: $(VENV)/.stamp-recpipe  ## recpipe and its dependencies into .venv, nothing else

demo: $(VENV)/.stamp-recpipe  ## from the bundled log to compared recommenders, a few minutes on two cores
	$(KEDRO) run

serve: $(VENV)/.stamp-recpipe  ## HTTP API and explorer on http://127.0.0.1:8000, newest bundles of the data set
	$(BIN)/recpipe serve

test: $(VENV)/.stamp-dev  ## every test, on all cores
	$(BIN)/python -m pytest -n auto --durations=10

lint: $(VENV)/.stamp-dev  ## ruff, mypy and the rules of who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.stamp-dev  ## every table in benchmarks/; some need ml-1m or ml-100k and say so
	failed=0; for file in $(filter-out %/harness.py %/http_load.py %/litserve_service.py %/poster_vectors.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python "$$file" || failed=1; done; exit $$failed

results: $(VENV)/.stamp-recpipe  ## docs/results and the table of README.md: published numbers beside ours, from runs on disk
	$(BIN)/python -m recpipe.reporting.results

docs: $(VENV)/.stamp-dev  ## the documentation site in site/, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.stamp-dev  ## the site on http://127.0.0.1:8001, built again with every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8001

pictures: $(VENV)/.stamp-dev  ## docs/pictures: report and explorer of the runs on disk, light and dark; needs chromium
	$(BIN)/python -m docs.generators.screenshots

viz: $(VENV)/.stamp-dev  ## the pipelines as a picture, in the browser
	$(KEDRO) viz run --host 127.0.0.1

mlflow: $(VENV)/.stamp-recpipe  ## the tracking UI on http://127.0.0.1:5000
	$(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///mlflow.db

clean:  ## remove .venv, caches and what runs wrote (raw data stays)
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis mlruns mlflow.db
	find data -mindepth 2 -not -path 'data/01_raw/*' -not -name .gitkeep -delete

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"recpipe needs Python 3.11 to 3.13, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-recpipe: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing recpipe and its dependencies into $(VENV), 2.5 GB, with CUDA 6 GB: some minutes without output."
	$(INSTALL) -e .
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what development needs into $(VENV): some minutes without output."
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.stamp-recpipe
