# Every command of the project: `make help` lists them.

# Python 3.10 or newer. Another interpreter than the first on PATH: `make setup PYTHON=python3.12`.
PYTHON ?= python3
# Nothing is fetched from a model hub unless asked: `make repro HF_HUB_OFFLINE=0` for a Hub id in params.yaml.
export HF_HUB_OFFLINE ?= 1

IN_VENV = PATH="$(CURDIR)/.venv/bin:$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup recipe repro experiments test lint check-fresh readme lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.installed ## create .venv with the locked packages

recipe: setup ## write the keys of a recipe into params.yaml: make recipe NAME=medquad
	@$(IN_VENV) python -m tools.recipe $(NAME)

repro: setup ## reproduce the pipeline: run the stages whose inputs changed
	@$(IN_VENV) dvc repro

# `dvc exp show` has no setting for its columns, and by itself some 300 of them.
experiments: setup ## the experiments of this commit in a short table: make experiments KEYS="lr|loss"
	@$(IN_VENV) COLUMNS=$${COLUMNS:-120} dvc exp show --no-pager --sort-by 'dev_ndcg@10' --sort-order desc --drop '.*' \
		--keep 'Experiment|(dev_)?ndcg@10$$|ndcg@10_cross_encoder|($(or $(KEYS),lr|seed))$$'

# A process for each core, four at most for the sake of memory, and a thread in each: the tests are many and small.
test: setup ## run the whole test suite, slow tests included
	@$(IN_VENV) OMP_NUM_THREADS=1 python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

lint: setup ## check style, format and types
	@$(IN_VENV) ruff check .
	@$(IN_VENV) ruff format --check .
	@$(IN_VENV) mypy

check-fresh: setup ## fail if a committed result is older than its code, params or data
	@plan=$$($(IN_VENV) dvc repro --allow-missing --dry) || { echo "$$plan"; exit 1; }; \
	stale=$$(echo "$$plan" | sed -n "s/^Running stage '\(.*\)':.*/\1/p" | sort -u | paste -sd ' ' -); \
	if [ -n "$$stale" ]; then \
		echo "error: stale stages: $$stale; run 'make repro' and 'make readme', then commit dvc.lock, metrics/, report/ and README.md" >&2; exit 1; \
	fi; \
	echo "check-fresh: every result belongs to this code, these params and this data"

readme: setup ## write the result table of metrics/ into the README
	@$(IN_VENV) python -m tools.readme

lock: ## write requirements.lock anew from the ranges in pyproject.toml (with Python 3.11)
	@$(PYTHON) tools/lock.py

clean: ## remove .venv and tool caches; DVC's cache and outputs stay
	@rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is a copy of the lock that was installed, written last.
.venv/.installed: requirements.lock
	@$(check_python)
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@if cmp -s requirements.lock .venv/.installed; then touch .venv/.installed; else \
		echo "setup: installing the packages of requirements.lock into .venv, which takes minutes"; \
		.venv/bin/python -m pip install -qq -r requirements.lock && cp requirements.lock .venv/.installed; \
	fi

define check_python
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	{ found=$$($(PYTHON) --version 2>&1) || found="not found"; \
	echo "error: $(PYTHON) is $$found; need Python 3.10 or newer: make setup PYTHON=/path/to/python3" >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "error: $(PYTHON) has no venv module; install it (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
endef
