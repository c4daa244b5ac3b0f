PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: compare test test-slow test-versions check docs docs-serve doctor-bench adaptation-bench gpu format clean

# Idle threads sleep: on a machine that has other work, those that wait would take the time of those that work.
compare: $(READY)  ## train the article's network with and without batch norm on the embedded data
	OMP_WAIT_POLICY=passive $(BIN)/steadynorm compare

# Two processes on two cores; idle threads sleep, or those of one process would keep the other's from working.
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
test: $(READY)  ## run the tests, but those that are slow by nature
	$(PYTEST) -m "not slow"

# One thread each: they train small networks, whose threads would wait for one another's processes.
test-slow: $(READY)  ## run the others: whole experiments, exports of every format, clusters, models of other packages
	OMP_NUM_THREADS=1 $(PYTEST) -m slow

# The oldest torch that the package promises, one between (on Python 3.13), and the newest, in environments of their own;
# `make test` runs on the one of constraints.txt.
VERSIONS ?= 2.6 2.9@3.13 2.14
test-versions:  ## run the tests of the core under other versions of torch and Python; VERSIONS="2.6" chooses
	$(PYTHON) tests/versions.py $(VERSIONS)

check: $(READY)  ## formatting, lint, types, import contract, spelling and words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(READY)  ## build the documentation into site/, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

docs-serve: $(READY)  ## show it while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

doctor-bench: $(READY)  ## put 251 kinds of fault into trained networks, 37 of them held out, and count what the doctor finds and repairs
	PYTHONPATH=. $(BIN)/python -m benchmarks.doctor

adaptation-bench: $(READY)  ## train the networks that no method was designed on, show them every stream, and count what each method wins and loses
	PYTHONPATH=. $(BIN)/python -m benchmarks.adaptation --half "held out"

OUT ?= runs/gpu
gpu:  ## on a machine with a GPU, torch, Triton, pytest and tyro: its tests and its benchmark; OUT=DIR takes the record
	PYTHONPATH=src timeout 200 $(PYTHON) -m pytest -m gpu tests/ops tests/bench
	PYTHONPATH=src timeout 380 $(PYTHON) -m steadynorm.bench kernels --device cuda --op norm_relu norm_relu_residual \
		--shapes resnet50 --batches 128 --dtypes bfloat16 --layouts channels_last --compile --seconds 0.3 --out $(OUT)

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and every cache, keep runs/
	rm -rf .venv .venv-torch* site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
