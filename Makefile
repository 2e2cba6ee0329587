# Two commands for newcomers: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
RUN_VENV := .venv-run
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := exporter runtime engines calibration src demo benchmarks tests

.PHONY: demo test lint types install train-demo evaluate-demo gpu-check clean

demo: engines/fashion.plan  ## Export the demo checkpoint and draw 64 images.
	$(BIN)/disa-run engines/fashion.plan --num 64 -o outputs/demo --overwrite

engines/fashion.plan: demo/fashion_mar.pth $(VENV)/.installed
	$(BIN)/disa-export $< -o $@

test: install lint types  ## Set-up, lint, types and all tests.
	$(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: install
	$(BIN)/mypy -p disa

install: $(VENV)/.installed

# The strict editable install shows type checkers the mapped folders, but links files one by one:
# it is made again when the list of files changes.
$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.files
	$(BIN)/python $(PIP_INSTALL) torch
	$(BIN)/python $(PIP_INSTALL) --editable '.[cpu,export,plot,text,dev]' --config-settings editable_mode=strict
	touch $@

$(VENV)/.files: FORCE
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@find exporter runtime engines calibration src -name '*.py' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

FORCE:

clean:
	rm -rf $(VENV) $(RUN_VENV) build *.egg-info
