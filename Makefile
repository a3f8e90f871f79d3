# make quickstart   environment, installation, and the embedded example (a few minutes, no network needed to run it)
# make test         environment, installation with the development tools, then lint, types and tests
# make lint, make types, make unit: one of the three
# make slow         the few tests that take long and that make test leaves out
# make campaign     hundreds of hostile and broken inputs, each in a process of its own (ten minutes)
# make campaign-kills   trainings that are killed again and again, and must end as if they never were (ten minutes)
# make docs         the pages of docs/ as a site in site/, which can be read from the disk
# make format       mends what lint would complain about, as far as ruff can
#
# VENV=DIR puts the environment elsewhere, PYTHON=python3.12 chooses the interpreter it is made with.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN = $(VENV)/bin
# What an installation depends on: this checkout's place and the files that declare the package. The name of the stamp
# carries their checksum, so an environment shared by two checkouts, or used after a change, is brought up to date.
STATE := $(shell { pwd -P; cat setup.cfg setup.py pyproject.toml; } | cksum | tr ' ' '-')
INSTALLED = $(VENV)/.fastgoal-$(STATE)
INSTALLED_DEV = $(VENV)/.fastgoal-dev-$(STATE)

.PHONY: help quickstart test lint types unit slow campaign campaign-kills docs format clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: $(INSTALLED)
	$(BIN)/fastgoal quickstart

test:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory unit

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED_DEV)
	$(BIN)/python tests/check_types.py

unit: $(INSTALLED_DEV)
	$(BIN)/pytest -n $(WORKERS)

slow: $(INSTALLED_DEV)
	$(BIN)/pytest -n $(WORKERS) -m slow

campaign: $(INSTALLED_DEV)
	$(BIN)/python -m tests.campaign

campaign-kills: $(INSTALLED_DEV)
	$(BIN)/python -m tests.campaign.kills

# The variable silences a notice on a successor of the theme, which is no warning about these pages.
docs: $(INSTALLED_DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The pages are in site/: open site/index.html."

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "error: fastgoal needs Python 3.10 or newer; '$(PYTHON)' is older or missing." \
			"Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Not compiled at once: Python compiles what is used when it is used, which is a small part of torch and its company.
$(INSTALLED): | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --editable .
	@rm -f $(VENV)/.fastgoal-*
	@touch $@

$(INSTALLED_DEV): | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --editable ".[dev]"
	@rm -f $(VENV)/.fastgoal-*
	@touch $(INSTALLED) $@
