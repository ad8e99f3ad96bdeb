# Needs python3 (3.10 or newer, with venv) and a C++ compiler; no GPU. Everything is installed into .venv.
#   make demo    paint prompts four ways, write out/demo.png, print what was skipped
#   make test    run the tests
#   make check   lint, types and tests
PYTHON ?= python3
PIP_FLAGS ?=
# Two at a time, a file in one go: more would share the cores of a small machine. Empty: one after another.
PYTEST_FLAGS ?= -n 2 --dist loadfile
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo doctor test lint types check bench clean
.DELETE_ON_ERROR:

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "requires python3 3.10 or newer with venv (Debian: python3-venv), got $$($(PYTHON) --version)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/toprovar demo

doctor: $(INSTALLED)
	$(BIN)/toprovar doctor --probe

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: lint types test

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.generation

clean:
	rm -rf .venv out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
