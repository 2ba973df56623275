# `make demo` and `make test` set up everything they need in .venv; nothing outside the checkout is written.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
PARITY_ARGS ?=
FIGURES_ARGS ?=
export JAX_PLATFORMS ?= cpu
# Keeps large blocks between training steps instead of faulting them in again, on large pages (docs/training.md).
KEEP_MEMORY := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

.PHONY: help demo test test-slow notebook oracle parity figures lint format lock clean

help:
	@echo 'make demo      set up, train the tiny policy on this machine, phase by phase, evaluate it, write the report'
	@echo 'make test      set up, run the tests'
	@echo 'make lint      ruff, mypy, import-linter'
	@echo 'make notebook  execute the notebooks of experiments/'
	@echo 'make figures   draw the figures from experiments/results/'
	@echo 'make oracle    the tests against transformers + torch, in an environment of their own'
	@echo 'make parity    how far the policy is from transformers + torch: a table'

$(VENV)/.installed: pyproject.toml requirements.txt requirements-test.txt scripts/setup_env.sh
	PYTHON=$(PYTHON) bash scripts/setup_env.sh $(VENV)
	@touch $@

demo: $(VENV)/.installed
	$(KEEP_MEMORY) $(BIN)/pixelis demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

notebook: $(VENV)/.installed
	$(BIN)/python -m pytest tests/experiments -m notebook $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch stays out of .venv, so that the product's own tests prove that it never needs it.
.venv-oracle/.installed: $(VENV)/.installed
	PYTHON=$(PYTHON) bash scripts/setup_env.sh .venv-oracle torch==2.13.0
	@touch $@

oracle: .venv-oracle/.installed
	.venv-oracle/bin/python -m pytest tests/oracle $(PYTEST_ARGS)

parity: .venv-oracle/.installed
	.venv-oracle/bin/python tests/oracle/parity_table.py $(PARITY_ARGS)

figures: $(VENV)/.installed
	$(BIN)/python experiments/figures.py $(FIGURES_ARGS)

clean:
	rm -rf $(VENV) .venv-oracle .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
