# Two commands do everything on a fresh machine with Python >= 3.11: make quickstart, make test.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test integration check clean

install: .venv/.installed

# Remade only when what is to be installed changes.
.venv/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, this is ' + sys.version.split()[0])"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# The main job: six post-training methods and the base on the small world, then tables and figures.
quickstart: install
	$(BIN)/workbench run studies/quickstart.py

# A process a core: a file's tests stay together. Threads would only get in each other's way.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not faults and not integration"

# Kills at every durable write, and real clusters, servers and databases that the tests start.
integration: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "faults or integration"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info
