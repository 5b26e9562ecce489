# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help docs notebooks install demo test test-fast test-floors test-newest lint types format ci pretrain-nano results results-depth results-matched results-photos results-refined bench gpu-check faults clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "KoRA needs Python 3.11 or newer; found $$($(PYTHON) -V). Use: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/kora: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(BIN)/kora $@

install: $(BIN)/kora  ## make .venv and install kora into it

demo: $(BIN)/kora  ## four strategies, three seeds each, and a verdict (no download)
	@echo "Training 12 models on rendered scenes ..."
	@mkdir -p runs && $(BIN)/kora grid --config configs/grids/demo.yaml --jobs 2 > runs/demo.log 2>&1 || { cat runs/demo.log; exit 1; }
	@$(BIN)/kora compare runs/demo --out runs/demo/comparison
	@echo "To look at: runs/demo/comparison/compare.html, and the pictures in runs/demo/STRATEGY/seed0/version_0"

# A process for each core, one thread in each: twice as fast as the other way round. Many tests start
# processes, which would compile all modules again where the bytecode is not kept.
test test-fast test-floors test-newest faults: export OMP_NUM_THREADS = 1
test test-fast test-floors test-newest faults: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.dev  ## the whole test suite
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(VENV)/.dev  ## one case of each test that is not slow and trains no whole run
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not runs" --first-cases

$(VENV)-floors/.made: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(VENV)-floors
	$(VENV)-floors/bin/python -m pip install --quiet uv
	$(VENV)-floors/bin/uv pip install --quiet --python $(VENV)-floors --resolution lowest-direct --editable '.[test,onnx,tune]'
	@touch $@

# Benchmarks, pages and notebooks are no part of an installation, and no version promises a time to start.
test-floors: $(VENV)-floors/.made  ## what test-fast runs, and whole fits, on the oldest versions that pyproject.toml allows
	$(VENV)-floors/bin/python -m pytest -n auto --dist worksteal -m "not slow and (not runs or fits)" --first-cases \
	  --ignore=tests/benchmarks --ignore=tests/docs --ignore=tests/notebooks --ignore=tests/test_start_up.py

test-newest: $(VENV)/.dev  ## one case of each test that is not slow, on the newest versions of everything
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(VENV)-newest
	$(BIN)/uv pip install --quiet --python $(VENV)-newest --upgrade --editable '.[test,onnx,tune]'
	$(VENV)-newest/bin/python -m pytest -n auto --dist worksteal -m "not slow" --first-cases

faults: $(VENV)/.dev  ## cause every fault of docs/explanation/reliability.md (under 10 minutes)
	$(BIN)/python -m pytest -n 4 $$(grep -oE '`tests/[a-z_/]+\.py` `test_[a-z0-9_]+`' docs/explanation/reliability.md | sed 's/`//g; s/ /::/' | sort -u)

lint: $(VENV)/.dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.dev  ## the site of docs/, with the reference, in build/site (no network)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "To read it: $(BIN)/python -m http.server -d build/site"

notebooks: $(VENV)/.dev  ## run the notebooks and keep what they show (4 minutes)
	$(BIN)/python notebooks/execute.py

types: $(VENV)/.dev  ## mypy: strict for the code, calls alone for the tests
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ci: lint types docs test  ## what a change must pass

pretrain-nano: $(BIN)/kora  ## make the embedded backbone again (three quarters of an hour on two cores)
	$(BIN)/kora fit --config configs/pretrain/vit_nano.yaml
	$(BIN)/python -m kora.export.release_nano runs/pretrain_vit_nano

results: $(BIN)/kora  ## the tables of docs/results/transfer.md (an hour on two cores; needs KORA_SHARED_DATA)
	@test -n "$$KORA_SHARED_DATA" || { echo "Set KORA_SHARED_DATA to the folder of the real data."; exit 2; }
	@for seed in 0 1 2; do for epochs in 1epoch 20epochs; do \
	  for strategy in linear_probe lora kora kora_side; do \
	    $(BIN)/kora fit --config configs/real/last100_$$epochs.yaml \
	      --config configs/adapters/$$strategy.yaml --seed_everything $$seed || exit $$?; \
	  done; done; done
	@$(BIN)/kora compare runs/real_last100_1epoch runs/real_last100_20epochs --out runs/real_comparison

results-depth: $(BIN)/kora  ## the tables of docs/results/depth.md without a search (within two hours on two cores)
	@$(BIN)/kora grid --config configs/grids/quickstart_depth.yaml
	@$(BIN)/kora grid --config configs/grids/depth_dcomp.yaml

