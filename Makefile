# Needs Python >= 3.10, a C++ compiler and make; everything else goes into .venv, which the first target makes. `make gpu`
# alone has no .venv: it uses PYTHON as it is, with the torch and triton that it has, and needs no network.
#   make demo | test | nightly | promises | bench | pages | docs | lint | format | gpu | gpu-build | clean
# PYTHON, VENV, MAX_JOBS (files compiled at once), CXX, TORCH (e.g. TORCH=torch==2.11.0) can be set on the command line,
# and of gpu-build the Python and the compute capability of the other machine, GPU_PYTHON and GPU_ARCH.
PYTHON ?= python3
VENV ?= .venv
MAX_JOBS ?= 2
GPU_PYTHON ?= python3.12
GPU_ARCH ?= 9.0a
# One place names the version: the build requirement in pyproject.toml.
TORCH ?= $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
PY = $(VENV)/bin/python
PIP = $(PY) -m pip --disable-pip-version-check install --quiet
SOURCES = $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
CPP = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')
export MAX_JOBS

.PHONY: demo test nightly promises bench pages docs lint format gpu gpu-build clean build environment
.DELETE_ON_ERROR:

# torch first and alone, and named again later: a looser requirement must not pull another build of it. Each torchvision
# requires one version of torch, so that pip finds the one that belongs to TORCH.
$(VENV)/environment.stamp: pyproject.toml $(wildcard tests/environment/*.py tests/environment/*.toml)
	@echo "environment: $(TORCH) and the build requirements into $(VENV) (a few minutes the first time)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastnest needs Python >= 3.10, got " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) "setuptools>=77" wheel pybind11 ninja "pip>=25.1"
	$(PIP) --group models "$(TORCH)"
	$(PIP) --no-deps --no-build-isolation ./tests/environment
	@touch $@
environment: $(VENV)/environment.stamp

$(VENV)/install.stamp: $(VENV)/environment.stamp setup.py
	@echo "build: fastnest with its C++ kernels into $(VENV), $(MAX_JOBS) files at a time"
	$(PIP) --no-build-isolation -e ".[test,bench,demo,theory,plot,report,lint,docs,triton]" "$(TORCH)"
	$(PY) -m fastnest info
	@touch $@

# pip compiles from nothing every time; a change in csrc compiles only the files it touches.
$(VENV)/build.stamp: $(VENV)/install.stamp $(SOURCES)
	@if [ -n "$$(find $(SOURCES) -newer $(VENV)/install.stamp)" ]; then \
	  echo "build: what changed in csrc"; $(PY) setup.py --quiet build_ext --inplace; fi
	@touch $@
build: $(VENV)/build.stamp

demo: build
	@echo "demo: trains a ResNEst, an A-ResNEst and a DenseNEst on digits and diabetes, fused against reference"
	$(PY) -m fastnest demo

test: build
	@echo "test: every test of the package"
	$(PY) -m pytest

nightly: build
	@echo "nightly: 10000 random calls, sanitizers, races, real sizes: eight minutes on 2 cores"
	$(PY) -m pytest -m nightly

promises: build
	@echo "promises: runs the tests that docs/promises.md names, and writes their results there"
	$(PY) tests/promises/table.py docs/promises.md

bench: build
	@echo "bench: every op and model against its peers, as shipped and fair; 50 minutes on 2 cores, the first time longer"
	$(PY) -m fastnest bench --full
	$(MAKE) pages

pages: build
	@echo "pages: the tables and pictures of benchmarks/results into README and docs"
	$(PY) -m fastnest bench --show --pictures docs/images --readme README.md docs/benchmarks.md docs/gpu.md

docs: build
	@echo "docs: the pages of docs/ into out/site, warnings as errors"
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: build
	@echo "lint: ruff, mypy and clang-format, changing nothing"
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@$(VENV)/bin/clang-format --dry-run --Werror $(CPP) && echo "clang-format: clean"

format: build
	@echo "format: rewrites Python with ruff and C++ with clang-format"
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

# GPU="--stages checks profile --seconds 60": what is in GPU is passed on. Without a GPU it fails, so that nobody takes an
# untested one for a tested one.
gpu:
	@echo "gpu: is it right, how fast, where does the time go: 14 minutes with $(PYTHON), benchmarks/results/CARD.json"
	@$(PYTHON) -m benchmarks.gpu $(GPU)

gpu-build: environment
	@echo "gpu-build: fastnest/_C for $(GPU_PYTHON) and compute capability $(GPU_ARCH), which need not be here"
	@$(PY) -m benchmarks.gpu.install $(GPU_PYTHON) $(GPU_ARCH)

clean:
	@echo "clean: removes $(VENV) and what was built"
	rm -rf $(VENV) build dist *.egg-info fastnest/_C.*.so tests/environment/build tests/environment/*.egg-info
