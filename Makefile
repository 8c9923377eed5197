# make demo: set up .venv and run the first recipe.   make test: set up .venv and run the tests.
# make test-oldest: the tests that lean on other packages, on the oldest releases that pyproject.toml admits.
# Needs Linux, Python 3.11 or newer, git and make; nothing else. PYTHON=python3.12 make demo chooses another Python.

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-oldest lint docs clean

demo: $(VENV)/.installed
	$(BIN)/linearize run examples/mmmamba_hovle.toml

# One torch thread per worker: two workers on two cores, and tiny tensors gain nothing from more.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

# What other packages are used for: models and students of transformers, files, pictures, recipes, reports.
ON_OLDEST := $(addprefix tests/,core data evaluate packaging/test_ranges.py parity plugins/glance/test_pictures.py \
  report student teachers)
# Slow, and alike on every release: processes of their own, and the kit's broken adapters.
SLOW_ALIKE := $(addprefix --ignore=tests/,core/test_processes.py student/test_auto.py teachers/transformers/test_kit.py)

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n 2 --dist loadfile $(ON_OLDEST) $(SLOW_ALIKE)

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

# Torch and whatever has no old release here come from $(VENV): its folder of packages stands behind this one's.
$(OLDEST)/.installed: constraints-oldest.txt $(VENV)/.installed-test
	$(BIN)/python -m venv --clear --without-pip $(OLDEST)
	$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	  > $$($(OLDEST)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/behind.pth
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
	  --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST)