results-matched: $(BIN)/kora  ## docs/results/matched.md: thirteen strategies at one size (an hour on two cores)
	@$(BIN)/kora grid --config configs/grids/quickstart_matched.yaml
	@$(BIN)/kora grid --config configs/grids/quickstart_matched_20epochs.yaml

CACHED  = linear_probe multi_layer_probe multi_layer_probe_dinov2 kora_refined
THROUGH = bitfit lora lora_layers kora_over_lora
results-photos: $(VENV)/.dev  ## every strategy after searches of 16 (cached) or 8 trials on real photographs (days on two cores; needs KORA_SHARED_DATA)
	@test -n "$$KORA_SHARED_DATA" || { echo "Set KORA_SHARED_DATA to the folder of the real data."; exit 2; }
	@for grid in photos photos_95; do \
	  $(BIN)/kora tune --config configs/grids/$$grid.yaml --only $(CACHED) --trials 16 && \
	  $(BIN)/kora tune --config configs/grids/$$grid.yaml --only $(THROUGH) --jobs 2 || exit $$?; done
	@$(BIN)/kora grid --config runs/tune_photos/best.yaml --jobs 2
	@$(BIN)/kora grid --config runs/tune_photos_95/best.yaml --set data.val_images=500 --jobs 2
	@$(BIN)/kora compare runs/photos_1 runs/photos_5 runs/photos_20 runs/photos_95 \
	  --against images --against seconds --out runs/photos

results-refined: $(VENV)/.dev  ## the refined KoRA: ablations, CIFAR-10, scenes (a day on two cores; needs KORA_SHARED_DATA)
	@test -n "$$KORA_SHARED_DATA" || { echo "Set KORA_SHARED_DATA to the folder of the real data."; exit 2; }
	@$(BIN)/kora grid --config configs/grids/refine_ablation.yaml --jobs 2
	@$(BIN)/kora tune --config configs/grids/cifar10.yaml --only $(CACHED) --trials 16
	@$(BIN)/kora tune --config configs/grids/cifar10.yaml --only $(filter-out bitfit,$(THROUGH)) --jobs 2
	@$(BIN)/kora grid --config runs/tune_cifar10/best.yaml --set trainer.precision=32-true --jobs 2
	@$(BIN)/kora tune --config configs/grids/scenes.yaml --jobs 2
	@$(BIN)/kora grid --config runs/tune_scenes/best.yaml --jobs 2
	@$(BIN)/kora compare runs/refine_ablation_* --by experiment --metric best_val/accuracy --reference refine_ablation_as_it_is \
	  --out runs/refine_ablation
	@$(BIN)/kora compare runs/cifar10_5 runs/cifar10_50 --against images --out runs/cifar10
	@$(BIN)/kora compare runs/scenes

# Ratios on one core each, as in benchmarks/README.md; the tables are printed one after the other.
# REPEATS sets the rounds of what takes long, and DEVICE=cuda measures on a GPU what is not of the CPU alone.
bench: export OMP_NUM_THREADS ?= 1
bench: export PATH := $(abspath $(BIN)):$(PATH)
bench: ROUNDS = $(if $(REPEATS),--repeats $(REPEATS))
bench: ON = $(if $(DEVICE),--device $(DEVICE))
bench: $(VENV)/.dev  ## the benchmarks of benchmarks/README.md (their numbers and pictures: runs/bench)
	@python benchmarks/training_step.py $(ON) $(ROUNDS) --out runs/bench/float32
	@python benchmarks/training_step.py $(ON) $(ROUNDS) --precision bfloat16 --out runs/bench/bfloat16
	@python benchmarks/growth.py $(ON) $(ROUNDS) --out runs/bench
	@python benchmarks/merged.py $(ON) $(ROUNDS) --out runs/bench
	@python benchmarks/multi_task.py $(ON) $(ROUNDS) --out runs/bench
	@python benchmarks/overhead.py $(ON) --out runs/bench
	@python benchmarks/startup.py --first_prediction --out runs/bench
	@python benchmarks/waiting.py $(ROUNDS) --out runs/bench
	@python benchmarks/composers.py $(ON) --out runs/bench
	@python benchmarks/feature_cache.py $(ON) $(ROUNDS)
	@python benchmarks/nyu_loading.py $(ROUNDS)
	@python benchmarks/image_loading.py $(ROUNDS)

gpu-check: $(VENV)/.dev  ## on a machine with a GPU: correctness, a killed run, benchmarks; one page in runs/gpu_check
	$(BIN)/python benchmarks/gpu_check.py

clean:  ## remove .venv and caches; never runs/ or data/
	rm -rf $(VENV) $(VENV)-floors $(VENV)-newest build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
