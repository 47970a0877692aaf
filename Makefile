# qlab: the book and its package. `make help` lists what there is to make.
#
#   PYTHON    the Python that creates the environment (3.11 or newer)
#   PIP_ARGS  passed to pip, such as an index with CPU builds of torch (see README.md)
#   LOCK      the requirements that are installed; requirements.in takes the newest versions

PYTHON ?= python3
PIP_ARGS ?=
LOCK ?= requirements.lock
VENV ?= .venv

BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What chapters keep between runs goes with the book, so that a clean build measures everything.
export QLAB_CACHE ?= $(CURDIR)/_build/.cache
# Threads that wait for one another spin briefly (GNU OpenMP), then sleep. Small models start
# thousands of short parallel loops a second: without a limit they are ten times slower where
# another program wants the cores too, and without any spinning twice as slow where none does.
export GOMP_SPINCOUNT ?= 3000

.DEFAULT_GOAL := help
.PHONY: help setup book test check test-library test-book test-chapters test-llama case-study train-results records tools bench notebooks lab lock format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

setup: $(INSTALLED)  ## create the environment, if it is missing or out of date

# The stamp is written last, so that an installation that was cut off starts again.
$(INSTALLED): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "qlab needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off $(PIP_ARGS) -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

book: $(INSTALLED)  ## execute the chapters and build the HTML, doing only what changed
	@$(BIN)/python tools/build_book.py

test: check test-library test-book  ## all tests

check: $(INSTALLED)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is independent of the built book: two processes of one thread each. Figures are tested in a browser.
test-library: $(INSTALLED)
	@tools/browser.sh
	OMP_NUM_THREADS=1 $(PYTEST) tests --ignore=tests/site -m "not speed and not gpu" -n 2 --dist loadfile

# What needs the built book: the site, and one chapter through nbval; then what measures time, with
# the machine for itself. `make book` has executed every cell already, and a cell that raises fails it.
test-book: book
	@tools/browser.sh
	OMP_NUM_THREADS=1 $(PYTEST) --nbval book/how-to-use.md tests -m "(chapter or site) and not gpu" \
		-n 2 --dist loadfile
	$(PYTEST) tests -m "speed and not gpu"

test-chapters: $(INSTALLED)  ## every chapter through nbval, cell by cell; no book is built
	OMP_NUM_THREADS=1 $(PYTEST) --nbval book -m "not alone and not gpu" -n 2 --dist loadfile
	$(PYTEST) --nbval book -m "alone and not gpu"

# Compiles llama.cpp, which takes minutes; not part of `make test`.
test-llama: $(INSTALLED)  ## llama-cpp-python on the files that qlab writes
	$(BIN)/python -m pip install --quiet -e ".[llama]"
	$(PYTEST) tests/llama

case-study: $(INSTALLED)  ## every line of the case study, the record and a report (cached)
	$(BIN)/python tools/case_study.py

tools: $(INSTALLED)  ## run the tools of the toolbox, each in an environment of its own
	$(BIN)/python tools/record_tools.py
	$(BIN)/python tools/record_who_loads.py

bench: $(INSTALLED)  ## the benchmarks against other libraries, on a quiet machine
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

train-results: $(INSTALLED)  ## train for low bits anew, and record it (half an hour)
	$(BIN)/python tools/train_results.py
	$(BIN)/python tools/record_compress.py storyteller
	$(BIN)/python tools/record_compress.py students

records: $(INSTALLED)  ## after new weights: make every record anew that depends on them
	$(BIN)/python tools/remake_records.py $(RECORDS_ARGS)

notebooks: $(INSTALLED)  ## write notebooks/*.ipynb for Colab from the chapters
	@$(BIN)/python tools/make_notebooks.py

lab: $(INSTALLED)  ## open the chapters as notebooks in JupyterLab
	PATH="$(BIN):$$PATH" JUPYTER_CONFIG_PATH="$(CURDIR)/tools/jupyter" $(BIN)/jupyter-lab book

lock: $(INSTALLED)  ## resolve the requirements anew: requirements.lock, environment.yml
	$(BIN)/python tools/lock.py $(if $(UPGRADE),--upgrade)

format: $(INSTALLED)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the built book (the environment stays)
	rm -rf _build
