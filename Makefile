# `make demo` and `make test` set up what they need by themselves: git, make and Python 3.11 or newer are enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# Compiled files are worth keeping: the tests start hundreds of programs.
unexport PYTHONDONTWRITEBYTECODE

# Each Python that is asked for by its name has an environment of its own: `make test PYTHON=python3.13`.
VENV := .venv$(if $(filter command,$(firstword $(origin PYTHON))),-$(notdir $(PYTHON)))
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CORE := .venv-core
INTEGRATIONS := .venv-integrations
COMPARABLE := $(VENV)/.bench
OTHERS := .venv-others/.installed
MERMAID := .venv-others/mermaid.js

.PHONY: install demo test test-core test-integrations test-long test-all test-containers check docs docs-reference dist bench soak redteam picture clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml src/pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: no python3 of that age is on PATH"; exit 1; }
	@echo "Setting up $(VENV) for $$($(PYTHON) --version): about 200 MB to fetch and 1 GB on disk (Semantic Kernel, numpy, pandas, matplotlib, …), once."
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --python $(RUN) --editable '.[data,redis]' --group dev; \
	else \
		(while sleep 3; do printf .; done) & trap "kill $$!; echo" EXIT; \
		$(PYTHON) -m venv $(VENV) || { echo "The venv module is incomplete; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }; \
		$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' && \
		$(RUN) -m pip install --quiet --editable '.[data,redis]' --group dev; \
	fi
	@touch $@

demo: $(INSTALLED)
	$(RUN) samples/semantic_kernel_agent.py
	@echo "Next: $(VENV)/bin/aca-sessions playground, docs/start/first-session.md, samples/cookbook, or make docs"

# Four processes for two cores: many tests wait, for time limits and for processes that start. Who has no test left takes some of
# another's. `SEED=1` shuffles the tests, the same number always in the same way.
PYTEST = $(RUN) -m pytest -n 4 --dist worksteal $(if $(SEED),-p randomly --randomly-dont-reset-seed --randomly-seed=$(SEED))

test: $(INSTALLED)
	@.ci/packages
	$(PYTEST)

# The same tests with aca-sessions-core, the newest MCP SDK and pydantic, which Semantic Kernel excludes. Tests that need Semantic Kernel are skipped.
test-core: $(CORE)/.installed
	@.ci/packages
	$(subst $(RUN),$(CORE)/bin/python,$(PYTEST))

$(CORE)/.installed: pyproject.toml src/pyproject.toml
	@echo "Setting up $(CORE): about 950 MB on disk, once."
	$(PYTHON) -m venv $(CORE) && $(CORE)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(CORE)/bin/python -m pip install --quiet --editable 'src[mcp,server,notebook,cli,packages,agents,azure,network,data,redis]' 'mcp>=2' 'pydantic>=2.14' --group test
	@touch $@

# The tests that frameworks ship for what plugs into them, against our adapters, and which versions passed. Without Semantic Kernel, whose pins
# exclude those of the others.
test-integrations: $(INTEGRATIONS)/.installed
	@.ci/packages
	$(subst $(RUN),$(INTEGRATIONS)/bin/python,$(PYTEST)) -m '' $(FAILED) --junitxml $(INTEGRATIONS)/results.xml tests/frameworks
	@$(INTEGRATIONS)/bin/python -m tests.frameworks.versions $(INTEGRATIONS)/results.xml | tee tests/frameworks/versions.txt

$(INTEGRATIONS)/.installed: pyproject.toml src/pyproject.toml
	@echo "Setting up $(INTEGRATIONS): about 1.5 GB on disk, once."
	$(PYTHON) -m venv $(INTEGRATIONS) && $(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check --editable 'src[mcp,server,notebook,cli,packages,agents,azure,network,data,redis]' \
		--group test --group integrations
	@touch $@

# What `make test` leaves out: every bomb, package, browser and cluster of servers, and many more programs for the reference model.
test-long: $(INSTALLED) $(OTHERS) $(CORE)/.installed
	@.ci/packages
	$(PYTEST) -m long $(LONG)

# Other programs that use this package have an environment of their own: JupyterLab, papermill and FastMCP's client. FastMCP 2, whose client
# builds other types from a tool's schema, needs a further one.
$(OTHERS): $(INSTALLED)
	@echo "Adding JupyterLab, papermill, FastMCP and pyarrow for their tests: about 550 MB on disk, once."
	$(RUN) -m venv .venv-others && .venv-others/bin/python -m pip install --quiet --disable-pip-version-check \
		'jupyterlab>=4.4' 'papermill>=2.6' 'fastmcp>=4' 'pyarrow>=14.0.1'
	$(RUN) -m venv .venv-others/fastmcp2 && .venv-others/fastmcp2/bin/python -m pip install --quiet --disable-pip-version-check 'fastmcp>=2.10,<3'
	@touch $@

test-all: test test-long test-containers

# Debian's root file systems are made once (six minutes) and kept in ~/.cache/aca-sessions-tests; the container is built anew. Half an hour in all.
test-containers: $(INSTALLED)
	@.ci/packages containers
	ACA_TEST_CONTAINERS=1 $(RUN) -m pytest -m '' tests/sandbox/test_images.py tests/hostile/test_images.py tests/container

check: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The site, in site/. After the first time no network is needed.
docs: $(INSTALLED) $(MERMAID)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "Open site/index.html, or: $(RUN) -m http.server -d site"

# The sdists and the wheels, in dist/: checked, and the wheels installed into fresh environments, in which the README runs.
dist: $(INSTALLED)
	@rm -rf dist
	$(RUN) -m build --no-isolation --outdir dist src
	$(RUN) -m build --no-isolation --outdir dist .
	$(RUN) -m twine check --strict dist/*
	$(VENV)/bin/check-wheel-contents dist/aca_sessions_core-*.whl
	$(VENV)/bin/check-wheel-contents --ignore W007,W008 dist/aca_sessions-*.whl  # it has no module
	$(RUN) -m pytest -m '' tests/test_dist.py

# The pages of settings and commands, from the code.
docs-reference: $(INSTALLED)
	$(RUN) docs/site_hooks.py

# The script that draws diagrams in the reader's browser.
$(MERMAID): $(INSTALLED)
	@mkdir -p $(@D)
	@$(RUN) -c 'import hashlib, io, sys, tarfile, urllib.request as web; \
		packed = web.urlopen("https://registry.npmjs.org/@mermaid-js/tiny/-/tiny-11.12.0.tgz", timeout=60).read(); \
		hashlib.sha256(packed).hexdigest() == "7cd00157439dbd5d33e3071c15e5995d81de11258c703740347eec4d45f0f1b5" or sys.exit("mermaid is not the expected file: try again"); \
		open(sys.argv[1], "wb").write(tarfile.open(fileobj=io.BytesIO(packed)).extractfile("package/dist/mermaid.tiny.js").read())' $@

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
	$(RUN) benchmarks/neighbour.py
	$(RUN) benchmarks/sharded.py
	$(RUN) benchmarks/mcp_calls.py
	$(RUN) benchmarks/agents.py
	$(RUN) benchmarks/packages.py
	$(RUN) benchmarks/saved.py
	$(RUN) benchmarks/network_rules.py
	$(RUN) benchmarks/compare.py

soak: $(INSTALLED)
	$(RUN) benchmarks/soak.py

# Public escapes, random system calls and Python's own tests, in sessions and in other sandboxes: writes docs/reference/security-evidence.md.
# Run it as root, and again as an ordinary user in a checkout of theirs; each writes its own half. Half an hour; what is missing is named.
# For less: make redteam REDTEAM='--fuzz 60 --python 120'
redteam: $(INSTALLED)
	@.ci/packages redteam $(RUN)
	@$(RUN) -c 'import sandlock' 2>/dev/null || $(RUN) -m pip install --quiet --disable-pip-version-check sandlock || true
	ACA_TEST_CONTAINERS=1 $(RUN) -m tests.redteam $(REDTEAM)

# The pictures of the terminal, a trace and the playground, taken anew, and the charts of the numbers that the last `make bench` measured.
picture: $(INSTALLED)
	$(RUN) docs/picture_terminal.py
	$(RUN) docs/picture_trace.py
	$(RUN) benchmarks/chart.py
	PLAYGROUND_PICTURE=1 $(RUN) -m pytest -m '' tests/playground -k screenshot

clean:
	rm -rf .venv .venv-* site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
