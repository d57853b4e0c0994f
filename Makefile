# make demo   installs bigrad and runs the demo
# make test   installs what the tests need and runs them
# make check  formats, lints and type-checks; with CI=true it changes nothing and fails instead
# make docs   builds the documentation into build/docs; a warning is an error
# make bench  runs the benchmarks
# make experiments-quick  runs small forms of the BiGrad paper's four experiments; without --quick each script runs the full one
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs bench experiments-quick

demo: $(VENV)/.installed-plots
	$(BIN)/python examples/tariff.py

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: $(VENV)/.installed-dev
	$(BIN)/ruff format $(if $(filter true,$(CI)),--check)
	$(BIN)/ruff check
	$(BIN)/mypy bigrad

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky docs build/docs

bench: $(VENV)/.installed-bench
	@set -e; for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

experiments-quick: $(VENV)/.installed-examples
	@set -e; for name in control classification shortest_path salesman; do \
	  OMP_NUM_THREADS=1 $(BIN)/python examples/bigrad_paper/$$name.py --quick; done

# One stamp for each extra: nothing is installed again until the project's requirements change.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@
