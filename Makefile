# `make demo` and `make test` set up what they need by themselves: git, make and Python 3.11 or newer are enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
COMPARABLE := $(VENV)/.bench

.PHONY: install demo test test-all test-containers check bench soak picture clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: no python3 of that age is on PATH"; exit 1; }
	@echo "Setting up $(VENV) for $$($(PYTHON) --version): about 200 MB to fetch and 1 GB on disk (Semantic Kernel, numpy, pandas, matplotlib, …), once."
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(RUN) --editable '.[data,redis]' --group dev; \
	else \
		$(PYTHON) -m venv $(VENV) || { echo "The venv module is incomplete; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }; \
		$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' && \
		$(RUN) -m pip install --quiet --editable '.[data,redis]' --group dev; \
	fi
	@touch $@

demo: $(INSTALLED)
	$(RUN) samples/semantic_kernel_agent.py

# Each file's tests stay together, in one of three processes: many wait, for time limits and for processes that start.
test: $(INSTALLED)
	@.ci/packages
	$(RUN) -m pytest -n 3 --dist loadfile

# The same, with ten times as many programs for the reference model.
test-all: export ACA_TEST_EXAMPLES = 2000
test-all: test

# Debian's root file systems are made once (six minutes) and kept in ~/.cache/aca-sessions-tests; the container is built anew. Half an hour in all.
test-containers: $(INSTALLED)
	@.ci/packages containers
	ACA_TEST_CONTAINERS=1 $(RUN) -m pytest tests/sandbox/test_images.py tests/hostile/test_images.py tests/container

check: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(COMPARABLE): $(INSTALLED)
	@echo "Adding what the benchmark compares with (AutoGen, smolagents, ipybox, …): about 100 MB on disk, once."
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(RUN) --editable '.[data,redis]' --group dev --group bench; \
	else \
		$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[data,redis]' --group dev --group bench; \
	fi
	@touch $@

bench: $(COMPARABLE)
	$(RUN) benchmarks/basics.py
	$(RUN) benchmarks/model_view.py
	$(RUN) benchmarks/served.py
	$(RUN) benchmarks/sharded.py
	$(RUN) benchmarks/mcp_calls.py
	$(RUN) benchmarks/agents.py
	$(RUN) benchmarks/packages.py
	$(RUN) benchmarks/compare.py

soak: $(INSTALLED)
	$(RUN) benchmarks/soak.py

# docs/playground.png, taken anew by its test.
picture: $(INSTALLED)
	PLAYGROUND_PICTURE=1 $(RUN) -m pytest tests/playground -k picture

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
