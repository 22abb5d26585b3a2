# Every task of a developer is a target, and CI runs the same targets.
# `make demo` and `make test` install what they need into .venv with uv, which pip installs if it is missing.

PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
VENV := .venv/.installed
RUN := .venv/bin/python
DATA ?=
PORT ?= 8080
INPUT_ROOT ?=
# Three test workers on two or more cores, because many tests wait for processes. WORKERS= runs tests one after the other.
WORKERS ?= $(if $(filter-out 1,$(shell nproc)),-n 3)

.PHONY: help venv demo up down test nightly soak fuzz lint types docs check bench images constraints wheel clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

venv: $(VENV) ## install everything into .venv

.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv

$(VENV): pyproject.toml constraints.txt | $(filter .uv/%,$(UV))
	$(UV) venv --quiet --allow-existing --python '>=3.11' .venv
	VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[local,dicom,dicomweb,docker,celery,kubernetes,serve,test,docs]'
	touch $@

demo: $(VENV) ## run phantom data (or DATA=folder) through the whole pipeline, in a private Airflow
	$(RUN) -m devtools.demo $(if $(DATA),--data "$(DATA)")

up: $(VENV) ## run the demo and keep Airflow with its UI on loopback until `make down`; PORT=, INPUT_ROOT=folder
	$(RUN) -m devtools.demo --keep-up --port $(PORT) $(if $(DATA),--data "$(DATA)") $(if $(INPUT_ROOT),--input-root "$(INPUT_ROOT)")

down: $(VENV) ## stop the Airflow of `make up`
	$(RUN) -m devtools.demo --down

test: $(VENV) ## run all tests that can run here, and name those that were skipped, with the reason
	$(RUN) -m pytest $(WORKERS) $(ARGS)

nightly: $(VENV) ## run the tests that take too long for every change
	$(RUN) -m pytest $(WORKERS) -m nightly --timeout 3600 $(ARGS)

soak: $(VENV) ## run DATASETS=8 dataset DAGs under MINUTES=10 of kills and faults, with SEED= to repeat one; fails if anything is wrong
	$(RUN) -m soak --minutes $(or $(MINUTES),10) --datasets $(or $(DATASETS),8) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV) ## test for ten minutes each: damaged files for every reader, random requests, forms and images for both REST services
	FUZZ_SECONDS=$(or $(SECONDS),600) $(RUN) -m pytest tests/chaos/test_validation.py tests/unit/nnunet_jobs/predictor_server/test_schema.py tests/e2e/test_predictions_faults.py -k 'fault_56 or fault_57' --timeout 1200

lint: $(VENV) ## run ruff and check the import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports

types: $(VENV) ## run mypy --strict
	.venv/bin/mypy
	.venv/bin/mypy benchmarks soak devtools docker/*.py

docs: $(VENV) ## build the documentation as a site in site/, without the network; a broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

check: lint types docs test ## run what CI runs

bench: $(VENV) ## compare with stock nnU-Net and print the tables
	$(RUN) -m benchmarks $(ARGS)

images: ## build the images with docker or podman; ARGS are those of docker/build.py
	$(PYTHON) docker/build.py $(ARGS)

constraints: ## pin every version that works together
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --no-emit-index-url --no-header --no-annotate pyproject.toml --upgrade --output-file constraints.txt

wheel: $(VENV) ## build the distribution into dist/
	$(UV) build --quiet --wheel

clean: ## remove what the targets above made
	rm -rf .venv .uv .demo .bench dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
