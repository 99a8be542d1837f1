# dlrun: `make demo` sets up and trains, `make test` sets up and tests, `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
# One thread per test worker, so that the workers do not share cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
SOURCES := src tests scripts

.DEFAULT_GOAL := help
.PHONY: help demo test check format catalogue curriculum course matrix benchmark wheel clean dev
.DELETE_ON_ERROR:

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed ## set up, then train a LeNet on scikit-learn's handwritten digits
	@$(BIN)/dlrun model=lenet data=digits optimizer=adam

test: check ## set up, then run make check and all tests
	@$(ONE_THREAD) $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup $(ARGS)

check: dev ## formatting (ruff format), lint (ruff), types (mypy)
	@$(BIN)/ruff format --check --quiet $(SOURCES) || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/mypy --no-error-summary

format: dev ## format the code and mend what ruff can mend
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

catalogue: dev ## write src/dlrun/catalogue.json and docs/catalogue.md from the sources
	@$(BIN)/python scripts/make_catalogue.py

curriculum: dev ## run the tests of the courses' rows and print which are proven (some: ARGS="M46 R")
	@$(ONE_THREAD) $(BIN)/python scripts/curriculum.py $(ARGS)

course: dev ## run the commands of docs/course.md that say nothing yet, and write what they give (some: ARGS="M46 R")
	@$(ONE_THREAD) $(BIN)/python scripts/course.py $(ARGS)

matrix: dev ## try every model with every data set and every loss, about 10 minutes (some: ARGS="mlp digits csv")
	@$(ONE_THREAD) $(BIN)/python scripts/matrix.py $(ARGS)

benchmark: $(PEERS)/.installed ## set up the peers, then measure into docs/benchmarks, about 2 hours (a part: ARGS="step --rounds 9")
	@$(PEERS)/bin/python scripts/benchmark.py $(or $(ARGS),all --compile)

wheel: dev ## build dist/dlrun-*.whl
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . && ls dist/*.whl

clean: ## remove caches and builds; .venv and outputs stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(SOURCES) -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +

dev: $(VENV)/.installed-dev

# Stamps: installed again only when pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	@echo "Installing dlrun and PyTorch into $(VENV): a few minutes the first time ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	@echo "Installing dlrun, PyTorch and the tools for testing into $(VENV): a few minutes the first time ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/.installed $@

# What .venv has, and the peers.
$(PEERS)/.installed: scripts/benchmark/peers_venv.py $(VENV)/.installed-dev
	@echo "Installing the peers into $(PEERS): a few minutes the first time ..."
	@$(BIN)/python scripts/benchmark/peers_venv.py $(PEERS)
	@touch $@

# An old pip cannot install an editable project without setup.py, so pip itself comes first.
$(BIN)/pip:
	@$(PYTHON) scripts/make_venv.py $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
