# Two commands matter: `make reproduce` and `make test`. Both set up .venv first, with pip alone; Python compiles what it
# imports, and not all of the 21,000 files there are.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup test check format lint types imports families reproduce bench bench-gpu docs notebooks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(SETUP) ## create .venv with the pinned versions (again only when pyproject.toml or constraints.txt change)

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "segregation needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile '$(TORCH)'
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

test: $(SETUP) ## run the test suite (GPU tests are skipped, and listed, without a GPU)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

families: $(SETUP) ## test every family against plain transformers, and write the tables of what works
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.contract

check: format lint types imports docs test ## everything that CI runs

format: $(SETUP)
	$(BIN)/ruff format --check

lint: $(SETUP)
	$(BIN)/ruff check

types: $(SETUP)
	$(BIN)/pyright

imports: $(SETUP)
	$(BIN)/lint-imports

reproduce: $(SETUP) ## every experiment on both bundled models; tables, claims and report in runs/reproduce/
	$(BIN)/python -m experiments.reproduce

bench: $(SETUP) ## the benchmark suite on a CPU; python -m benchmarks --table writes its page
	$(BIN)/python -m benchmarks

bench-gpu: $(SETUP) ## the benchmarks that need a CUDA device
	$(BIN)/python -m benchmarks --gpu

docs: $(SETUP) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: $(SETUP) ## execute the tutorials and store their outputs
	$(BIN)/python docs/store_outputs.py

clean: ## remove everything that can be made again, runs/ excepted
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache .hypothesis
