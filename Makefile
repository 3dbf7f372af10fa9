# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv with everything that Darkroom and its tests need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Darkroom needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,train,dev]'
	touch $@

demo: $(STAMP)  ## train on 1,797 real handwritten digits and open the report's path
	$(BIN)/darkroom run --recipe demo --workdir demo

test: lint types unit  ## check everything: style, types, walls, units, one whole small run

lint: $(STAMP)  ## style and import walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)  ## strict types
	$(BIN)/mypy

unit: $(STAMP)  ## unit and integration tests
	$(BIN)/pytest -n 2 --dist loadfile

bench: $(STAMP)  ## what the training loop costs over a bare one, as a ratio
	$(BIN)/python tests/benchmarks/training_step.py

clean:  ## remove what was built; .venv and demo stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
