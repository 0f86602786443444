# Kinema's errands: `make` lists them. Each sets up .venv with what it needs first; a second call finds it there.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# the first Python >= 3.11 of these; `make PYTHON=... setup` chooses another
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c "$(NEW_ENOUGH)" 2>/dev/null && { echo "$$p"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
EXTRAS := hdf5,images,digits,diffusers
CORE := $(VENV)/.made-core
FULL := $(VENV)/.made-full
PEERS := $(VENV)/.made-peers
RECIPE := pyproject.toml constraints.txt

# XLA calls options of its own compiler missing machine features when it reads its cache
QUIET := TF_CPP_MIN_LOG_LEVEL=3

.PHONY: help setup demo test lint docs evidence bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(FULL)  ## everything for development into .venv
	@echo "Ready: $(BIN)/kinema --help"

demo: $(CORE)  ## balls simulated, learned, generated, steered, verified; ends with out/collisions/report.html
	$(BIN)/kinema demo -o out/collisions --overwrite $(ARGS)

# by files: a process compiles once what the tests of a file share
test: lint docs  ## every check that CI makes
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(FULL)  ## style, types, and imports that point left
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

docs: $(FULL)  ## the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

evidence: $(FULL)  ## measure every study anew into evidence/
	$(BIN)/kinema study --all --preset quick --seeds 3 --keep evidence $(ARGS)

bench: $(PEERS)  ## speed beside the peers
	$(BIN)/kinema bench $(ARGS)

clean:  ## remove all that make made, except .venv
	rm -rf out site build dist .cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Kinema needs Python 3.11 or newer: make PYTHON=/path/to/python3 setup" >&2; exit 1; }
	@echo "==> $(PYTHON) -m venv $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(CORE): $(RECIPE) | $(BIN)/python
	@echo "==> Kinema and its dependencies into $(VENV)"
	$(PIP) install -c constraints.txt --upgrade pip
	$(PIP) install -c constraints.txt -e .
	@touch $@

# torch first and by itself: otherwise what depends on it may choose another build
$(FULL): $(CORE)
	@echo "==> Extras [$(EXTRAS)], tools and documentation into $(VENV)"
	$(PIP) install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -c constraints.txt -e ".[$(EXTRAS)]" --group dev --group docs --group flower
	$(PIP) install -c constraints.txt --no-deps flwr iterators
	@touch $@

# k-diffusion and torchcfm without what their training scripts need: only samplers and matchers are measured
$(PEERS): $(FULL)
	@echo "==> Peers to measure against into $(VENV)"
	$(PIP) install -c constraints.txt --group peers
	$(PIP) install -c constraints.txt --no-deps k-diffusion torchcfm
	@touch $@
