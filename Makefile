# Everything on a machine that has only Python 3.10 to 3.13, git and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
CLUSTER := $(VENV)/.ready-cluster
JAX := .venv-jax/.ready
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# other interpreters that `make test-all` tries; those that do not start here are skipped, with a word
PYTHONS ?= python3.10 python3.12 python3.13
LOWEST := .venv-lowest
DATA ?= $(or $(DIFFEO_DATA),../shared/data)
# waiting threads sleep instead of spinning, which costs little alone and very much beside other work
export OMP_WAIT_POLICY ?= passive

.PHONY: demo demo-images demo-speech test test-all test-gpu test-pythons test-lowest lint bench bench-scale bench-density bench-families bench-tables notebooks docs pictures cards clean

$(READY): pyproject.toml constraints.txt
	@echo "Installing PyTorch and the rest into $(VENV); this takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $(READY)

$(DEV): $(READY)
	$(INSTALL) -e ".[dev]"
	touch $(DEV)

$(CLUSTER): $(DEV)
	$(INSTALL) -e ".[cluster]"
	touch $(CLUSTER)

demo: $(READY)  ## fit real tables, find anomalies, write demo/
	$(BIN)/python -m diffeo.cli.demo demo

demo-images: $(READY)  ## a flow of digits, and a page of what it draws: demo-images/
	$(INSTALL) -e ".[images]"
	$(BIN)/python -m diffeo.apps.images.demo demo-images

demo-speech: $(READY)  ## a voice of words that espeak-ng speaks, and a page to listen to: demo-speech/
	$(INSTALL) -e ".[speech,images]"
	$(BIN)/python -m diffeo.apps.speech.demo demo-speech

test: $(DEV)  ## the fast suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto --dist worksteal

test-all: $(CLUSTER)  ## with Inductor, killed fits, several processes, Ray, Spark (where there is Java); then on other Pythons
	$(BIN)/python -m pytest -q
	$(MAKE) test-pythons

test-gpu: $(DEV)  ## the table, fits, memory policies and shards on a GPU, if there is one
	$(BIN)/python -m pytest -q -rs tests/test_gpu.py || test $$? -eq 5  # nothing to run is no failure

test-pythons:  ## the fast suite on each of PYTHONS that is at hand
	@set -e; for python in $(PYTHONS); do \
	  if ! $$python -c "" 2> /dev/null; then \
	    echo "$$python is not at hand: nothing was tried on it. PYTHONS=/path/to/python names one elsewhere."; \
	    continue; \
	  fi; \
	  venv=.venv-$$($$python -c "import sys; print(*sys.version_info[:2], sep='.')"); \
	  echo "The fast suite on $$($$python --version), in $$venv"; \
	  if [ ! $$venv/.ready -nt pyproject.toml ]; then \
	    $$python -m venv $$venv; \
	    $$venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"; \
	    touch $$venv/.ready; \
	  fi; \
	  $$venv/bin/python -m pytest -q -m "not slow"; \
	done

$(LOWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	sed -n '/^dependencies = /,/^]/s/^  "\(.*\)>=\(.*\)",/\1==\2/p' pyproject.toml > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt -e . pytest beartype
	touch $(LOWEST)/.ready

test-lowest: $(LOWEST)/.ready  ## part of the suite on the lowest dependencies that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -q -m "not slow" -W ignore::DeprecationWarning \
	  tests/core tests/tables tests/estimators tests/cli

lint: $(DEV)  ## what CI checks before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench-density: $(READY)  ## density tables of docs/benchmarks.md; needs the data folder (DIFFEO_DATA)
	$(INSTALL) -e ".[bench]"
	DIFFEO_DATA=$(DATA) $(BIN)/python benchmarks/density.py
	$(BIN)/python benchmarks/report.py

$(JAX): $(READY)
	$(INSTALL) -e ".[bench]"
	$(PYTHON) -m venv .venv-jax
	.venv-jax/bin/python -m pip install --quiet --disable-pip-version-check "flowjax>=17" "jax>=0.4"
	touch $(JAX)

bench: $(JAX)  ## speed beside the peers; FlowJAX has an environment of its own
	$(BIN)/python benchmarks/speed.py --jax-python .venv-jax/bin/python
	$(BIN)/python benchmarks/report.py

bench-scale: $(JAX)  ## memory, large tables, the inverse, time to a score
	$(BIN)/python benchmarks/scale.py
	DIFFEO_DATA=$(DATA) $(BIN)/python benchmarks/time_to_score.py --jax-python .venv-jax/bin/python
	$(BIN)/python benchmarks/report.py

bench-families: $(READY)  ## flows on energies, continuous flows, the sphere, the gallery; hours, and needs the data folder
	$(BIN)/python benchmarks/energies.py
	$(BIN)/python benchmarks/energies.py --picture
	$(BIN)/python benchmarks/continuous.py
	DIFFEO_DATA=$(DATA) $(BIN)/python benchmarks/sphere.py
	$(BIN)/python benchmarks/gallery.py
	$(BIN)/python benchmarks/image_gallery.py
	$(BIN)/python benchmarks/report.py

bench-tables: $(READY)  ## the tables about outliers, regression, mixed columns and streaming; needs the data folder
	$(INSTALL) -e ".[bench]"
	DIFFEO_DATA=$(DATA) $(BIN)/python benchmarks/outliers.py
	$(BIN)/python benchmarks/alarms.py
	DIFFEO_DATA=$(DATA) $(BIN)/python benchmarks/regression.py
	$(BIN)/python benchmarks/mixed.py
	$(BIN)/python benchmarks/columns.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/report.py

notebooks: $(READY)  ## execute the tutorials (installs zuko, nflows and sbi, which one of them compares with)
	$(INSTALL) -e ".[docs,bench]" sbi
	folder=$$(mktemp -d) && cd docs/notebooks && PATH=$(abspath $(BIN)):$$PATH \
	  jupytext --to ipynb --set-kernel python3 --run-path $$folder --execute *.py  # sbi writes its logs there

docs: $(READY)  ## the site, with API pages from the docstrings, to site/
	$(INSTALL) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # --quiet would let warnings pass

pictures: demo  ## the pictures of the README; the report needs Chromium
	cp demo/anomalies.png docs/images/
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1200,1500 --screenshot=docs/images/report.png demo/report.html

cards: demo-images demo-speech  ## the model cards of the site
	mkdir -p docs/cards
	cp demo-images/digits.md demo-speech/voice.md demo-speech/vocoder.md docs/cards/

clean:
	rm -rf $(VENV) .venv-* demo demo-images demo-speech site
