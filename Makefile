# Two commands on a machine that has git, make and Python 3.11 or later: `make demo` and `make test`.
# Both make the environment .venv first; a second run uses the one that is there.

VENV ?= .venv
BIN := $(VENV)/bin
CORE_VENV := $(VENV)-core
STAMP := $(VENV)/.lightrft-setup
CORE_STAMP := $(CORE_VENV)/.lightrft-setup
LOWEST_VENV := $(VENV)-lowest
LOWEST_STAMP := $(LOWEST_VENV)/.lightrft-setup
VLLM_VENV := $(VENV)-vllm
VLLM_STAMP := $(VLLM_VENV)/.lightrft-setup
SGLANG_VENV := $(VENV)-sglang
SGLANG_STAMP := $(SGLANG_VENV)/.lightrft-setup
EXTRAS_VENV := $(VENV)-extras
EXTRAS_STAMP := $(EXTRAS_VENV)/.lightrft-setup
CROSSCHECK_VENV := $(VENV)-crosscheck
CROSSCHECK_STAMP := $(CROSSCHECK_VENV)/.lightrft-setup
# Where ARGS names an engine that has an environment of its own, a command runs there.
ENGINE_STAMP = $(if $(findstring sglang,$(ARGS)),$(SGLANG_STAMP),$(if $(findstring vllm,$(ARGS)),$(VLLM_STAMP)))
ENGINE_BIN = $(if $(ENGINE_STAMP),$(dir $(ENGINE_STAMP))bin,$(BIN))
MANIFESTS := pyproject.toml packages/core/pyproject.toml packages/backend-fsdp/pyproject.toml packages/backend-deepspeed/pyproject.toml packages/engine-vllm/pyproject.toml packages/engine-sglang/pyproject.toml
SETUP_PYTHON := $(or $(PYTHON),$(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell command -v $(name)))))
ARGS ?=
NOTHING_COLLECTED := 5

# Each module is compiled once, not by each of the thousand processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE

# Threads that spin while they wait slow each other down on a machine with other work.
export OMP_WAIT_POLICY ?= PASSIVE

GPU_SITE ?= .build/gpu-site

.DEFAULT_GOAL := help
.PHONY: help setup demo docs site wheels gsm8k memory sequence-memory parity row-parity collectives overhead curves packing learn silent user-inputs families crosscheck engine-matrix rollout sync-speed test test-slow test-slow-core test-slow-workspace test-long test-core test-lowest test-workspace test-extras test-examples test-vllm test-sglang test-ray lint gpu-wheels gpu-vllm gpu-unpack gpu-test gpu-multi gpu-bench vs-trl phases passes clean chaos soak hangs fuzz audit plan-peaks

help:  ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## make the environment .venv (the others do it by themselves)

$(STAMP): $(MANIFESTS) tools/make_env.py
	@test -n "$(SETUP_PYTHON)" || { echo "[setup] no python3 found; install Python 3.11 or later"; exit 1; }
	@$(SETUP_PYTHON) tools/make_env.py $(VENV)
	@touch $@

demo: $(STAMP) $(ENGINE_STAMP)  ## watch a tiny model learn to sort digits: two ranks, FSDP2, a colocated engine; ARGS='--engine_type vllm' passes flags
	@$(ENGINE_BIN)/lightrft demo $(ARGS)

gsm8k: $(STAMP)  ## the same loop on GSM8K with a tiny model trained from nothing
	@$(BIN)/lightrft train --config examples/recipes/gsm8k-tiny.yaml --nproc-per-node 2 \
		--output_dir runs/gsm8k-$(shell date +%Y%m%d-%H%M%S) $(ARGS)

memory: $(STAMP)  ## a table: log-probs and gradients without logits held, plain and fused, against all logits at once: peak and time
	@$(BIN)/python benchmarks/memory.py $(ARGS)

sequence-memory: $(STAMP)  ## a table: activations of each rank where 1, 2 and 4 ranks share a row of 4 k to 32 k tokens; ARGS=--cuda on GPUs
	@$(BIN)/python benchmarks/sequence_memory.py $(ARGS)

parity: $(STAMP)  ## a table: how far each backend's update is from that of one process, on 1, 2 and 4 ranks
	@$(BIN)/python benchmarks/parity.py $(ARGS)

row-parity: $(STAMP)  ## a table: the same for packed rows, rows that ranks share, and the fused head, on four models
	@$(BIN)/python benchmarks/row_parity.py $(ARGS)

mutants: $(STAMP)  ## a table: every planted fault, and the test of the conformance kit that sees it
	@$(BIN)/python benchmarks/mutants.py $(ARGS)

