# make quickstart       create the environment and run the embedded example (under two minutes after the installation; the run needs no network)
# make test             create the environment and run lint, types and the quick tests
# make lint, types, unit    run one of the three
# make slow             run the slow tests, which make test skips
# make campaign         run about 2,100 hostile and broken inputs, each in its own process (twenty minutes)
# make campaign-kills   kill trainings at random moments and compare the results (ten minutes)
# make outsiders        run tests with other projects' code in environments of their own (needs the network)
# make release-check    build the package and run it with its oldest and newest requirements (needs the network, 20 GB)
# make docs             build the documentation in site/, to read from disk
# make format           fix formatting and lint errors, as far as ruff can
# make clean            delete build files and caches
#
# VENV=DIR names the environment (default: .venv). PYTHON=python3.12 names the interpreter that creates it.
# WORKERS=N sets the number of test processes (default: 2).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN = $(VENV)/bin
# The name of the stamp has a checksum of the checkout's path and of the files that declare the package, so that an
# environment is updated after a change, or if another checkout used it.
STATE := $(shell { pwd -P; cat setup.cfg setup.py pyproject.toml; } | cksum | tr ' ' '-')
INSTALLED = $(VENV)/.fastgoal-$(STATE)
INSTALLED_DEV = $(VENV)/.fastgoal-dev-$(STATE)

.PHONY: help quickstart test lint types unit slow campaign campaign-kills outsiders release-check docs format clean

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
	$(BIN)/python tests/check_types.py --num-workers $(WORKERS)

unit: $(INSTALLED_DEV)
	$(BIN)/pytest -n $(WORKERS)

slow: $(INSTALLED_DEV)
	$(BIN)/pytest -n $(WORKERS) -m slow

campaign: $(INSTALLED_DEV)
	$(BIN)/python -m tests.campaign

campaign-kills: $(INSTALLED_DEV)
	$(BIN)/python -m tests.campaign.kills

# Each folder with a requirements.txt gets an environment in .outsiders/ that sees the packages of $(VENV). Long-CLIP and SugarCrepe are not packages.
outsiders: $(INSTALLED_DEV)
	@for name in $(patsubst tests/outsiders/%/requirements.txt,%,$(wildcard tests/outsiders/*/requirements.txt)); do \
		venv=.outsiders/$$name && $(BIN)/python -m venv $$venv && \
		$(BIN)/python -c 'import site; [print(f"import site; site.addsitedir({path!r})") for path in site.getsitepackages()]' \
			> $$(echo $$venv/lib/python*/site-packages)/fastgoal.pth && \
		$$venv/bin/python -m pip install --quiet --requirement tests/outsiders/$$name/requirements.txt \
			|| { rm -rf $$venv; echo "$$name could not be installed; its tests are skipped." >&2; }; \
	done
	@test -d .outsiders/longclip || git clone --quiet --depth 1 https://github.com/beichenzbc/Long-CLIP .outsiders/longclip \
		|| echo "Long-CLIP could not be cloned; its test is skipped." >&2
	@test -d .outsiders/sugarcrepe || git clone --quiet --depth 1 https://github.com/RAIVNLab/sugar-crepe .outsiders/sugarcrepe \
		|| echo "SugarCrepe could not be cloned; its test is skipped." >&2
	@npm install --silent --ignore-scripts --no-audit --no-fund --prefix tests/outsiders/transformers_js \
		|| echo "transformers.js could not be installed; its tests are skipped." >&2
	$(BIN)/pytest -m outsider
	@test ! -d .outsiders/libraries || .outsiders/libraries/bin/python -m pytest -k "sentence_transformers or report_to"

release-check: $(INSTALLED_DEV)
	$(BIN)/python -m pip install --quiet twine uv
	$(BIN)/python -m tests.release

# The variable silences a notice about a successor of the theme.
docs: $(INSTALLED_DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The pages are in site/: open site/index.html."

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: fastgoal requires Python 3.11 or newer; '$(PYTHON)' is older or missing." \
			"Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Without compiling: Python compiles modules at their first import, and only a small part of torch is imported.
$(INSTALLED): | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --editable .
	@rm -f $(VENV)/.fastgoal-*
	@touch $@

$(INSTALLED_DEV): | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --editable ".[dev]"
	@rm -f $(VENV)/.fastgoal-*
	@touch $(INSTALLED) $@
