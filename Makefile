# make demo: set up .venv and run the first recipe.   make test: set up .venv and run the tests.
# make test-oldest: the tests that lean on other packages, on the oldest releases that pyproject.toml admits.
# make test-newest: the same on what pip finds today without constraints.txt, past the upper bounds of pyproject.toml too,
# but with the torch of .venv, since another one may be gigabytes; NEWEST_TORCH=1 lets pip choose that as well.
# Needs Linux, Python 3.11 or newer, git and make; nothing else. PYTHON=python3.12 make demo chooses another Python.

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
NEWEST ?= .venv-newest
NEWEST_TORCH ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-oldest test-newest lint docs clean

demo: $(VENV)/.installed
	$(BIN)/linearize run examples/mmmamba_hovle.toml

# One torch thread per worker: two workers on two cores, and tiny tensors gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONHASHSEED=0

test: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/pytest -q -n 2 --dist loadfile

# What other packages are used for: models and students of transformers, files, pictures, recipes, reports.
ON_OLDEST := $(addprefix tests/,core data evaluate packaging/test_ranges.py parity plugins/glance/test_pictures.py \
  report student teachers)
# Slow, and alike on every release: processes of their own, and the kit's broken adapters.
SLOW_ALIKE := $(addprefix --ignore=tests/,core/test_processes.py student/test_auto.py teachers/transformers/test_kit.py)

test-oldest: $(OLDEST)/.installed
	$(TEST_ENV) $(OLDEST)/bin/python -m pytest -q -n 2 --dist loadfile $(ON_OLDEST) $(SLOW_ALIKE)

# The folder of packages of the newest environment holds what moved since constraints.txt; nothing: all was tested.
test-newest: $(VENV)/.installed-test
	$(call layer,$(NEWEST),newest)
	$(BIN)/pip list --format=freeze $(if $(NEWEST_TORCH),--exclude torch) | grep '^torch==' > $(NEWEST)/torch.txt || true
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(NEWEST)/torch.txt \
	  --upgrade --upgrade-strategy eager --editable '.[test]'
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(NEWEST)/torch.txt \
	  --upgrade transformers
	$(NEWEST)/bin/python -m pip list --format=freeze --exclude linearize \
	  --path $$($(NEWEST)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))') > $(NEWEST)/moved.txt
	@if [ -s $(NEWEST)/moved.txt ]; then echo "newer than constraints.txt:"; cat $(NEWEST)/moved.txt; \
	  $(TEST_ENV) $(NEWEST)/bin/python -m pytest -q -n 2 --dist loadfile --maxfail 20 $(ON_OLDEST) $(SLOW_ALIKE); \
	  else echo "pip finds nothing newer than constraints.txt, which make test has tested"; fi

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

# An empty environment, $(1), with the packages of $(VENV) behind its own; a file $(2).pth says which one it is.
define layer
$(BIN)/python -m venv --clear --without-pip $(1)
$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
  > $$($(1)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/$(2).pth
endef

# Torch and whatever has no old release here come from $(VENV).
$(OLDEST)/.installed: constraints-oldest.txt $(VENV)/.installed-test
	$(call layer,$(OLDEST),oldest)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
	  --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST)
