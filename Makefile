# Two commands: `make demo` shows the main job on a laptop, `make test` runs the tests. Either does all the set-up first.
PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# A folder of wheels kept for pip serves uv too, which knows it only under its own name and separated by commas.
space := $(subst ,, )
comma := ,
export UV_FIND_LINKS := $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
# Small tensors: one thread a process is fastest, and gives the same bits everywhere.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test slow faults chaos check format docs clean lock
help:
	@echo "make demo    the main job on this machine: data, tokenizer, study, report (under 10 minutes on two cores)"
	@echo "make test    the tests (under 10 minutes on two cores)"
	@echo "make slow    the tests that take longest: whole studies, the notebooks of the documentation (about 5 minutes)"
	@echo "make faults  studies under faults: killed processes, lost machines, full disks, hangs (about 20 minutes)"
	@echo "make chaos   one study under 50 faults drawn by a seed (about an hour; goes on where it was stopped)"
	@echo "make check   format, lint, types, layer contracts, tests"
	@echo "make docs    the documentation in site/, opens offline; links are checked"
	@echo "make setup   only the environment in $(VENV), every package pinned by requirements.lock"
	@echo "make lock    pin the newest versions that pyproject.toml allows"
	@echo "make clean   remove the environment and what tools left behind (studies and data stay)"

setup: $(READY)

demo: $(READY)
	$(BIN)/reco-tune demo

# Two processes: most of what starts Ray clusters is waiting.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

# Whole studies on a machine busy with something else: what failed has one more try, and is named. Each file has a process
# of its own, so that one that dies takes no other along.
slow: $(READY)
	grep -rl 'mark[.]slow' tests --include='test_*.py' | sort | xargs -n 1 $(BIN)/python -m pytest -m slow --reruns 1 -rfER

faults: $(READY)
	$(BIN)/python -m pytest tests/faults -m "" --reruns 1 -rfER

chaos: $(READY)
	$(BIN)/python tests/faults/chaos.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir site
	@echo "documentation: site/index.html"

# uv installs in seconds what takes pip minutes; where it cannot be had, pip does the same. Ray starts dozens of processes: each would compile
# torch and Ray anew where Python is kept from writing bytecode.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed; name one: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^uv==' requirements.lock)" || echo "uv cannot be had here; pip installs alone"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock || $(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# torch's own CUDA packages are left to torch, so that one lock serves machines with and without a GPU.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --no-annotate --no-header --group dev pyproject.toml \
		| sed -e 's/+cpu//' | grep -v -E '^(nvidia|triton|cuda)' > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find reco_tune tests analysis -name __pycache__ -type d -prune -exec rm -rf {} +
