# Every target builds the environment it needs. PYTHON chooses the interpreter, RUN_ARGS and
# TEST_ARGS go on to the command behind `run` and `test`.
PYTHON ?= python3
BIN := .venv/bin
RUN_ARGS ?=
TEST_ARGS ?=

.PHONY: setup run test lint clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[benchmark,dev]'
	touch $@

run: setup
	$(BIN)/python -m benchmarks.multitask_bert run --out runs/main $(RUN_ARGS)
	$(BIN)/python -m benchmarks.multitask_bert report runs/main

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(TEST_ARGS)

clean:
	rm -rf .venv runs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
