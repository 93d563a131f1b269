# Everything starts here: `make help`. A machine with Python 3.11 or 3.12 and make needs nothing else.

PROFILE   ?= quick# what `make reproduce` runs: quick, pilot or study
PUBLISHED ?= study# the profile of the committed records, which `make book` shows
ARGS      ?=# more for book/build.py, as in ARGS="--device cuda --seeds 0 1 --force"

# The first of these that is Python 3.11 or 3.12 and can make an environment; or say PYTHON=/path/to/python.
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' \
	>/dev/null 2>&1 && echo $$python && break; done)

RUN := .venv/bin/python
RENDER := .venv/bin/jupyter-book build _build/stage --path-output . --all -n -W --keep-going

.PHONY: help reproduce test book bench torture lint lock clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

reproduce: .venv/made ## run every chapter live, PROFILE=quick|pilot|study, and build the book from those runs
	TOPOPRUNE_RESULTS="$(CURDIR)/_build/results" $(RUN) book/build.py --profile $(PROFILE) $(ARGS)
	$(RENDER)
	@echo "The book: $(CURDIR)/_build/html/index.html"

test: .venv/made ## run the tests
	$(RUN) -m pytest

book: .venv/made ## build the published book from the committed records, training nothing
	TOPOPRUNE_RESULTS="$(CURDIR)/book/results" TOPOPRUNE_NO_RUN=1 $(RUN) book/build.py --profile $(PUBLISHED) $(ARGS)
	$(RENDER)
	@echo "The book: $(CURDIR)/_build/html/index.html"

bench: .venv/made ## measure the topological fitness and training, fast paths beside the usual ones
	$(RUN) -m topoprune.measure.fitness
	$(RUN) -m topoprune.measure.training

torture: .venv/made ## kill a real run a hundred times, and a cluster's worker, and check that nothing is lost
	$(RUN) -m topoprune.measure.torture
	$(RUN) -m topoprune.measure.torture --cluster

lint: .venv/made ## check the code's style
	$(RUN) -m ruff check

lock: .venv/made ## resolve requirements.lock anew, for Python 3.11 and 3.12
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean: ## remove the environment and what was built; the records of runs (_build/results), downloads and checkpoints stay
	rm -rf .venv
	test ! -d _build || find _build -mindepth 1 -maxdepth 1 ! -name results -exec rm -rf {} +

.venv/made: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: found no Python 3.11 or 3.12 with venv and ensurepip: install one," \
		"or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making the environment in .venv: some 3 GB to download, 7 GB on disk, a few minutes."
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -qq --require-hashes -r requirements.lock
	.venv/bin/pip install -qq --no-build-isolation --no-deps --editable .
	touch $@
