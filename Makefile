# Everything that a developer runs. Each target makes its own .venv when there is none.
#
#   make demo           quantize a real text encoder and print what that gave   (DEMO_ARGS=...)
#   make test           run the tests that take minutes together                (TEST_ARGS=...)
#   make test-fast      run those of the inner loop, less than a minute: tests/fast.txt
#   make test-long      run those that take long: rows and models on the runtime, the demo, the benchmarks, the kit
#   make test-exhaustive  run 2,000 random graphs and all pairs of rows on the runtime: an hour
#   make coverage       run the tests of `make test`, and report which lines and branches they reach: htmlcov
#   make check          ruff, ruff format --check, vermin for Python 3.10, mypy, pyright, import-linter, the words
#   make docs           build the site: docs/_build/html
#   make bench          what the flow costs and gives, beside torchao's         (BENCH_ARGS=...)
#   make cost           what prepare and convert cost for each node             (COST_ARGS=...)
#   make presets        size, agreement and time of each preset, on ExecuTorch  (PRESETS_ARGS=...)
#   make qat-bench      what training costs and how exact it is, beside torchao (QAT_ARGS=...)
#   make runtime-bench  time on ExecuTorch: float, torchao's and ours           (RUNTIME_ARGS=...)
#   make recovery-bench  what each recovery pass gains over the architectures   (RECOVERY_ARGS=...)
#   make accuracy-bench  what a comparison costs beside the models' runs      (ACCURACY_ARGS=...)
#   make targets-bench  time, agreement and integer work on each runtime, beside its makers' quantizer (TARGETS_ARGS=...)
#   make dist           build all wheels and sdists into dist/, and check them
#   make newcomer       install those wheels into a venv outside of the clone, and run what the pages say there
#   make test-torch-2.14  run the tests of the inner loop with torch 2.14, in a venv of its own: several GB
#   make release VERSION=X  write the version, the changelog, a commit and a tag; uploads nothing
#   make clean          remove .venv and the caches of the tools
#
# PYTHON=... picks the interpreter that .venv is made with.

# Asked to run something, because a version manager's stand-in may exist without the version behind it.
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
# The first pip that knows --group is 25.1.
PIP_VERSION := 26.3

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

PLUGINS := plugins/xnnpack plugins/executorch_embedding plugins/executorch plugins/onnxruntime plugins/openvino plugins/inductor_x86 plugins/torchao
PACKAGES := core $(PLUGINS)
SOURCES := core/src $(addsuffix /src,$(PLUGINS)) examples/acme_npu/src
MANIFESTS := $(addsuffix /pyproject.toml,$(PACKAGES)) constraints.txt VERSION

DEMO_ARGS ?= --output demo-models
TEST_ARGS ?=
BENCH_ARGS ?=
COST_ARGS ?=
PRESETS_ARGS ?=
RUNTIME_ARGS ?=
QAT_ARGS ?=
ACCURACY_ARGS ?=
TARGETS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-long test-exhaustive coverage check docs bench cost presets dist newcomer release test-torch-2.14 qat-bench runtime-bench recovery-bench accuracy-bench targets-bench clean
# A stamp of an install that failed half way must not stay.
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   make/  make/p' Makefile

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/text_encoder/demo.py $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 $(TEST_ARGS)

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 $(TEST_ARGS) $$(cat tests/fast.txt)

test-long: $(VENV)/.installed-test
	tests/install_debian.sh
	$(BIN)/python -m pytest -n 2 -m "long and not exhaustive" $(TEST_ARGS)

test-exhaustive: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 -m exhaustive $(TEST_ARGS)

coverage: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --cov --cov-report=html --cov-report=term:skip-covered $(TEST_ARGS)

check: $(VENV)/.installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vermin --target=3.10- --no-tips --violations --eval-annotations --exclude long $(SOURCES)
	$(BIN)/mypy --strict $(SOURCES) checks/typical_use.py
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python checks/words.py

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going -q -j 2 -b html docs docs/_build/html
	@echo "the site is docs/_build/html/index.html"

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/flow.py $(BENCH_ARGS)

cost: $(VENV)/.installed-test
	$(BIN)/python benchmarks/cost.py $(COST_ARGS)

presets: $(VENV)/.installed-test
	$(BIN)/python benchmarks/presets.py $(PRESETS_ARGS)

qat-bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/qat.py $(QAT_ARGS)

runtime-bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/runtime.py $(RUNTIME_ARGS)

recovery-bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/recovery.py $(RECOVERY_ARGS)

accuracy-bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/accuracy.py $(ACCURACY_ARGS)

targets-bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/targets.py $(TARGETS_ARGS)

dist: $(VENV)/.installed-release
	$(BIN)/python release/distributions.py --output dist

newcomer: dist
	$(BIN)/python release/newcomer.py --wheels dist --constraint constraints.txt

release: $(VENV)/.installed-release
	$(BIN)/python release/preparation.py $(VERSION)

# A venv of its own, since .venv has the torch that everything else is tested with.
test-torch-2.14:
	sed 's/^torch==.*/torch==2.14.1/' constraints.txt > .constraints-torch-2.14.txt
	$(MAKE) VENV=.venv-torch-2.14 CONSTRAINTS=.constraints-torch-2.14.txt test-fast

clean:
	rm -rf $(VENV) .venv-torch-2.14 .constraints-torch-2.14.txt dist docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each group of packages; the packages of this repository come with all of them.
$(VENV)/.installed-%: $(VENV)/.installed pyproject.toml
	@echo "install the packages of the group '$*' into $(VENV): a minute or two, in which pip is quiet"
	$(PIP) install --group $* --constraint $(CONSTRAINTS)
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(MANIFESTS)
	@echo "install torch and the packages of this repository into $(VENV): a minute or two, in which pip is quiet"
	$(PIP) install --constraint $(CONSTRAINTS) $(addprefix --editable ,$(PACKAGES))
	@touch $@

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install pip==$(PIP_VERSION)
	@touch $@

.PRECIOUS: $(VENV)/.installed-%
