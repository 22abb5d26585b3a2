# Everything a person does here is a target; CI runs the same ones.
# `make demo` and `make test` set themselves up in .venv with uv, which pip fetches when it is missing.

PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
VENV := .venv/.installed
RUN := .venv/bin/python
DATA ?=
PORT ?= 8080
INPUT_ROOT ?=
# Three test workers where there are two cores or more: many tests wait for processes. WORKERS= runs one after the other.
WORKERS ?= $(if $(filter-out 1,$(shell nproc)),-n 3)

.PHONY: help venv demo up down test nightly soak fuzz lint types docs check bench images constraints wheel clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

venv: $(VENV) ## install everything into .venv

.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv

$(VENV): pyproject.toml constraints.txt | $(filter .uv/%,$(UV))
	$(UV) venv --quiet --allow-existing --python '>=3.11' .venv
	VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[local,dicom,dicomweb,docker,celery,kubernetes,serve,test,docs]'
	touch $@

demo: $(VENV) ## phantom data (or DATA=folder) through the whole pipeline, run by a private Airflow
	$(RUN) -m devtools.demo $(if $(DATA),--data "$(DATA)")

up: $(VENV) ## a small site on loopback: the demo, and Airflow with its UI stays up until `make down`; PORT=, INPUT_ROOT=folder
	$(RUN) -m devtools.demo --keep-up --port $(PORT) $(if $(DATA),--data "$(DATA)") $(if $(INPUT_ROOT),--input-root "$(INPUT_ROOT)")

down: $(VENV) ## stop what `make up` left running
	$(RUN) -m devtools.demo --down

test: $(VENV) ## everything that can run here; says what it skipped and why
	$(RUN) -m pytest $(WORKERS) $(ARGS)

nightly: $(VENV) ## the tests that are too long for every change
	$(RUN) -m pytest $(WORKERS) -m nightly --timeout 3600 $(ARGS)

soak: $(VENV) ## MINUTES=10 of kills and faults under DATASETS=8 dataset DAGs, SEED= to repeat one; fails when anything is wrong
	$(RUN) -m soak --minutes $(or $(MINUTES),10) --datasets $(or $(DATASETS),8) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV) ## ten minutes each: damaged files for every reader, random requests for both REST services, forms and images of random bytes
	FUZZ_SECONDS=$(or $(SECONDS),600) $(RUN) -m pytest tests/chaos/test_validation.py tests/unit/nnunet_jobs/predictor_server/test_schema.py tests/e2e/test_predictions_faults.py -k 'fault_56 or fault_57' --timeout 1200

lint: $(VENV) ## ruff and the import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports

types: $(VENV) ## mypy --strict
	.venv/bin/mypy
	.venv/bin/mypy benchmarks soak devtools docker/*.py

docs: $(VENV) ## the documentation as a site in site/, without the network; a broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

check: lint types docs test ## what CI runs

bench: $(VENV) ## side by side with stock nnU-Net; prints the tables
	$(RUN) -m benchmarks $(ARGS)

images: ## build the images with docker or podman; ARGS as of docker/build.py
	$(PYTHON) docker/build.py $(ARGS)

constraints: ## pin every version that works together
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --no-emit-index-url --no-header --no-annotate pyproject.toml --upgrade --output-file constraints.txt

wheel: $(VENV) ## build the distribution into dist/
	$(UV) build --quiet --wheel

clean: ## remove what the targets above made
	rm -rf .venv .uv .demo .bench dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
