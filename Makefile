# make demo    install PyroSys into .venv and run the demonstration
# make test    install the development tools as well and run every test
# make check   ruff, pyright and the docs build, then the tests: what continuous integration runs
# make docs    build the documentation into build/docs
# make bench   run the benchmarks
# make train-default   train the language model that comes with the package again, in a quarter of an hour
# make portbench   port weights between the packages of .github/portbench.txt; OPTIONS='--help' says how
# make generated   port generated models between spellings, hundreds of them; OPTIONS='--help' says how
# make cards   compute zoo/cards, the plans for published weights, from the reference implementations

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .github/constraints.txt
REFERENCES := .github/references.txt
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
INSTALL := $(BIN)/python $(PIP_INSTALL)

# PortBench has an environment of its own: what it compares would not go together with the development tools.
PORTBENCH := .venv-portbench
PORTBENCH_PYTHON := $(PORTBENCH)/bin/python
PORTBENCH_PACKAGES := .github/portbench-imports.txt .github/portbench.txt
OPTIONS ?=

# What the language model that comes with the package is trained on.
SPECIES := Bsubtilis_168 Ecoli_K12_MG1655 M_genitalium_G37 Paeruginosa_PAO1 Rsolanacearum_GMI1000 Soneidensis_MR1
PROTEOMES := $(SPECIES:%=pypi://carveme==1.6.6/carveme/data/benchmark/fasta/%.faa)

# Each installation leaves a stamp and is repeated only when what it depends on has changed.
CORE := $(VENV)/core.stamp
DEV := $(VENV)/dev.stamp

# One thread for each test worker; without this they compete for the processors.
test bench cards generated portbench: export OMP_NUM_THREADS := 1

# In order, so that the counts of the tests close the output of `make check`.
.NOTPARALLEL:
.PHONY: bench cards check clean demo docs format generated lint portbench test types

demo: $(CORE)
	$(BIN)/pyrosys demo

test: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/pyright --pythonpath $(BIN)/python

# The theme would announce its successor on every build.
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file .github/mkdocs.yml

check: lint types docs test

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	for script in tests/benchmarks/[!_]*.py; do \
		$(BIN)/python -m "tests.benchmarks.$$(basename $$script .py)" || exit 1; \
	done

cards: $(DEV)
	$(BIN)/python -m tests.reference.cards

generated: $(DEV)
	$(BIN)/python -m tests.adapters.generated $(OPTIONS)

# Each of the first two goes on where it was if it is interrupted.
train-default: $(DEV)
	$(BIN)/pyrosys prepare $(PROTEOMES) --shortest 30 --output build/pyrosys-lm-1m/proteins
	$(BIN)/pyrosys train .github/models/pyrosys-lm-1m.yaml --resume
	$(BIN)/python -m tests.reference.language_model

portbench: $(PORTBENCH)/packages.stamp
	$(PORTBENCH_PYTHON) -m tests.portbench $(OPTIONS)

clean:
	rm -rf $(VENV) $(PORTBENCH) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) --constraint $(CONSTRAINTS) --editable .
	touch $@

$(DEV): $(CORE) $(REFERENCES)
	$(INSTALL) --constraint $(CONSTRAINTS) --editable '.[dev]'
	$(INSTALL) --no-deps --ignore-requires-python --requirement $(REFERENCES)
	touch $@

$(PORTBENCH)/packages.stamp: pyproject.toml $(CONSTRAINTS) $(PORTBENCH_PACKAGES)
	test -x $(PORTBENCH_PYTHON) || $(PYTHON) -m venv $(PORTBENCH)
	$(PORTBENCH_PYTHON) $(PIP_INSTALL) --constraint $(CONSTRAINTS) --editable .
	$(PORTBENCH_PYTHON) $(PIP_INSTALL) --no-deps --ignore-requires-python $(PORTBENCH_PACKAGES:%=--requirement %)
	touch $@