chaos: $(STAMP)  ## kill ranks of a run that goes on by itself, and compare it with the straight one; ARGS='--kills 50' for long
	@$(BIN)/python benchmarks/chaos.py $(ARGS)

hangs: $(STAMP)  ## a table: ranks that hang in every phase, whether the right one is named, and after how many seconds
	@$(BIN)/python benchmarks/hangs.py $(ARGS)

plan-peaks: $(STAMP)  ## a table: what `lightrft plan` says of each phase against what small runs on this CPU hold
	@$(BIN)/python benchmarks/plan_peaks.py $(ARGS)

soak: $(STAMP)  ## 500 rollouts watched from outside: memory, descriptors and threads of each rank, and the time of a step
	@$(BIN)/python benchmarks/soak.py $(ARGS)

fuzz: $(STAMP)  ## installs hypothesis into .venv and tries recipes, flags, rows and checkpoints of any content; ARGS='--examples 20000' for long
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode 'hypothesis>=6.100'
	$(BIN)/python -m pytest tests/fuzz $(ARGS)

audit: $(STAMP)  ## known vulnerabilities of what is installed (pip-audit, needs the network), and ruff's rules about security
	$(BIN)/ruff check --select S --ignore S101,S105,S108,S311,S603,S606,S607 --per-file-ignores '*/testing/*:S301,*/utils/sandbox/*:S102,*/config/yaml_text.py:S506' packages/*/src
	$(BIN)/uv tool run pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') $(ARGS)

wheels: $(STAMP)  ## the wheels of all packages, in dist; `export PIP_FIND_LINKS=$$PWD/dist` lets pip find them
	$(BIN)/python -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir dist ./packages/core ./packages/backend-fsdp ./packages/backend-deepspeed ./packages/engine-vllm ./packages/engine-sglang

collectives: $(STAMP)  ## a table: the collectives of a step, counted on 1, 2 and 4 ranks, and what follows for 64 and 1024
	@$(BIN)/python benchmarks/collectives.py $(ARGS)

docs: $(STAMP)  ## bring the generated pages and tables of docs up to date
	@$(BIN)/python tools/plugin_tables.py
	@$(BIN)/python tools/kit_table.py
	@$(BIN)/python tools/flag_table.py
	@$(BIN)/python tools/site_pages.py
	@$(BIN)/python tools/docstring_fraction.py

site: $(STAMP)  ## the documentation site, in build/site; every warning and every dead link is an error
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --group docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/site
	@echo "build/site/index.html"

overhead: $(STAMP)  ## a table: a step through each strategy against a loop by hand, as ratios
	@$(BIN)/python benchmarks/strategies.py $(ARGS)

silent: $(STAMP)  ## a table: situations in which nothing is learned, planted in small runs, and the sentence that is said
	@$(BIN)/python benchmarks/silent_failures.py $(ARGS)

user-inputs: $(STAMP) $(VLLM_STAMP)  ## the tables of folders, rows, templates and quantised models as users bring them, on hf and on vLLM (long)
	$(BIN)/python -m pytest tests/user_inputs packages/core/tests/cli/test_show_prompt_styles.py -v $(ARGS)
	$(VLLM_VENV)/bin/python -m pytest tests/user_inputs/test_folders.py packages/engine-vllm/tests/test_user_inputs.py packages/engine-vllm/tests/test_user_folders.py -v $(ARGS)

families: $(STAMP) $(VLLM_STAMP) $(SGLANG_STAMP)  ## the table of model families, from folder through engine, sync and update to the saved folder, on hf, vLLM and SGLang (long)
	$(BIN)/python -m pytest tests/test_families.py -v $(ARGS)
	$(VLLM_VENV)/bin/python -m pytest packages/engine-vllm/tests/test_family_table.py -v $(ARGS)
	$(SGLANG_VENV)/bin/python -m pytest packages/engine-sglang/tests/test_family_table.py -v $(ARGS)

learn: $(STAMP)  ## a table: every algorithm on the sorting task, seeds 0 to 2 (long; ARGS='--only grpo ppo --seeds 0' runs a part)
	@$(BIN)/python benchmarks/learn.py $(ARGS)

engine-matrix: $(STAMP) $(VLLM_STAMP) $(SGLANG_STAMP)  ## a table: each engine beside each strategy on 1, 2 and 4 ranks, judged by transformers
	@$(BIN)/python benchmarks/engine_matrix.py --python vllm=$(VLLM_VENV)/bin/python sglang=$(SGLANG_VENV)/bin/python $(ARGS)

rollout: $(STAMP) $(ENGINE_STAMP)  ## a table: gather_and_generate against the bare engine with the same prompts, on 1, 2 and 4 ranks; ARGS='--engine vllm'
	@$(ENGINE_BIN)/python benchmarks/rollout.py $(ARGS)

sync-speed: $(STAMP) $(ENGINE_STAMP)  ## a table: a weight sync against a plain copy of the same bytes, and its checks' fraction of a step
	@$(ENGINE_BIN)/python benchmarks/sync.py $(ARGS)

crosscheck: $(CROSSCHECK_STAMP)  ## a table: our losses against those of trl 1.16, in an environment of its own (installs trl there)
	@$(CROSSCHECK_VENV)/bin/python benchmarks/crosscheck.py $(ARGS)

$(CROSSCHECK_STAMP): $(STAMP) tools/thin_env.py
	@$(BIN)/python tools/thin_env.py $(CROSSCHECK_VENV) --editable packages/core
	@$(BIN)/uv pip install --quiet --python $(CROSSCHECK_VENV)/bin/python --compile-bytecode --no-deps 'trl==1.16.*'
	@touch $@

vs-trl: $(CROSSCHECK_STAMP)  ## a step of ours against one of trl 1.16 on the same work, alternating; ARGS='--ranks 2'
	@$(BIN)/python benchmarks/vs_trl.py --trl-python $(abspath $(CROSSCHECK_VENV))/bin/python $(ARGS)

phases: $(STAMP)  ## a table: each phase of a step against its floor, and the parts of a sync
	@$(BIN)/python benchmarks/phases.py $(ARGS)

passes: $(STAMP)  ## a table: the update and the log-prob pass without an engine, in TFLOP/s against the matmul rate; ARGS=--profile says what takes the time
	@$(BIN)/python benchmarks/passes.py $(ARGS)

packing: $(STAMP)  ## a table: packed rows against padded ones: padding, time of an update, work of ranks
	@$(BIN)/python benchmarks/packing.py $(ARGS)

curves: $(STAMP)  ## the demo with fsdp and ZeRO 1, 2 and 3, and how far their curves lie apart
	@$(BIN)/python benchmarks/backend_curves.py $(ARGS)

test: lint test-core test-workspace test-extras test-vllm test-sglang  ## lint, types, import rules, and all tests but the slow ones

test-slow: test-slow-core test-slow-workspace  ## the tests marked slow; CI runs them too

test-slow-core: $(CORE_STAMP)
	$(CORE_VENV)/bin/python -m pytest packages/core/tests -m "slow and not long" $(ARGS) || [ $$? = $(NOTHING_COLLECTED) ]

test-slow-workspace: $(STAMP)
	$(BIN)/python -m pytest packages/backend-fsdp/tests packages/backend-deepspeed/tests tests -m "slow and not long" $(ARGS)

test-long: $(STAMP) $(VLLM_STAMP) $(SGLANG_STAMP)  ## the tests marked long: tables of model families, ranks that hang, every strategy with every kind of rows
	$(BIN)/python -m pytest packages/core/tests packages/backend-fsdp/tests packages/backend-deepspeed/tests tests -m long $(ARGS)
	$(VLLM_VENV)/bin/python -m pytest packages/engine-vllm/tests -m long $(ARGS)
	$(SGLANG_VENV)/bin/python -m pytest packages/engine-sglang/tests -m long $(ARGS)

lint: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy packages/core/src packages/backend-fsdp/src packages/backend-deepspeed/src packages/engine-vllm/src packages/engine-sglang/src examples/plugin-template/src examples/plugin-ddp/src examples/plugin-continuous-batching/src packages/core/tests/mutants
	PYTHONPATH=examples/plugin-template/src:examples/plugin-ddp/src:examples/plugin-continuous-batching/src $(BIN)/lint-imports

test-core: $(CORE_STAMP)  ## core's tests where nothing but core is installed: no plugin
	$(CORE_VENV)/bin/python -m pytest packages/core/tests -m "not slow and not long" $(ARGS)

$(CORE_STAMP): $(STAMP) tools/thin_env.py
	@$(BIN)/python tools/thin_env.py $(CORE_VENV) --without deepspeed --editable packages/core
	@touch $@

test-lowest: $(LOWEST_STAMP)  ## core with the lowest versions of its dependencies that it allows: settings, plugins, batches, and three steps of the demo
	$(LOWEST_VENV)/bin/python -m pytest packages/core/tests/config packages/core/tests/plugins packages/core/tests/batch -m "not slow and not long" $(ARGS)
	$(LOWEST_VENV)/bin/python -m lightrft.cli.main demo --strategy single --nproc-per-node 1 --max_steps 3 --sft_steps 20 --output_dir "$$(mktemp -d)/run"

$(LOWEST_STAMP): $(STAMP) tools/lowest_env.py tools/thin_env.py
	@$(BIN)/python tools/lowest_env.py $(LOWEST_VENV) --uv $(BIN)/uv
	@touch $@

test-extras: $(EXTRAS_STAMP)  ## the loggers mlflow, swanlab and trackio, and environments of gymnasium, with the real libraries in an environment of their own
	$(EXTRAS_VENV)/bin/python -m pytest packages/core/tests/trainer_io/test_loggers.py packages/core/tests/rollout/test_gymnasium_texts.py tests/test_page_blocks.py -k "mlflow or swanlab or trackio or gymnasium" $(ARGS)

$(EXTRAS_STAMP): $(STAMP) tools/thin_env.py
	@$(BIN)/python tools/thin_env.py $(EXTRAS_VENV) --editable packages/core --extras mlflow swanlab trackio gymnasium
	@touch $@

test-workspace: $(STAMP)  ## the plugins' tests and those of the packages together
	$(BIN)/python -m pytest packages/backend-fsdp/tests packages/backend-deepspeed/tests tests -m "not slow and not long" $(ARGS)

test-examples: $(STAMP)  ## the example distributions, from wheels in clean environments: the whole kit, and the demo on two ranks
	$(BIN)/python -m pytest tests/test_plugin_examples.py $(ARGS)

test-vllm: $(VLLM_STAMP)  ## vLLM itself on the CPU, in an environment of its own
	$(VLLM_VENV)/bin/python -m pytest packages/engine-vllm/tests -m "not long" $(ARGS)

$(VLLM_STAMP): $(MANIFESTS) $(wildcard packages/engine-vllm/cpu/*.txt) tools/engine_env.py
	@$(SETUP_PYTHON) tools/engine_env.py vllm $(VLLM_VENV)
	@touch $@

test-sglang: $(SGLANG_STAMP)  ## SGLang itself on the CPU, in an environment of its own
	$(SGLANG_VENV)/bin/python -m pytest packages/engine-sglang/tests -m "not long" $(ARGS)

$(SGLANG_STAMP): $(MANIFESTS) $(wildcard packages/engine-sglang/cpu/*.txt) tools/engine_env.py
	@$(SETUP_PYTHON) tools/engine_env.py sglang $(SGLANG_VENV)
	@touch $@

test-ray: $(STAMP)  ## installs Ray into .venv and tests the launcher on a real one
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode "$$(sed -n 's/^ray = \["\(.*\)"\].*/\1/p' packages/core/pyproject.toml)"
	$(BIN)/python -m pytest tests/test_ray.py -m ray $(ARGS)

