# The commands of the project; `make` alone prints them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
STEP ?= inverted_bottleneck
STUDY ?= demo
REGIME ?= tiny
DATA ?= imagenet
ROOT ?=
RUNS ?= $(or $(ROADMAP_RUNS),runs)
ARGS ?=
CLUSTER ?= slurm
STEPS ?=
A ?=
B ?=
SEEDS ?=
YES ?=
# What `make roadmap` and `make plan` mean where no study is named: the paper's two tables.
STUDIES = $(if $(filter file,$(origin STUDY)),roadmap_tiny roadmap_base,$(STUDY))
SWEEP = $(BIN)/python -m roadmap.sweep
MINI = $(if $(filter-out file,$(origin DATA)),data=$(DATA)) $(if $(ROOT),'data.root=$(ROOT)') $(ARGS)
CHOSEN = $(STUDIES) --runs $(RUNS) --cluster $(CLUSTER) --steps "$(STEPS)" --seeds "$(SEEDS)"
BENCH ?= train
BIN := $(VENV)/bin
# Our own environment has the tested versions; one that is there keeps its own where they will do.
LOCK := $(if $(filter .venv,$(VENV)),-c requirements.lock)
# A new requirement means a new set-up; nothing else does.
READY := $(VENV)/.roadmap-ready

.PHONY: help setup demo mini test test-slow test-slurm lint steps run data-check roadmap plan status watch reconcile cancel sync prune bench report runs compare pack notebook clean

help: ## this list
	@echo "The ResNet-to-ConvNeXt roadmap. make TARGET [VARIABLE=value ...]"
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "VENV=$(VENV) PYTHON=$(PYTHON) use what is there; PIP_ARGS= goes to pip (a CPU build of torch, say); ARGS= to the command."

setup: $(READY) ## the virtual environment with the package in it (others call it by themselves)

# What the demo needs; `make test`, `make lint` and `make notebook` add theirs.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(LOCK) -e

$(READY): pyproject.toml requirements.lock
	@test -x $(BIN)/python || { echo "Making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the package and what it needs into $(VENV) (torch is large) ..."
	@$(INSTALL) .
	@touch $@

$(VENV)/.roadmap-%: pyproject.toml requirements.lock | $(READY)
	@echo "Adding what $* needs to $(VENV) ..."
	@$(INSTALL) '.[$*]'
	@touch $@

demo: $(READY) ## train all 17 rows on the embedded digits, as many at once as there are cores, and draw the chart
	@$(SWEEP) submit demo --runs $(RUNS) --cluster local -- $(ARGS)
	@$(BIN)/python -m roadmap.report $(RUNS)/demo --out $(RUNS)/demo/report

mini: $(READY) ## train all 17 rows, three seeds each, on DATA=fashion_mnist|cifar10|cifar100 in ROOT= on one GPU, and draw the chart
	@$(SWEEP) submit mini --runs $(RUNS) --cluster local -- $(MINI)
	@$(BIN)/python -m roadmap.report $(RUNS)/mini --out $(RUNS)/mini/report

test: $(VENV)/.roadmap-test ## the tests, two files at a time (14 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not slurm" $(ARGS)

test-slow: $(VENV)/.roadmap-test ## the whole matrix of kills, compiled nets, failing disks (an hour on 2 cores)
	@$(BIN)/python -m pytest -m "slow and not gpu and not slurm" $(ARGS)

test-slurm: $(VENV)/.roadmap-test ## the tests on a real Slurm, which they start on this machine (root; apt-get install slurm-wlm munge)
	@$(BIN)/python -m pytest -m slurm $(ARGS)

lint: $(VENV)/.roadmap-lint ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

steps: $(READY) ## every row of REGIME= with GMACs and parameters, beside the paper's
	@$(BIN)/python -m roadmap.steps --regime $(REGIME) $(ARGS)

run: $(READY) ## train one step: STEP=gelu ARGS="seed=1 recipe.lr=0.001"
	@$(BIN)/python run.py +step=$(STEP) paths.runs=$(RUNS) $(ARGS)

data-check: $(READY) ## open every image of DATA= in ROOT=, and count, before it costs
	@$(BIN)/python run.py mode=data_check data=$(DATA) $(if $(ROOT),'data.root=$(ROOT)') paths.runs=$(RUNS) $(ARGS)

plan: $(READY) ## what STUDY= costs, cell by cell, checked before anything is queued
	@$(SWEEP) plan $(CHOSEN) -- $(ARGS)

roadmap: $(READY) ## train STUDY= (one or several; STEPS= SEEDS= narrow it) on CLUSTER=slurm|local; typed again it goes on
	@$(SWEEP) submit $(CHOSEN) -- $(ARGS)

status: $(READY) ## how STUDY= stands (ARGS=--json for scripts)
	@$(SWEEP) status $(STUDIES) --runs $(RUNS) $(ARGS)

watch: $(READY) ## the same, again and again
	@$(SWEEP) watch $(STUDIES) --runs $(RUNS) $(ARGS)

reconcile: $(READY) ## restart the cells of STUDY= that were killed or lost their node; may run from cron
	@$(SWEEP) reconcile $(STUDIES) --runs $(RUNS)

cancel: $(READY) ## cancel what is queued or at work of STUDY=
	@$(SWEEP) cancel $(STUDIES) --runs $(RUNS)

sync: $(READY) ## send to W&B what STUDY= logged offline and what the network swallowed
	@$(SWEEP) sync $(STUDIES) --runs $(RUNS) $(ARGS)

prune: $(READY) ## remove the checkpoints that finished runs of STUDY= no longer need; shows them, asks (YES=1 does not)
	@$(SWEEP) prune $(STUDIES) --runs $(RUNS) $(if $(YES),--yes) $(ARGS)

bench: $(READY) ## measure BENCH=train (the loop), net (every row), infer, input (JPEGs), mini, kernels or compiled (operations), gpu (all, in minutes)
	@$(BIN)/python -m roadmap.bench $(BENCH) $(ARGS)

report: $(READY) ## figures, tables and page of STUDY=, into RUNS/STUDY/report
	@$(BIN)/python -m roadmap.report $(RUNS)/$(STUDY) --out $(RUNS)/$(STUDY)/report $(ARGS)

runs: $(READY) ## every run below RUNS=: state, top-1, epochs, when, where (ARGS="--state done --step gelu", --json)
	@$(BIN)/python -m roadmap.runs $(RUNS) $(ARGS)

compare: $(READY) ## two runs, or two rows over their seeds, side by side: A= B= (folders, folders in archives, rows of STUDY=)
	@$(BIN)/python -m roadmap.report.compare '$(A)' '$(B)' --within $(RUNS)/$(STUDY) $(ARGS)

pack: $(READY) ## all records of STUDY= as one file, RUNS/STUDY.zip, which report and notebook read where it lies
	@$(BIN)/python -m roadmap.runs.pack $(RUNS)/$(STUDY) $(ARGS)

notebook: $(VENV)/.roadmap-notebook ## run notebooks/roadmap.ipynb on your runs, into RUNS/roadmap.ipynb
	@mkdir -p $(RUNS)
	@ROADMAP_RUNS=$(abspath $(RUNS)) $(BIN)/jupyter-execute notebooks/roadmap.ipynb --output=$(abspath $(RUNS))/roadmap.ipynb

clean: ## remove .venv and what else can be made again; never runs
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
