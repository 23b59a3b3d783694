# zcompute: `make up` and `make test` are all a newcomer needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: up test lint bench bench-peers clean packages install install-test

up: $(VENV)/.installed
	$(BIN)/zcompute up $(ARGS)

test: $(VENV)/.installed-test packages
	.ci/suites $(SUITES)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	.ci/audit-dependencies

# Each benchmark prints a table and writes a JSON file to build/bench/.
bench: $(VENV)/.installed-bench packages
	mkdir -p build/bench
	$(BIN)/python -m loadtest.boot --json build/bench/boot.json $(ARGS)
	$(BIN)/python -m loadtest.bus --json build/bench/bus.json $(ARGS)
	$(BIN)/python -m loadtest.fanin --json build/bench/fanin.json $(ARGS)
	$(BIN)/python -m loadtest.reconnect --json build/bench/reconnect.json $(ARGS)
	$(BIN)/python -m loadtest.chaos --json build/bench/chaos.json $(ARGS)
	$(BIN)/python -m loadtest.ledger --json build/bench/ledger.json $(ARGS)
	$(BIN)/python -m loadtest.durability --json build/bench/durability.json $(ARGS)

# The bus against what its users could pick instead; the benchmark starts and stops the brokers itself.
bench-peers: $(VENV)/.installed-bench build/peers/.installed
	loadtest/bus/install-brokers
	mkdir -p build/bench
	$(BIN)/python -m loadtest.bus --peers raw,blocking,oslo,zerorpc,nats --json build/bench/bus-peers.json $(ARGS)

clean:
	rm -rf $(VENV) build dist var *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

packages:
	.ci/packages

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zcompute needs Python 3.11, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 4; }

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,bench]' -c constraints.txt
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

build/peers/.installed: loadtest/bus/peers.txt
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet --disable-pip-version-check -r loadtest/bus/peers.txt
	touch $@
