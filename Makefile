# First commands: `make demo` and `make test`; `make help` lists the others.

PYTHON ?= python3
VENV := .venv
RUN_VENV := .venv-run
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WEIGHTS := demo/weights
VAE := $(WEIGHTS)/fashion_vae.ckpt
PROMPT ?= a dark ankle boot
MODELS ?= all
SOURCES := exporter runtime engines calibration server src demo benchmarks tests

.PHONY: demo demo-text serve docs test test-browser coverage mutants fuzz lint types install train-demo evaluate-demo gpu-check clean help

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: engines/fashion.plan $(RUN_VENV)/.installed  ## Export the demo's MAR and generate 64 images.
	$(RUN_VENV)/bin/disa-run engines/fashion.plan --num 64 -o outputs/demo --overwrite
	@echo "running needs $$(du -sm $(RUN_VENV) | cut -f1) MB of packages, without PyTorch"

serve: engines/fashion.plan $(VENV)/.server  ## Serve the demo model; open the printed address.
	$(BIN)/disa-serve engines/fashion.plan

demo-text: engines/fashion_text.plan  ## Generate what a prompt describes: PROMPT="a striped dress".
	$(BIN)/disa-run $< --prompt "$(PROMPT)" --num 16 -o outputs/demo-text --overwrite

engines/fashion.plan: $(WEIGHTS)/fashion_mar.pth $(VAE) $(VENV)/.exporter
	$(BIN)/disa-export $< --vae $(VAE) -o $@ --overwrite --num-iterations 8 --guidance-scale 8 --temperature 0.9

engines/fashion_text.plan: $(WEIGHTS)/fashion_harmon.pth $(VAE) $(VENV)/.installed
	$(BIN)/disa-export $< --vae $(VAE) -o $@ --overwrite \
		--tokenizer $(WEIGHTS)/fashion_tokenizer.json \
		--config $(WEIGHTS)/fashion_harmon.json --size 32 --num-iterations 8 --guidance-scale 4 --temperature 0.9

engines/fashion_flowar.plan: $(WEIGHTS)/fashion_flowar.pth $(VAE) $(VENV)/.exporter
	$(BIN)/disa-export $< --vae $(VAE) -o $@ --overwrite --guidance-scale 4

engines/fashion_xar.plan: $(WEIGHTS)/fashion_xar.pth $(VAE) $(VENV)/.exporter
	$(BIN)/disa-export $< --vae $(VAE) -o $@ --overwrite --guidance-scale 6

# Some tests measure time or memory on cores that they share: one that fails is tried again, alone.
pytest = $(BIN)/pytest $(1) || $(BIN)/pytest $(1) -n 0 --last-failed --last-failed-no-failures none

test: install  ## Set-up, lint, types and all tests.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy -p disa -p benchmarks -p demo
	$(call pytest,-n 2 --dist worksteal)
	$(call pytest,-m ray tests/workers tests/server)

test-browser: install  ## Test the server's page in Chromium, which must be installed.
	$(BIN)/pytest -m browser tests/server/browser

coverage: install  ## Run the tests and report the covered lines and branches, in htmlcov/index.html.
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-report=html

mutants: install  ## Change operators and constants at random, and list the changes that no test finds.
	$(BIN)/python -m tests.mutants --number $${MUTANTS:-200}

fuzz: install  ## Try 100,000 mutated files on the readers; FUZZ_SEED repeats a run.
	FUZZ_SEED=$${FUZZ_SEED:-$$(date +%s)} FUZZ_MUTATIONS=$${FUZZ_MUTATIONS:-6700} $(BIN)/pytest -s tests/hostile tests/engines/plan/test_*_fuzz.py

install: $(VENV)/.installed

docs: install  ## Build the documentation site; a warning is an error.
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

# PyTorch comes first, alone: without a version it would bring gigabytes of CUDA libraries.
$(VENV)/.exporter: pyproject.toml constraints.txt $(VENV)/.files
	$(BIN)/python $(PIP_INSTALL) torch setuptools wheel
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=strict \
		--editable '.[cpu,export]'
	@touch $@

$(VENV)/.server: $(VENV)/.exporter
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=strict \
		--editable '.[cpu,serve]'
	@touch $@

$(VENV)/.installed: $(VENV)/.exporter
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=strict \
		--editable '.[openvino,export,plot,text,ray,ray-serve,parquet,s3,evaluate,hub,tensorrt-rtx,polygraphy,serve,docs,dev]'
	@touch $@

$(RUN_VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.files
	@test -d $(RUN_VENV) || $(PYTHON) -m venv $(RUN_VENV)
	$(RUN_VENV)/bin/python $(PIP_INSTALL) setuptools
	$(RUN_VENV)/bin/python $(PIP_INSTALL) --no-build-isolation '.[cpu]'
	@touch $@

# A strict editable install links the files that there are: it is made again when the list changes.
$(VENV)/.files: FORCE
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@find exporter runtime engines calibration server src '(' -name '*.py' -o -path 'server/page/*' ')' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

FORCE:

train-demo: install  ## Train the demo's models again, or MODELS="mar xar" (3 hours on two cores).
	$(if $(filter all vae,$(MODELS)),$(BIN)/python -m demo.autoencoder)
	$(if $(filter-out vae,$(MODELS)),$(BIN)/python -m demo.train $(filter-out vae,$(MODELS)))

evaluate-demo: install  ## Compare schedules and precisions on the demo's models, 5,000 images each.
	$(BIN)/python -m demo.observe
	$(BIN)/python -m demo.models_page

gpu-check:  ## Check and measure all on an NVIDIA GPU; WHEELS=folder brings packages, OUTPUT=file.
	$(PYTHON) -m benchmarks.gpu_check $(if $(WHEELS),--wheels $(WHEELS)) $(if $(OUTPUT),-o $(OUTPUT))

clean:  ## Remove everything that `make` created.
	rm -rf $(VENV) $(RUN_VENV) build docs/_build htmlcov .coverage .cache outputs engines/*.plan *.egg-info src/*.egg-info
