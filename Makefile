# What people and CI run. Every target prepares .venv first, from the hashed locks alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AGENT := src/bedstone/sandbox/microvm/bedstone-agent
SOURCES := src tests benchmarks examples docs console/generate.py

.PHONY: setup up test check coverage chaos lint types imports front agent docs console lock clean help

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(STAMP) ## prepare .venv, so that .venv/bin/bedstone is the command

$(STAMP): requirements/dev.txt pyproject.toml
	@PYTHON="$(PYTHON)" sh requirements/setup.sh $(VENV)
	@touch $@

up: setup ## run the bank example, meshed, on real engines
	@$(BIN)/bedstone up examples/bank

$(AGENT): $(shell find agent/src -name '*.rs') agent/Cargo.toml agent/build.sh
	@if command -v cargo >/dev/null; then sh agent/build.sh; fi

test: setup $(AGENT) ## pass the tests
	@sh requirements/system.sh
	@sh tests/run.sh $(BIN)/python

check: lint types imports front agent test ## everything that CI demands

coverage: setup ## say which lines the tests in this process reach
	@$(BIN)/python -m pytest -q --cov --cov-report=term:skip-covered tests/unit tests/faults \
		tests/properties tests/conformance tests/golden

chaos: setup ## kill a bank over three databases, SECONDS=60 long, by a SEED, and audit it
	@$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

lint: setup
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

types: setup
	@$(BIN)/mypy

imports: setup
	@$(BIN)/lint-imports

front: setup
	@sh console/check.sh

agent: ## check the guest's agent (needs cargo; says so where it is not)
	@sh agent/check.sh

docs: setup ## run what the documents show (also a part of test)
	@$(BIN)/python -m pytest -q tests/docs

console: setup ## build the console's front end from console/ (needs npm)
	@sh console/build.sh

lock: ## renew the hashed locks (needs uv)
	uv pip compile -q --generate-hashes --no-header --no-emit-index-url --python-version 3.11 \
		--no-strip-extras --no-annotate pyproject.toml -o requirements/run.txt
	uv pip compile -q --generate-hashes --no-header --no-emit-index-url --python-version 3.11 \
		--no-strip-extras --no-annotate pyproject.toml --group dev -o requirements/dev.txt

clean: ## remove what these targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
