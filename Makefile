# Every target installs what it needs into .venv. PYTHON chooses the interpreter the environment is made with.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data
OUT ?= out/evaluation

.DEFAULT_GOAL := help
.PHONY: help demo test lint format proto bench evaluate serve clean

help: ## Shows this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Stamps: an environment is brought up to date when pyproject.toml has changed.
.venv/.run: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[server,export]'
	@touch $@

.venv/.dev: pyproject.toml .venv/.run
	$(BIN)/python -m pip install --quiet --editable '.[server,export,dev]'
	@touch $@

demo: .venv/.run ## The main job on real scanner files: export, serve, ingest, search
	$(BIN)/python -m demo

test: .venv/.dev ## All tests but the slow ones
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/.dev ## ruff, mypy strict, and the contract's checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" ./proto/check.sh

format: .venv/.dev ## Formats the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: .venv/.dev ## Generates the stubs from the .proto files
	$(BIN)/python proto/generate.py

bench: .venv/.dev ## Measures, and writes benchmarks/results.json
	$(BIN)/python -m benchmarks

evaluate: .venv/.run ## The paper's tables: make evaluate DATA=<folder> OUT=<folder>
	$(BIN)/slicevote-server evaluate --data "$(DATA)" --out "$(OUT)"

clean: ## Removes what the targets made, the environment too
	rm -rf .venv out demo-data benchmarks/results.json .mypy_cache .ruff_cache .pytest_cache
