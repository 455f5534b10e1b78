# `make demo` shows MESP on a trace, `make test` tests it: each first makes the environment that it needs, in .venv.
# The machine needs Python 3.11 or newer with its venv module, make, and a package registry.
#
#   make demo ARGS="--trace DIR"    arguments go to `mesp demo` or to pytest
#   make test TORCH=cpu             the small CPU build of torch, without 4 GB of CUDA libraries
#   make demo PYTHON=python3.12     another Python

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --build-constraint constraints.txt

ifeq ($(TORCH),cpu)
export PIP_EXTRA_INDEX_URL := $(PIP_EXTRA_INDEX_URL) https://download.pytorch.org/whl/cpu
endif

# Modules of tests side by side; a module's own tests share what is costly to make.
SIDE_BY_SIDE := --numprocesses=2 --dist=loadfile

.PHONY: help demo test lint types generate e2e-openwhisk clean distclean

help:
	@echo 'make demo       MESP beside the policies of today'"'"'s platforms, on a synthetic trace or ARGS="--trace DIR"'
	@echo 'make test       the tests, on two processes; ARGS go to pytest instead'
	@echo 'make lint       style, formatting, layers, the wire'"'"'s rules'
	@echo 'make types      mypy --strict'
	@echo 'make generate   the stubs of the wires, from proto/mesp/*/*.proto'
	@echo 'make e2e-openwhisk TRACE=DIR MINUTES=A:B OUT=DIR   MESP off, shadow, on beside doubles of OpenWhisk'
	@echo 'make clean      removes caches and outputs; make distclean: the environment too'

demo: $(VENV)/.installed
	$(BIN)/mesp demo $(ARGS)

test: ARGS ?= $(SIDE_BY_SIDE)
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/buf lint

types: $(VENV)/.installed-dev
	$(BIN)/mypy

generate: $(VENV)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/generate

TRACE ?= $(error TRACE=DIR is missing: a folder that mesp trace inspect can read)
MINUTES ?= 600:630
OUT ?= out/e2e-openwhisk

e2e-openwhisk: $(VENV)/.installed-dev
	$(BIN)/python -m e2e.openwhisk.replaying --trace '$(TRACE)' --minutes '$(MINUTES)' --out '$(OUT)' $(ARGS)

clean:
	rm -rf out dist build htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)

# Stamps: nothing is installed again until a file that decides what is installed changes.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.pip
	@echo 'Installing mesp[all] into $(VENV) ...'
	$(INSTALL) -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.pip
	@echo 'Installing mesp[all] and the development tools into $(VENV) ...'
	$(INSTALL) -e '.[all]' --group dev
	@touch $(VENV)/.installed $@

$(VENV)/.pip:
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.11 or newer was found; name one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	@touch $@
