# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
SAMPLE ?= 15
STREAMING := build/streaming
# The release that everything is tested with; `make constraints` takes the newest of all other packages.
TORCH := 2.13.0
LOCK := build/locks/bin/uv pip compile --quiet --no-config --generate-hashes --universal --python-version 3.11 \
	--no-annotate --custom-compile-command 'make locks' --constraints constraints.txt \
	--default-index https://pypi.org/simple
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit proofs mutants bench chaos golden docs chart images constraints locks clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv with everything that Darkroom and its tests need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Darkroom needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): some minutes the first time.'
	$(BIN)/pip install --quiet -c constraints.txt -e '.[pipeline,train,dev]'
	touch $@

demo: $(STAMP)  ## train on 1,797 real handwritten digits and print where the report is
	$(BIN)/darkroom run --recipe demo --workdir demo

test: lint  ## check everything: style, types, walls, units, one whole small run
	@$(MAKE) --no-print-directory --jobs 2 types unit

lint: $(STAMP)  ## style and import walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)  ## strict types
	$(BIN)/mypy

unit: $(STAMP)  ## unit and integration tests
	$(BIN)/pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 --durations 10 -m 'not proof'

proofs: $(STAMP)  ## the tests that take too long for every day
	$(BIN)/pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 -m proof

mutants: $(STAMP)  ## break the code in small ways and count what the tests notice: MODULES='…' SAMPLE=15|all
	$(BIN)/python -m tests.mutants --jobs $(JOBS) --sample $(SAMPLE) $(MODULES)

bench: $(STAMP) $(STREAMING)  ## what training and reading cost over bare loops and beside others, as ratios
	$(BIN)/python tests/benchmarks/training_step.py
	$(BIN)/python tests/benchmarks/training_step.py --size demo
	$(BIN)/python tests/benchmarks/data_order.py
	$(BIN)/python tests/benchmarks/data_random.py
	$(BIN)/python tests/benchmarks/data_reader.py --streaming-python $(STREAMING)/bin/python
	$(BIN)/python -m tests.benchmarks.processes
	$(BIN)/python tests/benchmarks/latents.py
	$(BIN)/python tests/benchmarks/ingest_listing.py
	$(BIN)/python tests/benchmarks/near_duplicates.py
	$(BIN)/python tests/benchmarks/known_images.py

# mosaicml-streaming requires older releases than ours and far more than it uses, so it comes beside them, alone.
$(STREAMING): $(STAMP) tests/benchmarks/streaming.txt
	$(PYTHON) -m venv --clear $@
	echo $(abspath $(VENV))/lib/*/site-packages > $$(echo $@/lib/*/site-packages)/ours.pth
	$@/bin/pip install --quiet --no-deps -r tests/benchmarks/streaming.txt || echo 'mosaicml-streaming is left out'
	touch $@

chaos: $(STAMP)  ## 20 random SIGKILLs for every ZeRO stage and precision; takes most of an hour
	CHAOS_KILLS=20 $(BIN)/pytest tests/integration/train/test_chaos.py

golden: $(STAMP)  ## write the compiled pipeline and the tables of pods that the tests compare with anew
	$(BIN)/python -m tests.golden

docs: $(STAMP)  ## write docs/cli.md and docs/settings.md anew, from the parser and the settings
	$(BIN)/python -m pipeline.reference docs

chart: $(STAMP)  ## write the chart's documentation anew
	$(BIN)/python charts/document.py

images:  ## build and push both images: REGISTRY=… BASE=NAME@sha256:…
	$(MAKE) -C images

constraints:  ## pin anew what a fresh installation takes, in constraints.txt
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet -e '.[pipeline,train,dev]' torch==$(TORCH)
	build/constraints/bin/pip check
	build/constraints/bin/pip freeze --all --exclude-editable --exclude pip > build/frozen.txt
	echo '# Every package of .[pipeline,train,dev] as tested. Made by `make constraints`; do not edit.' > constraints.txt
	sed -E 's/\+[a-z0-9.]+$$//' build/frozen.txt | LC_ALL=C sort -f >> constraints.txt
	rm -rf build/constraints build/frozen.txt

# For every machine that Python 3.11 or later runs on. CPU builds of torch, which developers may have, have other hashes.
locks:  ## pin what the images take by hashes, in images/locks; after `make constraints`
	rm -rf build/locks
	$(PYTHON) -m venv build/locks
	build/locks/bin/pip install --quiet uv
	$(LOCK) images/locks/build.in --output-file images/locks/build.txt
	$(LOCK) pyproject.toml --extra pipeline --extra rows --output-file images/locks/darkroom.txt
	$(LOCK) pyproject.toml --extra pipeline --extra train --extra monitor --output-file images/locks/darkroom-gpu.txt
	rm -rf build/locks

clean:  ## remove what was built; .venv and demo stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
