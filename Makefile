# make demo         recognise the shipped clips with the shipped model, on a CPU
# make test         lint, types and the test suite, on all cores
# make docs         the documentation as a site, to site/
# make soak         dozens of kills, thousands of queries, an hour of failing cameras: what takes minutes
# make bench        CPU benchmarks, tables and plots, to benchmarks/results/ (leave the machine alone meanwhile)
# make demo-bundle  train and export the shipped model again
# make clean        remove the environment, caches and what the targets above wrote
#
# PYTHON names the interpreter (3.10 to 3.13) the environment is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo-bundle
BUNDLE := m2df_runtime/demo/demo.bundle.zip

# Where a shell sets it, each of the many processes that the tests start compiles m2df again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test docs soak lint bench demo-bundle clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "m2df needs Python 3.10 to 3.13; name one with: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments (no ensurepip): install the python3-venv package" \
			"of your system, or name another one with: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than what it was installed from, so a second call installs nothing.
$(VENV)/.installed-cpu: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu]' --constraint constraints.txt
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@ $(VENV)/.installed-cpu $(VENV)/.installed-docs

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]' --constraint constraints.txt
	@touch $@

demo: $(VENV)/.installed-cpu
	$(BIN)/m2df-run --picture demo.png
	$(BIN)/m2df-run --window auto --picture demo-events.png

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread per process: operators as small as the tests' gain nothing from a second, and lose much where cores are
# shared. Each process begins with its share of the files, since what the tests of a file have in common is made once
# per process; one that has none left takes tests from another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# mypy takes one core for a minute where it has no cache, so it runs beside the tests; its lines follow theirs.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy >$(VENV)/mypy.log 2>&1 & types=$$!; trap "kill $$types" INT TERM; \
	$(PYTEST) -m "not soak" -n auto --dist worksteal; tests=$$?; \
	wait $$types; types=$$?; \
	echo "mypy:"; cat $(VENV)/mypy.log; \
	exit $$((tests ? tests : types))

# The variable silences a notice of mkdocs-material about a version of mkdocs that is not installed.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open site/index.html"

# glibc gives threads up to eight heaps per core, each of which fills up to its own peak, over hours; see docs/live.md.
soak: $(VENV)/.installed-dev
	MALLOC_ARENA_MAX=2 $(PYTEST) -m soak

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.latency --model ViT-B-16-quickgelu --rounds 8 --warmup 1
	$(BIN)/python -m benchmarks.latency --bundle $(BUNDLE) --twin
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.ceilings
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.bulk
	$(BIN)/python -m benchmarks.stream
	$(BIN)/python -m benchmarks.cameras
	$(BIN)/python -m benchmarks.serve
	$(BIN)/python -m benchmarks.training --updates 4
	$(BIN)/python -m benchmarks.report

# A run that was stopped goes on where it was. The export writes a directory and its zip; the zip is what ships.
demo-bundle: $(VENV)/.installed-dev
	$(BIN)/m2df-train --recipe demo-bundle --out $(RUN) $(if $(wildcard $(RUN)/recipe.yaml),--resume)
	$(BIN)/m2df-export --checkpoint $(RUN) --fp16 --only-precision fp16 --zip --out $(RUN)/demo.bundle
	mkdir -p $(dir $(BUNDLE))
	cp $(RUN)/demo.bundle.zip $(BUNDLE)

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo*.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
