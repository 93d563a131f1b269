# Everything starts here: `make help`. Needs make and any Python from 3.9 on; uv brings the rest.

PROFILE   ?= quick# what `make reproduce` runs: quick, pilot or study
PUBLISHED ?= study# the profile of the committed records, which `make book` shows
ARGS      ?=# more options: of book/build.py, as in ARGS="--device cuda --seeds 0 1", of pytest, or of `uv pip compile`

# The first Python that can make an environment, to bring uv. Or name one: make PYTHON=/path/to/python
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python python3.13 python3.14 python3.10 python3.9; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1 && \
	echo $$python && break; done)

# The study's pins need Python 3.11 or 3.12: PYTHON if it is one of them, else what uv finds or downloads.
PYTHON_3_11_OR_3_12 = "$$($(PYTHON) -c 'import sys; \
	print(sys.executable if (3, 11) <= sys.version_info < (3, 13) else ">=3.11,<3.13")')"

UV     := _build/uv/bin/uv
RUN    := .venv/bin/python
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 8 --durations 10
RENDER := .venv/bin/jupyter-book build _build/stage --path-output . --all -n -W --keep-going
BOOK   := $(RUN) book/build.py

# An environment whose interpreter has gone, or is not one of the study's, is made anew.
$(shell test ! -e .venv/made || $(RUN) -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' \
	2>/dev/null || rm -f .venv/made)

.PHONY: help reproduce book pdf site browser links figure test test-slow site-test test-all lint format bench torture \
	lock clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

reproduce: .venv/made ## run every chapter live, PROFILE=quick|pilot|study, and build the book from those runs
	TOPOPRUNE_RESULTS="$(CURDIR)/_build/results" $(BOOK) --profile $(PROFILE) $(ARGS)
	$(RENDER)
	@echo "The book: $(CURDIR)/_build/html/index.html"

book: .venv/made ## build the published book from the committed records, training nothing
	TOPOPRUNE_RESULTS="$(CURDIR)/book/results" TOPOPRUNE_NO_RUN=1 $(BOOK) --profile $(PUBLISHED) $(ARGS)
	$(RENDER)
	@echo "The book: $(CURDIR)/_build/html/index.html"

pdf: browser ## print the site that was built last into _build/html/topoprune.pdf
	$(RUN) book/pdf.py

site: ## build what is published: the book from the committed records, and its PDF
	$(MAKE) book ARGS="--pdf $(ARGS)"
	$(MAKE) pdf

browser: .venv/made ## install Chromium, which prints and checks the site, where no browser of its family is found
	@$(RUN) book/browser.py

links: .venv/made ## check the external links of the book that was staged last
	.venv/bin/jupyter-book build _build/stage --path-output . --builder linkcheck

figure: .venv/made ## draw the README's figure anew, when the committed records have grown
	$(RUN) book/main_figure.py

test: .venv/made ## run the fast tests: every oracle and property, one tiny study from end to end
	$(PYTEST) -m "not slow and not site" $(ARGS)

test-slow: .venv/made ## run what is long by nature: kills, a cluster, real benchmarks, every chapter
	$(PYTEST) --dist loadfile -m slow $(ARGS)

site-test: browser ## check the site that was built last in a browser: links, widths, themes, accessibility, search
	test -e _build/html/topoprune.pdf || $(MAKE) site
	$(PYTEST) --dist loadgroup -m site tests/site $(ARGS)

test-all: test test-slow site-test ## run all tests

lint: .venv/made ## check style, types, the workflows of continuous integration and CITATION.cff
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	.venv/bin/actionlint
	.venv/bin/zizmor --quiet --offline .github
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff

format: .venv/made ## format the code and mend what ruff can mend
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

bench: .venv/made ## measure the topological fitness and training, fast paths beside the usual ones
	$(RUN) -m topoprune.measure.fitness
	$(RUN) -m topoprune.measure.training

torture: .venv/made ## kill a real run a hundred times, and a cluster's worker, and check that nothing is lost
	$(RUN) -m topoprune.measure.torture
	$(RUN) -m topoprune.measure.torture --cluster

lock: .venv/made ## lock what pyproject.toml asks for, and keep the other pins; ARGS=--upgrade renews all
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock $(ARGS) pyproject.toml

clean: ## remove the environment and what was built; records of runs (_build/results), downloads and checkpoints stay
	rm -rf .venv
	test ! -d _build || find _build -mindepth 1 -maxdepth 1 ! -name results -exec rm -rf {} +

# `made` is the last file to be written. An environment without it was interrupted: it is made anew, from uv's cache.
.venv/made: requirements.lock pyproject.toml $(UV)
	@echo "Making the environment in .venv: some 3 GB to download, 7 GB on disk, a minute or two."
	@$(UV) python find $(PYTHON_3_11_OR_3_12) >/dev/null 2>&1 || $(UV) python install --no-bin 3.12 2>/dev/null || { \
		echo "make: found no Python 3.11 or 3.12, and uv could not download one: install one (Debian, Homebrew, conda" \
		"and pyenv have it), or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -e $@ || $(UV) venv --quiet --clear --python $(PYTHON_3_11_OR_3_12) .venv
	@rm -f $@
	$(UV) pip sync --python $(RUN) --require-hashes --build-constraints requirements.lock --compile-bytecode \
		requirements.lock
	$(UV) pip install --quiet --python $(RUN) --no-deps --no-build-isolation --editable .
	@touch $@

# uv itself, at the version and with the hashes of the lock.
.SECONDARY: $(UV)
$(UV): requirements.lock
	@test -n "$(PYTHON)" || { echo "make: found no Python from 3.9 on with venv and ensurepip: install one" \
		"(Debian: apt install python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear _build/uv
	awk '/^[^ ]/ {uv = /^uv==/} uv' requirements.lock > _build/uv/requirements.txt
	_build/uv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r _build/uv/requirements.txt
	@touch $@
