# subbyte: set-up, demo, tests and checks, each in the environment .venv that `make setup` makes.
# On a fresh machine this needs Python 3.10 or newer with pip and venv, a C++ compiler and make.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.subbyte-ready

# Threads that wait asleep: by default OpenMP's spin, and on a machine with other work they take each other's cores.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help setup demo test check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything that development needs

# Made again when the build changes. torch comes first and pinned: the version that results were measured with.
$(STAMP): pyproject.toml $(wildcard hatch_build.py csrc/* csrc/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "subbyte needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

demo: setup ## Train the embedded digits in float and in 4-bit integers and compare
	$(BIN)/subbyte demo

test: setup ## Run all tests and the examples in the documentation
	$(BIN)/python -m pytest --doctest-modules src/subbyte tests

check: setup ## Lint, types, and imports that only point down
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check --quiet src tests scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

include $(sort $(wildcard *.mk))

clean: ## Remove the environment, build outputs and caches; runs/ is kept
	rm -rf $(VENV) build dist src/subbyte/_lib .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
