# Everything from a fresh machine with Python 3.11 or 3.12: `make demo` or `make test`. Each target sets up .venv first.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready
# The workers share the cores, so each one's NumPy products stay on a single thread.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo test test-all test-matrix lint audit bench results results-small docs clean

help:
	@echo "make demo      collect, train, evaluate and report on real dm_control, in a few minutes"
	@echo "make test      the tests; make test-all adds the slow ones"
	@echo "make test-matrix  the tests with every supported Python and JAX, each in an environment of its own"
	@echo "make lint      ruff and pyright"
	@echo "make audit     licences of all that is installed, and what is known of its vulnerabilities"
	@echo "make docs      the pages of docs/ as a site, in site/; a warning or a dead link is an error"
	@echo "make bench     the benchmarks of speed against their peers, as one JSON file for this machine"
	@echo "make results-small  return against trajectories in the context, one seed, in some 12 minutes"
	@echo "make results   all rows of docs/results.md, three seeds, in 8 hours"

demo: $(READY)
	$(BIN)/ringrl demo

test: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-all: $(READY)
	RINGRL_TEST_AS_FOR_USERS=1 $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-matrix:
	bash .ci/test_matrix.sh

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# pip-audit has an environment of its own, for it is no dependency. --strict: what it cannot find out about is a failure.
audit: $(READY)
	$(BIN)/python .ci/licences.py
	test -x .venv/audit/bin/pip-audit || $(BIN)/python -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.9"
	$(BIN)/python -m pip list --disable-pip-version-check --format=freeze --exclude-editable > .venv/audit/installed.txt
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv/audit/installed.txt

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.machine

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python .ci/config_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --clean

results-small: $(READY)
	$(BIN)/python -m benchmarks.results small --jobs 2

results: $(READY)
	@set -e; for row in relabelled hidden exorl context; do $(BIN)/python -m benchmarks.results $$row --jobs 2; done

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,plan,plan-gpu,video]"
	touch $@

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache
