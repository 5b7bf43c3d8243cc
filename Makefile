# `make demo` and `make test` are all that a newcomer needs; each prepares its own environment in .venv first.
#
#   make demo [QUICK=1]   train on the embedded data, sample, evaluate, write a report
#   make test             all tests, by as many processes as there are cores, at most four (TEST_JOBS)
#   make lint             ruff, clang-format, pyright
#   make check-cuda       compiles the CUDA kernels without linking them (needs nvcc, no GPU)
#   make bench            the step benchmark, to build/bench-step.json
#
# PYTHON names the interpreter that the environment is made of (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
TEST_JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

PACKAGES := $(VENV)/.packages
EXTENSION := $(VENV)/.extension
NATIVE := setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
CXX_FILES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/* tests/cuda_emulation/*.cpp tests/cuda_emulation/*.cu tests/cuda_emulation/include/*.h)

.PHONY: demo test lint format check-cuda bench clean
.DELETE_ON_ERROR:

demo: $(EXTENSION)
	$(BIN)/dpcgan demo $(if $(QUICK),--quick)

# Several processes have one thread each, but two where kernels are tested (tests/conftest.py).
test: $(EXTENSION)
	$(if $(filter 1,$(TEST_JOBS)),,OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive) $(BIN)/python -m pytest $(if $(filter 1,$(TEST_JOBS)),,-n $(TEST_JOBS) --dist loadfile)

lint: $(EXTENSION)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(EXTENSION)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

check-cuda: $(EXTENSION)
	$(BIN)/python csrc/check_cuda.py --ptxas

bench: $(EXTENSION)
	mkdir -p build
	$(BIN)/dpcgan bench --suite step --out build/bench-step.json

clean:
	rm -rf build $(EXTENSION) dpcgan_fast/_C.*.so dpcgan_fast/_built_for.txt

# The packages that the build needs come first, since the extension compiles against the torch that is then there.
$(PACKAGES): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is older than 3.11 or lacks the module venv (Makefile). Name another one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt "setuptools>=77" wheel torch numpy pybind11 ninja
	@$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	$(PIP) install --quiet -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@

$(EXTENSION): $(PACKAGES) $(NATIVE)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
