# Two commands do all the set-up: `make demo` and `make test`. Both work on a fresh clone.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL: # one .venv, one pip at a time

# The first of these that runs and is new enough; 3.11 is what constraints.txt was made with.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
# The torch that `make lock` pins. No local version label (such as +cpu): the lock serves every build of it.
TORCH := 2.13.0

VENV := .venv
BIN := $(VENV)/bin
LOCK_VENV := .venv-lock
# What the benchmark compares with and nothing else needs; apart, because it brings scipy and scikit-learn.
PEERS_VENV := .venv-peers
PEERS := adaptersentry==2.0.2
MLFLOW_VENV := .venv-mlflow
PINS := pyproject.toml constraints.txt
# A real vLLM on the CPU, in an environment of its own: its versions are not ours.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_LOCK := tests/vllm/vllm-on-cpu.lock.txt

# What the demo runs, which is everything but torch: the stages judge adapters by their headers, and torch is larger
# than all the rest together (measured with a warm cache: 40 s and 170 MB without it, 80 s and 1 GB with it; a CUDA
# build downloads gigabytes).
DEMO_EXTRAS := cli,workers,gateway,node,embedded

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# $(call pip_install,EXTRAS): names each download as it starts; pip's own output is kept in a log and shown if it fails.
define pip_install
$(BIN)/python -m pip install -c constraints.txt -e '.[$(1)]' 2>&1 | tee $(VENV)/install.log | \
	awk '/^ *Downloading /{sub(/^ */, ""); print "    " $$0; fflush()} \
	     /^Installing collected packages/{print "    unpacking " NF - 3 " packages"; fflush()}' \
	|| { tail -n 40 $(VENV)/install.log >&2; exit 1; }
endef

.PHONY: help install demo test test-vllm fuzz bench lint lock clean demo-data docs-codes

help:
	@echo "make demo       run the whole path once, on real adapters and a real server"
	@echo "make test       run all tests"
	@echo "make test-vllm  run the tests of serving nodes on a real vLLM server (about ten minutes, 3 GB in $(VLLM_VENV))"
	@echo "make fuzz       change headers and configurations 200,000 times and compare with the real libraries"
	@echo "make bench      compare with bare Celery, bare Redis, PEFT and adaptersentry"
	@echo "make install    install everything a user of any part runs, into $(VENV)"
	@echo "make lint       ruff, mypy and the import contracts"
	@echo "make demo-data  remake the demo's models and adapters"
	@echo "make docs-codes remake the pages of codes and of engine rules in deploy/docs"
	@echo "make lock       remake constraints.txt"
	@echo "make clean      remove $(VENV), caches and build outputs"

# One stamp for each set of packages. A larger set contains the smaller ones, so it marks them as done too.
$(VENV)/.created:
	@echo "==> making a virtual environment in $(VENV)"
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed and was not found; set PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.created $(PINS)
	@echo "==> installing lora-registry[$(DEMO_EXTRAS)] (about a minute)"
	@$(call pip_install,$(DEMO_EXTRAS))
	@touch $@

$(VENV)/.all: $(VENV)/.created $(PINS)
	@echo "==> installing lora-registry[all], torch included (about two minutes)"
	@$(call pip_install,all)
	@touch $(VENV)/.demo $@

$(VENV)/.test: $(VENV)/.created $(PINS)
	@echo "==> installing lora-registry[test]: all parts, the test tools, PEFT and transformers (two to three minutes)"
	@$(call pip_install,test)
	@touch $(VENV)/.demo $(VENV)/.all $@

# MLflow brings 90 packages that nothing here imports; a test runs its server.
$(MLFLOW_VENV)/.installed: tests/mlflow-constraints.txt
	@echo "==> installing MLflow into $(MLFLOW_VENV) (about a minute)"
	@"$(PYTHON)" -m venv --clear $(MLFLOW_VENV)
	@$(MLFLOW_VENV)/bin/python -m pip install --quiet -c tests/mlflow-constraints.txt mlflow
	@touch $@

