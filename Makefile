# make demo   from nothing to generated text        make test   from nothing to a tested checkout
# Both install first; a second run finds everything in place. Given on the command line,
#   PYTHON=python3.13    makes the environment with that Python (3.11 or newer)
#   TORCH_INDEX=URL      takes torch, and nothing else, from that package index. The usual one has a
#                        build for CUDA only, for Linux; an index of CPU builds saves gigabytes.

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Processes of a test run; each computes on two threads or fewer most of the time.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist worksteal
N ?= 20
ORIGIN := $(VENV)/origin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-user --constraint constraints.txt

# Packages of another environment would hide what is missing in this one.
unexport PYTHONPATH PYTHONHOME

.PHONY: install demo test test-repeat test-slow test-arm test-ptx test-page lint format check-install peers clean FORCE

# Whether the environment can be used: it runs and has pip (not so when its making was interrupted,
# or its Python was replaced), was made in this folder, and by what is asked for now.
USABLE := $(shell \
	$(BIN)/python -c 'import pip' 2>/dev/null \
	&& { [ ! -e $(ORIGIN) ] || [ "$$(sed -n 1p $(ORIGIN))" = "$$(pwd)" ]; } \
	&& { [ -z '$(TORCH_INDEX)' ] || [ "$$(sed -n 2p $(ORIGIN) 2>/dev/null)" = '$(TORCH_INDEX)' ]; } \
	&& { [ '$(origin PYTHON)' = file ] || [ "$$($(BIN)/python -V)" = "$$('$(PYTHON)' -V)" ]; } \
	&& echo yes)

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(if $(USABLE),,FORCE)
ifneq ($(USABLE),yes)
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is: $$('$(PYTHON)' -V 2>&1);" \
			"name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "$(VENV): a new virtual environment of $$('$(PYTHON)' -V)"
	@'$(PYTHON)' -m venv --clear $(VENV) || { \
		echo "error: '$(PYTHON)' cannot make a virtual environment (Debian, Ubuntu:" \
			"apt install python3-venv)" >&2; exit 1; }
	@printf '%s\n' "$$(pwd)" '$(TORCH_INDEX)' > $(ORIGIN)
endif
ifneq ($(TORCH_INDEX),)
	$(PIP) --no-deps --index-url '$(TORCH_INDEX)' torch
endif
	$(PIP) --editable '.[dev]'
	@touch $(STAMP)

demo: install
	$(BIN)/halfbyte pull smollm2
	$(BIN)/halfbyte generate --raw "The three primary colours are" --max-tokens 64 --temperature 0

test: install lint
	$(BIN)/halfbyte pull smollm2
	$(BIN)/python -m pytest $(PARALLEL)

# make test-repeat N=20: all tests once, then those that draw their inputs, until each has run N
# times. A failure ends it and names its seed.
test-repeat: install
	$(BIN)/halfbyte pull smollm2
	$(BIN)/python -m pytest $(PARALLEL)
	for turn in $$(seq 2 $(N)); do $(BIN)/python -m pytest $(PARALLEL) --drawn || exit 1; done

# Long fuzzing and stress runs, and cases of which the default run tries the more telling ones.
test-slow: install
	$(BIN)/python -m pytest -m slow

# make test-templates TEMPLATES=folder: real chat templates (*.jinja), rendered as transformers does.
.PHONY: test-templates
test-templates: install
	HALFBYTE_TEMPLATES="$(abspath $(TEMPLATES))" $(BIN)/python -m pytest -m slow --log-level=INFO -rP tests/engine/text/test_real_templates.py
# Small faults, put into a copy of the tree one at a time: each must be noticed by a test.
.PHONY: mutate
mutate: install
	$(BIN)/python tests/mutation/mutate.py --table docs/mutation.md

# The C kernels for aarch64, cross-compiled; their arithmetic tests run under qemu-user.
ARM_TESTS := attention calibrator compact draw elementwise fit linear pack quantized_inputs rounded
test-arm: install
	@command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null || { \
		echo "make test-arm needs a cross compiler and an emulator; on Debian:" >&2; \
		echo "    apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" >&2; exit 1; }
	for form in neon dotprod i8mm; do export HALFBYTE_TEST_ARM=$$form; \
		$(BIN)/python -m pytest $(PARALLEL) $(addprefix tests/kernels/test_cpu_,$(addsuffix .py,$(ARM_TESTS))) \
		&& $(BIN)/python -m pytest -m slow tests/kernels/test_cpu_emulation.py || exit 1; done

# make test-ptx TRITON=3.6.0: every shipped Triton kernel, compiled by that version (in an
# environment of its own) or by the one that is installed, and run in an interpreter of PTX.
TRITON ?=
test-ptx: install
ifneq ($(TRITON),)
	$(MAKE) install VENV=.venv-triton-$(TRITON)
	.venv-triton-$(TRITON)/bin/python -m pip install --no-deps 'triton==$(TRITON)'
	$(MAKE) test-ptx VENV=.venv-triton-$(TRITON) TRITON=
else
	$(BIN)/python -m pytest $(PARALLEL) -m ptx tests/bench tests/parity
endif

# The page at /, driven in a headless Chromium: Debian's, installed where there is none.
BROWSER := $(VENV)/browser
test-page: $(BROWSER)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
			&& apt-get update && apt-get install --yes --no-install-recommends chromium; } \
		|| { echo "make test-page needs Chromium; on Debian: apt install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest $(PARALLEL) -m browser tests/server/page/browser

# make page-pictures: docs/page/*.png, taken of the page as it is.
.PHONY: page-pictures
page-pictures: $(BROWSER)
	HALFBYTE_PICTURES=docs/page $(BIN)/python -m pytest -m browser tests/server/page/browser/test_browser_pictures.py

# Playwright brings no browser of its own here.
$(BROWSER): $(STAMP) pyproject.toml constraints.txt
	$(PIP) --editable '.[browser]'
	@touch $(BROWSER)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Resolves for every Python and platform, builds, installs and runs what a user would get.
check-install: install
	$(PIP) --editable '.[release]'
	$(BIN)/python tests/structure/check_install.py $(if $(TORCH_INDEX),--torch-index '$(TORCH_INDEX)')

# llama.cpp is built from source, which takes some minutes the first time.
peers: install
	$(PIP) --no-binary llama-cpp-python --editable '.[peers]'
	$(BIN)/python -m halfbyte.bench.peers smollm2 --llama-cpp-python --out bench/results/cpu/peers

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
