# Two commands for newcomers: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
RUN_VENV := .venv-run
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := exporter runtime engines calibration src demo benchmarks tests

.PHONY: demo test lint types install train-demo evaluate-demo gpu-check clean help

help:  ## Say what can be made.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: engines/fashion.plan $(RUN_VENV)/.installed  ## Export the demo model and draw 64 images.
	$(RUN_VENV)/bin/disa-run engines/fashion.plan --num 64 -o outputs/demo --overwrite
	@echo "running needs $$(du -sm $(RUN_VENV) | cut -f1) MB of packages, without PyTorch"

engines/fashion.plan: demo/fashion_mar.pth $(VENV)/.exporter
	$(BIN)/disa-export $< -o $@ --iterations 16 --cfg 3

test: install  ## Set-up, lint, types and all tests.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy -p disa -p benchmarks -p demo
	$(BIN)/pytest -n 2 --dist worksteal

install: $(VENV)/.installed

# PyTorch comes first, alone: without a version it would bring gigabytes of CUDA libraries.
$(VENV)/.exporter: pyproject.toml constraints.txt $(VENV)/.files
	$(BIN)/python $(PIP_INSTALL) torch setuptools wheel
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=strict \
		--editable '.[cpu,export]'
	@touch $@

$(VENV)/.installed: $(VENV)/.exporter
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=strict \
		--editable '.[openvino,export,plot,text,tensorrt-rtx,polygraphy,dev]'
	@touch $@

$(RUN_VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.files
	@test -d $(RUN_VENV) || $(PYTHON) -m venv $(RUN_VENV)
	$(RUN_VENV)/bin/python $(PIP_INSTALL) setuptools
	$(RUN_VENV)/bin/python $(PIP_INSTALL) --no-build-isolation '.[cpu]'
	@touch $@

# A strict editable install links the files that there are: it is made again when the list changes.
$(VENV)/.files: FORCE
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@find exporter runtime engines calibration src -name '*.py' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

FORCE:

train-demo: install  ## Train the demo model again (an hour on two cores).
	$(BIN)/python -m demo.train

evaluate-demo: install engines/fashion.plan  ## Compare schedules on the demo model.
	$(BIN)/python -m demo.evaluate engines/fashion.plan

gpu-check:  ## Check and measure everything on an NVIDIA GPU; WHEELS=folder brings packages.
	$(PYTHON) -m benchmarks.gpu_check $(if $(WHEELS),--wheels $(WHEELS))

clean:  ## Remove what `make` made.
	rm -rf $(VENV) $(RUN_VENV) build .cache outputs engines/*.plan *.egg-info src/*.egg-info
