# Each target does all of its own set-up in a virtual environment.
#   make demo    install, and ask the embedded model a question
#   make test    install, and run every test
#   make lint    formatters, linters and type checks
#   make dev     compile into the checkout, for working on it
#   make cuda    the same with the CUDA engine, for the GPUs that CUDA_ARCHS names
#   make sanitize  the tests under the address and undefined-behaviour sanitizers

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ORACLE ?= 1
SOURCES := $(shell find csrc cmake python -type f -not -name '*.pyc' -not -name '*.so') \
           CMakeLists.txt pyproject.toml

.PHONY: demo test lint dev cuda sanitize clean

demo: $(VENV)/.installed
	$(BIN)/gpt-oss-native chat --once "What is 57 + 68?"

test: $(VENV)/.installed $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.lint
	PATH="$(abspath $(BIN)):$$PATH" pre-commit run --all-files --show-diff-on-failure

dev: $(VENV)/.dev
	$(BIN)/cmake --preset cpu -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build --preset cpu

CUDA_ARCHS ?= 80;86;89;90a;100;120
cuda: $(VENV)/.dev
	$(BIN)/cmake --preset cuda -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DGPTOSS_CUDA_ARCHS="$(CUDA_ARCHS)"
	$(BIN)/cmake --build --preset cuda

sanitize: $(VENV)/.dev $(VENV)/.test
	sh tests/sanitize.sh $(abspath $(BIN)) $(PYTEST_ARGS)

clean:
	rm -rf build $(VENV)

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

$(VENV)/.installed: $(VENV)/.venv $(SOURCES)
	$(BIN)/python -m pip install --quiet .
	touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml
	$(BIN)/python -m pip install --quiet --group test
ifeq ($(ORACLE),1)
	$(BIN)/python -m pip install --quiet --group oracle
endif
	touch $@

$(VENV)/.lint: $(VENV)/.venv pyproject.toml
	$(BIN)/python -m pip install --quiet --group lint numpy tiktoken
	touch $@

$(VENV)/.dev: $(VENV)/.venv pyproject.toml
	$(BIN)/python -m pip install --quiet cmake ninja "pybind11>=3.0" numpy tiktoken
	touch $@