gpu-wheels: $(STAMP)  ## here: collect in .build/gpu what a GPU machine without a package index lacks
	@$(BIN)/python tools/gpu_wheels.py .build/gpu

gpu-vllm: $(STAMP)  ## here: pack a vLLM for such a machine, as .build/gpu-vllm-1 and -2
	@$(BIN)/python tools/gpu_vllm.py .build/gpu-vllm

gpu-unpack:  ## on the GPU machine: unpack FROM=.build/gpu-vllm-1 (or -2) beside those wheels
	mkdir -p $(GPU_SITE) && tar --extract --file $(FROM)/vllm.tar.xz --directory $(GPU_SITE)

gpu-test:  ## on the GPU machine: install those wheels beside its torch and run the tests marked gpu
	python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $(GPU_SITE) .build/gpu/*.whl
	VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONPATH=$(GPU_SITE) python3 -m pytest tests/gpu packages/backend-fsdp/tests/test_cuda.py -m gpu -s $(ARGS)

gpu-multi:  ## on a machine with 2, 4 or 8 GPUs, after gpu-test: parity, engines, scaling and lost ranks over all; on CPUs: ARGS='--ranks 4'
	VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONPATH=$(GPU_SITE) $(or $(wildcard $(BIN)/python),python3) benchmarks/gpu_multi.py $(ARGS)

gpu-bench:  ## on the GPU machine, after gpu-test: phases against their floors, a real shape's memory, the step against trl's where trl is
	VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONPATH=$(GPU_SITE) python3 benchmarks/phases.py $(ARGS)
	VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONPATH=$(GPU_SITE) python3 benchmarks/gpu_memory.py
	VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONPATH=$(GPU_SITE) python3 -c 'import trl' && VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONPATH=$(GPU_SITE) python3 benchmarks/vs_trl.py

clean:  ## remove environments, caches and runs
	rm -rf $(VENV) $(CORE_VENV) $(LOWEST_VENV) $(VLLM_VENV) $(SGLANG_VENV) $(CROSSCHECK_VENV) $(EXTRAS_VENV) runs build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
