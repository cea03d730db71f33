PYTHON ?= python3
BIN := .venv/bin
# A test file is run by one process, and each core has one of these. Two threads of each would wait for each other's cores most
# of the time. Files keep their order: by number of tests, those that take longest would come last, one beside an idle process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help test test-long demo bench clean

help:
	@echo "make test              run the tests"
	@echo "make test-long         the same, but what is random (kills, fuzzing) is tried many more times, and every recipe runs"
	@echo "make demo              train a small model on the source of Python and score it (TEXT=a file or folder: your text)"
	@echo "make bench             time blocks of Expire-Span against the arithmetic they take, in 3 minutes (PEER=a checkout of"
	@echo "                       facebookresearch/transformer-sequential: beside it, which takes longer)"
	@echo "make clean             remove .venv and what builds and tests leave behind"
	@echo "PYTHON=python3.12      the Python to make .venv with (3.11 or 3.12)"

test: .venv/installed-test
	$(PYTEST)

test-long: .venv/installed-test
	$(PYTEST) --long

demo: .venv/installed
	$(BIN)/python examples/quickstart/demo.py $(if $(TEXT),--text "$(TEXT)")

bench: .venv/installed
	$(BIN)/python examples/efficiency/speed.py --rounds 5 --cases 1 2 --no-memory $(if $(PEER),--peer "transformer-sequential=$(PEER)")
	$(BIN)/python examples/efficiency/growth.py --rounds 5 --parts tokens

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || \
		{ echo "fairseq-expire needs Python 3.11 or 3.12, and $(PYTHON) is not; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The marks are older than setup.py or constraints.txt if those changed since, and then pip runs again. The interpreter
# comes after the bar because its file is a link to a Python that has a date of its own.
.venv/installed: setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install -c constraints.txt -e '.[test]'
	touch $@
