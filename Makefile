PYTHON ?= python3
BIN := .venv/bin
# Each core runs one process with one thread, since two threads of each process would wait for each other's cores. A test
# file stays in one process. Files keep their order: xdist would start those with few tests last, which take longest.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# Without fairseq, any Python will do, and each has an environment of its own.
MODULES = .venv-modules-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

.PHONY: help test test-modules test-long recipes lint format demo bench docs clean

help:
	@echo "make test              run the tests (FILE=tests/test_golden.py: those of one file)"
	@echo "make test-long         the same, but what is random (kills, fuzzing) is tried many more times, and every recipe runs"
	@echo "make test-modules      run the tests of what needs no fairseq, without it, on any Python from 3.10 on (PYTHON=python3.13)"
	@echo "make recipes           run a few updates of every recipe in examples/"
	@echo "make lint              check style, formatting and types (make format: correct what can be corrected)"
	@echo "make demo              train a small model on the source of Python and score it (TEXT=a file or folder: your text)"
	@echo "make bench             time blocks of Expire-Span against the arithmetic they take, in 3 minutes (PEER=a checkout of"
	@echo "                       facebookresearch/transformer-sequential: beside it, which takes longer)"
	@echo "make docs              generate docs/options.md and build the documentation as a site in build/site"
	@echo "make clean             remove .venv and what builds and tests leave behind"
	@echo "PYTHON=python3.12      the Python to make .venv with (3.11 or 3.12; by default python3, or where it is another, one of these)"

test: .venv/installed-test
	$(PYTEST) $(or $(FILE),$(PARALLEL))

test-modules:
	$(PYTHON) -m venv $(MODULES)
	$(MODULES)/bin/python -m pip install -c constraints.txt -e '.[test]'
	$(MODULES)/bin/python -m pip uninstall -y ve-fairseq
	OMP_NUM_THREADS=1 $(MODULES)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --without-fairseq

test-long: .venv/installed-test
	$(PYTEST) $(or $(FILE),$(PARALLEL)) --long

recipes: .venv/installed-test
	$(PYTEST) --recipes tests/examples/test_recipes.py -k runs

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: .venv/installed
	$(BIN)/python examples/quickstart/demo.py $(if $(TEXT),--text "$(TEXT)")

bench: .venv/installed
	$(BIN)/python examples/efficiency/speed.py --rounds 5 --cases 1 2 --no-memory $(if $(PEER),--peer "transformer-sequential=$(PEER)")
	$(BIN)/python examples/efficiency/growth.py --rounds 5 --parts tokens

docs: .venv/installed-docs
	$(BIN)/python docs/generate_options.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-modules-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# python3 may be a Python for which there is no build of fairseq; then one that is named after its version is taken.
SUITABLE = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
$(BIN)/python:
	@for python in $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.12 python3.11); do \
		if $$python -c '$(SUITABLE)' 2>/dev/null; then $$python -m venv .venv && exit; rm -rf .venv; exit 1; fi; \
	done; \
	echo "this needs Python 3.11 or 3.12, for which there are builds of fairseq, and $(PYTHON) is not; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1

# The marks are older than pyproject.toml, setup.py or constraints.txt if those changed since, and then pip runs again. The interpreter
# comes after the bar because its file is a link to a Python that has a date of its own.
.venv/installed: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

.venv/installed-test .venv/installed-dev .venv/installed-docs: .venv/installed-%: .venv/installed
	$(BIN)/python -m pip install -c constraints.txt -e '.[$*]'
	touch $@

