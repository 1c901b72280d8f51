# Two commands on a fresh machine: `make study` (set-up and the main job) and `make test` (set-up and the tests).
#   PYTHON=python3.12       the interpreter; a torch that it can import is used as it is
#   TORCH=torch==2.11.0     what pip installs where it has none
#   EXTRAS=test,study,dev   groups of pyproject.toml that the set-up installs
#   ARGS="-k gru"           further arguments for pytest, the study or gpu (ARGS=--dry-run)
PYTHON ?= python3
TORCH ?= torch==2.13.0
EXTRAS ?= test,study
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
CODE := $(shell find csrc tools -type f -not -name '*.pyc') setup.py pyproject.toml
CUDA_ARCHS ?= 80 90a

.PHONY: help setup study study-full test test-fast check bench gpu kernels-check mutations clean
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1: \2/p' Makefile

setup: $(VENV)/.built ## .venv with torch, the compiled kernels and what tests and studies need
study: setup ## the main job: fused layers, torch's layers and convolution compared on real input; writes a report
	$(PY) -m benchmarks study $(ARGS)
study-full: setup ## the same with larger grids, more models and seeds: up to an hour
	$(PY) -m benchmarks study --full $(ARGS)
test: setup ## the whole test suite, on up to four processes
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadgroup $(ARGS)
test-fast: setup ## the tests that take a moment, up to the first failure
	$(PY) -m pytest -x -n auto --maxprocesses 4 -m "not slow" $(ARGS)
check: $(VENV)/.dev ## ruff, mypy, clang-format, clang-tidy, architecture; no other tests
	$(PY) tools/check.py
bench: setup ## the benchmark cases under pytest-benchmark
	$(PY) -m pytest benchmarks $(ARGS)
gpu: ## what needs an NVIDIA GPU: build, constants, parity, sanitizers, the grid against cuDNN (STAGE=..., OUT=folder)
	$(PYTHON) tools/gpu.py $(if $(STAGE),--stage $(STAGE)) $(if $(OUT),--out $(OUT)) $(ARGS)
kernels-check: setup ## compile the CUDA and the Triton kernels, 0 spills: no GPU
	@$(PYTHON) tools/kernels_check.py $(CUDA_ARCHS)
	@$(PY) tools/triton_check.py $(CUDA_ARCHS:90a=90)
mutations: setup ## the kernels with one fault at a time, each wait left out among them; their checks have to see it
	$(PY) tools/mutate.py $(ARGS)
	$(PY) tools/mutate_cuda.py $(ARGS)
	$(PY) tools/mutate_triton.py $(ARGS)
clean: ## remove .venv and everything built
	rm -rf .venv build dist *.egg-info fusedrnn/*.so fusedrnn/_build.json .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

# A venv sees what its base interpreter has, but not what another venv has: if PYTHON is a venv's, a .pth file lends its torch.
$(VENV)/.torch:
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --system-site-packages $(VENV) \
	  || { $(PYTHON) -m virtualenv --system-site-packages $(VENV) || uv venv --clear --seed --system-site-packages -p $(PYTHON) $(VENV); } \
	  || { echo "make: $(PYTHON) has no venv and no virtualenv, and there is no uv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PY) -c "import torch" 2>/dev/null \
	  || { site=$$($(PYTHON) -c "import torch; print(torch.__path__[0][:-len('/torch')])" 2>/dev/null) \
	    && echo "$$site" > "$$($(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torch_of_chosen_python.pth"; } \
	  || { echo "make: installing $(TORCH)"; $(PIP) install -q "$(TORCH)"; }
	@$(PIP) install -q ninja || echo "make: no ninja; the build works without, more slowly"
	@touch $@
$(VENV)/.built: $(VENV)/.torch $(CODE)
	@echo "make: compiling and installing, up to 3 minutes on 2 cores"
	$(PIP) install -q -e ".[$(EXTRAS)]"
	@$(PY) -c "import fusedrnn"
	@touch $@
$(VENV)/.dev: $(VENV)/.built tools/check.py
	@$(PY) tools/check.py --missing >/dev/null || $(PIP) install -q -e ".[dev]" || echo "make: the tools could not be installed"
	@touch $@
