# `make` lists the targets. Everything is installed in .venv, once, with the exact versions of constraints.txt.
PYTHON ?= python3
OUT    ?= runs/digits
ARGS   ?=

BIN   := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help study test sanitize test-slurm test-postgres lint format types docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Settings: PYTHON=python3.12 (builds .venv), OUT=runs/digits (where the study goes),"
	@echo "            ARGS='--seeds 5 --workers 4' (handed on to regrow study digits, or to pytest)"

study: $(READY)  ## run the digits study on all cores: table, figures and report in runs/digits
	@$(BIN)/regrow study digits --out $(OUT) $(ARGS)

test: $(READY)  ## run the tests
	@$(BIN)/pytest -n auto -q $(ARGS)

test-slurm: $(READY)  ## start a SLURM cluster of one node (as root, Debian's packages), and run a study on it
	@$(BIN)/pytest -q --slurm tests/lab/test_slurm.py $(ARGS)

test-postgres: $(READY)  ## start a PostgreSQL server (Debian's package), and run searches of four machines on it
	@$(BIN)/pytest -q --postgres tests/lab/test_tune_postgres.py $(ARGS)

sanitize: $(READY)  ## run the engine's tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer (g++, cmake, ninja)
	@$(BIN)/python -m pip install -qq --target build/tools nanobind
	@PYTHONPATH=build/tools cmake -G Ninja -B build/sanitize -DREGROW_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) . > /dev/null
	@ninja -C build/sanitize
	@LD_PRELOAD="$(foreach l,asan ubsan stdc++,$(shell g++ -print-file-name=lib$(l).so))" \
	  ASAN_OPTIONS=detect_leaks=0 $(BIN)/python tests/support/sanitized.py build/sanitize -q tests/compaction $(ARGS)

lint: $(READY)  ## check style and formatting (ruff), and which room imports which (import-linter)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-logo

format: $(READY)  ## put the sources in form (ruff)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(READY)  ## check the types (mypy)
	@$(BIN)/mypy

docs: $(READY)  ## build the docs as a site that opens without a server: build/site/index.html (mkdocs; warnings are errors)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:  ## remove .venv and the caches; results in runs/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp is touched last: an installation that was cut off starts again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "regrow needs Python 3.11 or newer; '$(PYTHON)' is not one. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up .venv (once; the download of torch may take some minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "Ready: $$($(BIN)/python --version), torch $$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))')"
