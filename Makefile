# Every target installs what it needs into .venv. PYTHON chooses the interpreter that .venv is made with.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data
OUT ?= out/evaluation

# An environment that was left half made, or whose Python is gone or too old, is made anew.
RIGHT_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))
WHOLE := import importlib.metadata as m; m.version('pip'); $(RIGHT_PYTHON)
ENVIRONMENT := $(if $(shell $(BIN)/python -c "$(WHOLE)" 2>/dev/null && echo whole),,environment)
VERSION = $(shell $(PYTHON) -c "import sys; print('Python ' + sys.version.split()[0])" 2>/dev/null)
REQUIRE_PYTHON = $(if $(shell $(PYTHON) -c "$(RIGHT_PYTHON)" 2>/dev/null && echo right),,$(error slicevote needs \
    Python 3.11 or newer, and $(PYTHON) is $(or $(VERSION),not found). Choose another: make PYTHON=python3.12 $(MAKECMDGOALS)))

.DEFAULT_GOAL := help
.PHONY: help demo test lint format proto docs bench evaluate wheel clean environment

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.server ## The main job on real scanner files: export, serve, ingest, search
	@$(BIN)/python -m demo

test: .venv/.dev ## All tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadgroup

lint: .venv/.dev ## ruff, mypy strict, import contracts, and the contract's checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	PATH="$(CURDIR)/$(BIN):$$PATH" ./proto/check.sh

format: .venv/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: .venv/.dev ## Generate the stubs from the .proto files
	$(BIN)/python proto/generate.py

docs: .venv/.docs ## Build the documentation into site/; broken links and undocumented public names are errors
	$(BIN)/python -m sphinx -b html -W --keep-going -q -E -d site/.doctrees docs site
	@echo "The documentation: site/index.html"

bench: .venv/.dev ## Measure, and write benchmarks/results.json
	$(BIN)/python -m benchmarks

evaluate: .venv/.server .venv/.evaluate ## The paper's tables: make evaluate DATA=<folder> OUT=<folder>
	$(BIN)/slicevote-evaluate --data "$(DATA)" --out "$(OUT)"

wheel: .venv/.dev ## Build the wheel and the source archive, and try the wheel in a clean environment
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m pytest tests/test_wheel.py -m slow
	@echo "The wheel: $$(ls -t dist/*.whl | head -1)"

clean: ## Remove what the targets made, the environment too
	rm -rf .venv out site dist demo-data benchmarks/results.json .mypy_cache .ruff_cache .pytest_cache

# The environment. A stamp .venv/.EXTRA says that this extra of pyproject.toml is installed as it stands.
.venv/.%: pyproject.toml $(ENVIRONMENT)
	@echo "Installing slicevote[$*] into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

environment:
	$(REQUIRE_PYTHON)
	@$(PYTHON) -m venv --clear .venv
