# make demo    install into .venv and run templates/quickstart.yaml
# make test    the tests that take seconds        make test-all   all of them
# make lint    ruff and mypy                      make format     ruff's formatter
# make clean   remove what the tools cached       make distclean  .venv too
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install -qq --no-input --no-warn-conflicts
TORCH := 2.13.0
SCHNETPACK := 2.1.1
TORCHANI := 2.9.0
ENDPOINT := 4.19.0

.PHONY: install dev demo test test-all lint format clean distclean
.DEFAULT_GOAL := demo

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "campaign needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "This Python cannot make a virtual environment (Debian: package python3-venv); name another with PYTHON=" >&2; exit 1; }

# schnetpack 2.1.1 asks for an older sympy than torch does: torch first, schnetpack without its dependencies,
# which requirements.txt pins.
$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once) ..." >&2
	@$(PIP) torch==$(TORCH)
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps schnetpack==$(SCHNETPACK)
	@$(PIP) --no-deps -e .
	@touch $@

# torchani declares zarr<3, and globus-compute-endpoint an older click: what is used of them does not need that.
$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@$(PIP) -r requirements-dev.txt
	@$(PIP) --no-deps torchani==$(TORCHANI)
	@$(PIP) --no-deps globus-compute-endpoint==$(ENDPOINT)
	@touch $@

demo: $(VENV)/.installed
	@$(VENV)/bin/campaign run templates/quickstart.yaml

test: $(VENV)/.installed-dev
	@$(VENV)/bin/python -m pytest -m "not slow"

test-all: $(VENV)/.installed-dev
	@$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find campaign tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
