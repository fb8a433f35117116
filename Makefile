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
GONE ?=
# What `make roadmap` and `make plan` mean where no study is named: the paper's two tables.
STUDIES = $(if $(filter file,$(origin STUDY)),roadmap_tiny roadmap_base,$(STUDY))
# What `make status` and `make watch` show then: whatever was submitted.
SUBMITTED = $(shell ls -d '$(RUNS)'/*/.study 2>/dev/null | sed -n 's:.*/\([^/]*\)/\.study$$:\1:p')
SHOWN = $(if $(filter file,$(origin STUDY)),$(or $(SUBMITTED),$(STUDIES)),$(STUDY))
$(if $(findstring ',$(RUNS)$(ROOT)),$(error RUNS= and ROOT= take no apostrophe; run.py and python -m roadmap.report take any path))
# The folder of a study below RUNS, also of one that is given as a file.
FOLDER = $(RUNS)/$(foreach study,$(STUDY),$(if $(filter %.yaml,$(study)),$(basename $(notdir $(study))),$(study)))
SWEEP = $(BIN)/python -m roadmap.sweep
MINI = $(if $(filter-out file,$(origin DATA)),data=$(DATA)) $(if $(ROOT),"data.root='$(ROOT)'") $(ARGS)
CHOSEN = $(STUDIES) --runs '$(RUNS)' --cluster $(CLUSTER) --steps "$(STEPS)" --seeds "$(SEEDS)"
BENCH ?= train
BIN := $(VENV)/bin
# Our own environment has the tested versions; one that is there keeps its own where they will do.
LOCK := $(if $(filter .venv,$(VENV)),-c requirements.lock)
# A new requirement means a new set-up; nothing else does.
READY := $(VENV)/.roadmap-ready

.PHONY: help setup demo mini test test-slow test-slurm test-gpu lint steps run data-check roadmap plan status watch reconcile cancel sync prune bench report runs compare pack notebook clean

help: ## list all targets
	@echo "The ResNet-to-ConvNeXt roadmap. Usage: make TARGET [VARIABLE=value ...]"
	@awk '/^## / {print "\n" substr($$0, 4)} /^[a-z][a-z-]*:.*## / {split($$0, part, ":.*## "); printf "  %-11s %s\n", part[1], part[2]}' $(MAKEFILE_LIST)
	@echo
	@echo "VENV=$(VENV) is the environment, PYTHON=$(PYTHON) creates it, and PIP_ARGS= goes to pip (for a CPU build of torch)."
	@echo "ARGS= is passed to the command. STUDY= is a name in sweeps/ or a file; RUNS=$(RUNS) holds all runs."

## Getting started

setup: $(READY) ## create the virtual environment and install the package (other targets do this when needed)

# What the demo needs; `make test`, `make lint` and `make notebook` add theirs.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(LOCK) -e

# What `python -m venv` writes last is bin/activate: one that was interrupted has none.
$(READY): pyproject.toml requirements.lock
	@test -x $(BIN)/python -a ! \( -e $(VENV)/pyvenv.cfg -a ! -e $(BIN)/activate \) || { echo "Making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@was=$$(sed -n 's|.*"file://\([^"]*\)".*|\1|p' $(VENV)/lib/python3*/site-packages/convnext_roadmap-*.dist-info/direct_url.json 2>/dev/null || :); \
		test ! -d "$$was" -o "$$was" -ef . || other=" It had the package of $$was."; \
		echo "Installing the package and what it needs into $(VENV) (torch is large) ...$${other-}"
	@$(INSTALL) .
	@touch $@

$(VENV)/.roadmap-%: pyproject.toml requirements.lock | $(READY)
	@echo "Adding what $* needs to $(VENV) ..."
	@$(INSTALL) '.[$*]'
	@touch $@

demo: $(READY) ## train all 17 rows on digits on this machine, and draw the chart
	@$(SWEEP) submit demo --runs '$(RUNS)' --cluster local -- $(ARGS)
	@$(BIN)/python -m roadmap.report '$(RUNS)/demo' --out '$(RUNS)/demo/report'

mini: $(READY) ## train all 17 rows with three seeds on one GPU: DATA=fashion_mnist|cifar10|cifar100 ROOT=FOLDER
	@$(SWEEP) submit mini --runs '$(RUNS)' --cluster local -- $(MINI)
	@$(BIN)/python -m roadmap.report '$(RUNS)/mini' --out '$(RUNS)/mini/report'

## One step

steps: $(READY) ## list all rows of REGIME= with MACs and parameters, beside the paper's
	@$(BIN)/python -m roadmap.steps --regime $(REGIME) $(ARGS)

run: $(READY) ## train one step: STEP=gelu ARGS="seed=1 recipe.lr=0.001"
	@$(BIN)/python run.py +step=$(STEP) "paths.runs='$(RUNS)'" $(ARGS)

data-check: $(READY) ## open and count all images of DATA= in ROOT= before training
	@$(BIN)/python run.py mode=data_check data=$(DATA) $(if $(ROOT),"data.root='$(ROOT)'") "paths.runs='$(RUNS)'" $(ARGS)

## Studies

plan: $(READY) ## show what STUDY= will cost, cell by cell, without starting anything
	@$(SWEEP) plan $(CHOSEN) -- $(ARGS)

roadmap: $(READY) ## train STUDY= on CLUSTER=slurm|local, or continue it; STEPS= and SEEDS= select a part
	@$(SWEEP) submit $(CHOSEN) -- $(ARGS)

status: $(READY) ## show the state of STUDY=, or of all studies (ARGS=--json for scripts)
	@$(SWEEP) status $(SHOWN) --runs '$(RUNS)' $(ARGS)

watch: $(READY) ## show the state of STUDY= repeatedly
	@$(SWEEP) watch $(SHOWN) --runs '$(RUNS)' $(ARGS)

reconcile: $(READY) ## restart the cells of STUDY= that were killed or lost their node; may run from cron
	@$(SWEEP) reconcile $(STUDIES) --runs '$(RUNS)'

cancel: $(READY) ## cancel the queued and running cells of STUDY=; those of a machine that is no more: GONE=HOST
	@$(SWEEP) cancel $(STUDIES) --runs '$(RUNS)' $(if $(GONE),--gone '$(GONE)')

sync: $(READY) ## send what STUDY= logged offline, or could not send, to W&B
	@$(SWEEP) sync $(STUDIES) --runs '$(RUNS)' $(ARGS)

prune: $(READY) ## delete checkpoints that finished runs of STUDY= no longer need; asks first (unless YES=1)
	@$(SWEEP) prune $(STUDIES) --runs '$(RUNS)' $(if $(YES),--yes) $(ARGS)

## Results

report: $(READY) ## write figures, tables and a page for STUDY= into RUNS/STUDY/report
	@$(BIN)/python -m roadmap.report '$(FOLDER)' --out '$(FOLDER)/report' $(ARGS)

runs: $(READY) ## list every run below RUNS= (ARGS="--state done --step gelu", --json)
	@$(BIN)/python -m roadmap.runs '$(RUNS)' $(ARGS)

compare: $(READY) ## compare two runs, or two rows of STUDY=: A=gelu B=kernel_7
	@$(BIN)/python -m roadmap.report.compare '$(A)' '$(B)' --within '$(FOLDER)' $(ARGS)

pack: $(READY) ## pack the records of STUDY= into RUNS/STUDY.zip, which report and notebook can read
	@$(BIN)/python -m roadmap.runs.pack '$(FOLDER)' $(ARGS)

notebook: $(VENV)/.roadmap-notebook ## run notebooks/roadmap.ipynb on your runs and save it as RUNS/roadmap.ipynb
	@mkdir -p '$(RUNS)'; runs=$$(cd '$(RUNS)' && pwd); export ROADMAP_RUNS="$$runs"; \
		$(BIN)/jupyter-execute notebooks/roadmap.ipynb --output="$$runs/.roadmap.ipynb"; \
		mv "$$runs/.roadmap.ipynb" "$$runs/roadmap.ipynb"

## Development

test: $(VENV)/.roadmap-test ## run the tests, two files at a time (13 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not slurm" $(ARGS)

test-slow: $(VENV)/.roadmap-test ## run the slow tests: kills, compiled networks, failing disks (an hour on 2 cores)
	@$(BIN)/python -m pytest -m "slow and not gpu and not slurm" $(ARGS)

test-gpu: $(VENV)/.roadmap-test ## run the tests that need a GPU, in groups side by side
	@$(BIN)/python -m pytest -n 6 --dist loadgroup -m gpu $(ARGS)

test-slurm: $(VENV)/.roadmap-test ## run the tests on a real Slurm that they start here (as root; apt-get install slurm-wlm munge)
	@$(BIN)/python -m pytest -m slurm $(ARGS)

lint: $(VENV)/.roadmap-lint ## run ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(READY) ## benchmark BENCH=train, net, nets, infer, input, mini, kernels, compiled, or gpu (several in minutes)
	@$(BIN)/python -m roadmap.bench $(BENCH) $(ARGS)

clean: ## delete .venv and caches; never runs
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
