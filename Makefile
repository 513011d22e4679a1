# Each goal sets up all it needs in .venv: only python3 (3.10 or newer), pip and a C++ compiler have to be there.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
NATIVE := pyproject.toml CMakeLists.txt $(wildcard csrc/*.h csrc/*.cpp)
MODEL ?=

.DEFAULT_GOAL := chat
.PHONY: chat test lint format sanitize emulate figures bench clean

chat: .venv/.bise  ## talk to the built-in model, or: make chat MODEL=file.gguf
	@$(BIN)/bise chat $(MODEL)

test: .venv/.tests lint  ## everything that CI checks, with the test runner's own last line at the end
	@$(BIN)/python -m pytest

lint: .venv/.tests
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary src
	@$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp

format: .venv/.tests
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i csrc/*.h csrc/*.cpp

sanitize: .venv/.bise  ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(PIP) pytest
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON=python csrc/sanitize.sh

emulate: .venv/.bise  ## the kernels for arm64 in an emulator: needs qemu-user and a cross compiler
	@PATH="$(CURDIR)/$(BIN):$$PATH" csrc/emulate.sh

figures: .venv/.tests  ## draw the README's pictures again, and run the commands that it shows
	@$(BIN)/python docs/figures/draw.py
	@$(BIN)/python docs/tour.py

bench: .venv/.tests  ## bise and llama.cpp in turns, on files made for it, or: make bench MODEL=file.gguf
	@$(BIN)/python bench/against.py $(MODEL)

clean:
	rm -rf .venv build

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Installed editable, with the build's tools in .venv: Python files count as they are, and of the kernels only what has
# changed is compiled again.
.venv/.bise: $(NATIVE) | $(BIN)/python
	@echo "building bise: a minute or two the first time"
	@$(PIP) 'scikit-build-core>=0.10' 'nanobind>=2.4' cmake ninja
	@$(PIP) --no-build-isolation --editable .
	@touch $@

# torch first and pinned, so that nothing else chooses one; llama-cpp-python is compiled, once: pip keeps its wheel.
.venv/.tests: .venv/.bise
	@echo "setting up what the tests compare bise with: up to ten minutes the first time"
	@$(PIP) torch==2.13.0
	@CMAKE_ARGS=-DLLAVA_BUILD=OFF $(PIP) llama-cpp-python==0.3.36
	@$(PIP) --no-build-isolation --editable '.[test,dev]'
	@touch $@
