# make demo: set up .venv and run the first recipe.   make test: set up .venv and run the tests.
# Needs Linux, Python 3.11 or newer, git and make; nothing else. PYTHON=python3.12 make demo chooses another Python.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	$(BIN)/linearize run examples/mmmamba_hovle.toml

# One torch thread per worker: two workers on two cores, and tiny tensors gain nothing from more.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python -m linearize.recipe.reference > docs/recipe.md
	$(BIN)/python -m linearize_transformers.matrix > docs/teachers.md

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
