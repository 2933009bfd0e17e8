# make demo   from nothing to generated text        make test   from nothing to a tested checkout
# Both install first; a second run finds everything in place.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: install demo test test-slow test-arm lint format bench peers clean

install: $(STAMP)

# torch comes first and pinned: a later resolver would otherwise take a build for CUDA.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/halfbyte pull smollm2
	$(BIN)/halfbyte generate "The three primary colours are" --max-tokens 64 --temperature 0

test: install lint
	$(BIN)/halfbyte pull smollm2
	$(BIN)/python -m pytest

# Long fuzzing and stress runs.
test-slow: install
	$(BIN)/python -m pytest -m slow

# make test-templates TEMPLATES=folder: real chat templates (*.jinja), rendered as transformers does.
.PHONY: test-templates
test-templates: install
	HALFBYTE_TEMPLATES="$(abspath $(TEMPLATES))" $(BIN)/python -m pytest -m slow --log-level=INFO -rP tests/engine/test_real_templates.py
# The C kernels for aarch64, cross-compiled; their arithmetic tests run under qemu-user.
test-arm: install
	@command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null || { \
		echo "make test-arm needs a cross compiler and an emulator; on Debian:" >&2; \
		echo "    apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" >&2; exit 1; }
	HALFBYTE_TEST_ARM=1 $(BIN)/python -m pytest $(addprefix tests/kernels/test_cpu_,attention.py elementwise.py linear.py pack.py quantized_inputs.py)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# llama.cpp is built from source, which takes some minutes the first time.
peers: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-binary llama-cpp-python --editable '.[peers]'
	$(BIN)/python -m halfbyte.bench.peers.llama_cpp --out bench/results/cpu

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
