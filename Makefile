# Everything on a machine that has only Python >= 3.10, git and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= $(or $(DIFFEO_DATA),../shared/data)

.PHONY: demo test test-all lint bench-density clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)  ## fit real tables, find anomalies, write demo/
	$(BIN)/python -m diffeo.cli.demo demo

test: $(READY)  ## the fast suite
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(READY)  ## with Inductor, killed fits and several processes
	$(BIN)/python -m pytest -q

lint: $(READY)  ## what CI checks before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench-density: $(READY)  ## density tables of docs/benchmarks.md; needs the data folder (DIFFEO_DATA)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	DIFFEO_DATA=$(DATA) $(BIN)/python benchmarks/density.py
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) demo