install: $(VENV)/.all
	@echo "==> installed; $(BIN)/lora-registry --help says what there is"

demo: $(VENV)/.demo
	@echo "==> running the demo"
	@$(BIN)/lora-registry demo

test: $(VENV)/.test $(MLFLOW_VENV)/.installed
	@echo "==> running the tests"
	@$(BIN)/python -m pytest

# Without dependencies: the lock is the whole closure, less what only breaks here (torchvision and its like).
# PyPI has no torch with "+cpu" in its version; where no configured index or folder has it, PyTorch's own does.
$(VLLM_VENV)/.made: $(VLLM_LOCK) tests/vllm/metadata/pyproject.toml pyproject.toml
	@echo "==> making $(VLLM_VENV) with a vLLM for CPUs (three minutes, 2.5 GB)"
	@python3.11 -m venv $(VLLM_VENV)
	@$(VLLM_BIN)/python -m pip install --quiet --upgrade 'setuptools==78.1.1'
	@torch=$$(grep '^torch==' $(VLLM_LOCK)); $(VLLM_BIN)/python -m pip install --quiet --no-deps "$$torch" || \
		$(VLLM_BIN)/python -m pip install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu "$$torch"
	@$(VLLM_BIN)/python -m pip install --quiet --no-deps -r $(VLLM_LOCK)
	@$(VLLM_BIN)/python -m pip install --quiet --no-deps --no-build-isolation ./tests/vllm/metadata -e .
	@rm -rf tests/vllm/metadata/build tests/vllm/metadata/*.egg-info
	@touch $@

test-vllm: $(VENV)/.test $(VLLM_VENV)/.made
	@echo "==> running the tests on real vLLM servers"
	@$(BIN)/python -m pytest tests/vllm

fuzz: $(VENV)/.test
	@echo "==> changing headers and configurations"
	@FUZZ_ROUNDS=100000 FUZZ_LOADS=3000 $(BIN)/python -m pytest tests/corpus/test_mutations.py --timeout 3600

$(PEERS_VENV)/.created: $(VENV)/.created
	@echo "==> installing $(PEERS) into $(PEERS_VENV), to compare with"
	@"$(PYTHON)" -m venv --clear $(PEERS_VENV)
	@$(PEERS_VENV)/bin/python -m pip install --quiet $(PEERS)
	@touch $@

bench: $(VENV)/.test $(PEERS_VENV)/.created
	@echo "==> running the benchmark"
	@$(BIN)/python -m tests.benchmarks --json bench-results/latest.json

lint: $(VENV)/.test
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> lint-imports"
	@$(BIN)/lint-imports

demo-data: $(VENV)/.test
	@echo "==> making the demo's base models and adapters"
	@$(BIN)/python -m tests.helpers.make_demo_data

docs-codes: $(VENV)/.demo
	@echo "==> writing deploy/docs/codes.md and deploy/docs/engines.md"
	@$(BIN)/python -m lora_workers.cli.code_page deploy/docs

lock:
	@echo "==> resolving lora-registry[test] anew in $(LOCK_VENV), with torch $(TORCH)"
	@"$(PYTHON)" -m venv --clear $(LOCK_VENV)
	@$(LOCK_VENV)/bin/python -m pip install --quiet -c <(echo "torch==$(TORCH)") '.[test]'
	@{ echo "# The versions that everything here is installed with (extras all and test). Remake it with: make lock"; \
	   $(LOCK_VENV)/bin/python -m pip freeze --all --exclude pip --exclude lora-registry \
	   | sed -E 's/^torch( @ .*|==.*)$$/torch==$(TORCH)/'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt
	@rm -rf $(LOCK_VENV) build
	@echo "==> wrote constraints.txt"

clean:
	@echo "==> removing $(VENV), caches and build outputs"
	@rm -rf $(VENV) $(VLLM_VENV) $(LOCK_VENV) $(PEERS_VENV) $(MLFLOW_VENV) build dist pipeline/*.egg-info workers/*.egg-info *.egg-info
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find pipeline workers tests -name __pycache__ -type d -prune -exec rm -rf {} +
