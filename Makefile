# make demo | make test | make bench | make docs | make lint | make wheel | make sdist | make cpp-test | make isa-test |
# make gpu | make clean
#
# Everything happens in .venv; nothing is installed outside it. TORCH and CUDA may be set:
#   make test TORCH="torch==2.13.0" CUDA=OFF
PYTHON ?= python3
TORCH ?= torch==2.13.0
CUDA ?= AUTO
JOBS ?= $(shell nproc)
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test bench docs cpp-test isa-test lint wheel sdist gpu clean build

# Where Python has no venv module of its own (Debian splits it off), virtualenv makes the environment.
$(VENV)/tools:
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); \
	  $(PYTHON) -m pip install -q --target build/virtualenv virtualenv && \
	  PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv -q $(VENV); }
	$(PIP) install --upgrade pip
	$(PIP) install "$(TORCH)" "scikit-build-core>=0.10" "nanobind>=3.1" "cmake>=3.24" ninja
	touch $@

# ANABRANCH_HOST_PYTHONS is emptied, for make wheel fills it in the same folder.
build: $(VENV)/tools
	$(PIP) install --no-build-isolation --config-settings=cmake.define.ANABRANCH_CUDA=$(CUDA) \
	  --config-settings=cmake.define.ANABRANCH_HOST_PYTHONS= -e ".[test]"

demo: build
	$(PY) -m anabranch demo

# With the peers that pip has; those that are missing all the same are named.
bench: build
	$(PIP) install "transformers>=5.0" sortedcontainers BTrees torch_geometric
	$(PY) -m anabranch bench --out build/bench

# A link to what does not exist ends it. What the pages' examples do is tested too.
docs: build
	$(PIP) install "mkdocs==1.6.1" "mkdocs-material==9.8.2" "mkdocstrings[python]==1.0.8" "ruff==0.17.6"
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build
	$(PY) -m pytest tests/test_docs.py tests/docs/test_pages.py

# The C++ tests link the kernels that were just built; `make cpp-test` alone builds its own.
test: build
	$(MAKE) cpp-test KERNELS="$$(ls -t $(CURDIR)/build/cpython-3*/libanabranch_kernels.a | head -n 1)"
	$(PY) -m pytest tests --durations=15 --durations-min=5

# What calls CPU kernels, with every kernel of the process on one instruction set: each that this CPU has. The skip
# room's tests go through all of them by themselves (tests/conftest.py: cpu_isa).
ISAS ?= portable avx2 avx512 avx512_bf16
isa-test: build
	@set -e; for isa in $(ISAS); do \
	  export ANABRANCH_CPU_ISA=$$isa; \
	  if ! $(PY) -c "import torch, anabranch; torch.ops.anabranch.cpu_isa()" 2> build/isa.log; then \
	    grep 'ANABRANCH_CPU_ISA: ' build/isa.log || { cat build/isa.log; exit 1; }; continue; \
	  fi; \
	  echo "instruction set: $$isa"; \
	  $(PY) -m pytest tests/experts/test_expert_ffn.py tests/experts/test_grouped_mm.py tests/experts/test_modules.py \
	    tests/integrations/test_transformers.py; \
	done

# The C++ tests: the CPU kernels on every instruction set, and (unless HARNESS=OFF) the CUDA kernels on the host harness;
# the C++ benchmarks are built beside them. SANITIZE=address,undefined builds the tests apart with those sanitizers;
# SANITIZE=thread those of the CPU kernels.
HARNESS ?= ON
COMMA := ,
CPP_BUILD = build/cpp$(if $(SANITIZE),-$(subst $(COMMA),-,$(SANITIZE)))
cpp-test: $(VENV)/tools
	$(VENV)/bin/cmake -S . -B $(CPP_BUILD) -G Ninja -DANABRANCH_TESTS=ON -DANABRANCH_HARNESS=$(HARNESS) \
	  -DANABRANCH_PYTHON=OFF -DANABRANCH_SANITIZE=$(SANITIZE) -DANABRANCH_BENCH=$(if $(SANITIZE),OFF,ON) \
	  -DANABRANCH_KERNELS=$(KERNELS) > /dev/null
	$(VENV)/bin/ninja -C $(CPP_BUILD) -j $(JOBS) --quiet
	$(VENV)/bin/ctest --test-dir $(CPP_BUILD) --output-on-failure -j $(JOBS) --quiet

lint: $(VENV)/tools
	$(PIP) install "ruff==0.17.6" "clang-format==23.1.5" "mypy==2.4.1"
	$(VENV)/bin/ruff check python tests examples docs .ci
	$(VENV)/bin/ruff format --check python tests examples docs .ci
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.hpp' '*.cpp' '*.cuh' '*.cu')
	$(PY) -m mypy

# One wheel for every Python. Its libraries have no Python's interface but for _host, which is built for each Python that
# is found with its headers: those of WHEEL_PYTHONS, by default all of PATH and pyenv. Python 3.10 and 3.11 need a binary
# each, all later ones share one (third_party/nanobind.cmake). The wheel is tagged with the oldest system that has what
# its libraries need.
WHEEL_PYTHONS ?= $(shell .ci/wheel pythons)
wheel: $(VENV)/tools
	rm -rf build/wheel && mkdir -p build/wheel dist
	$(PIP) install wheel
	$(PIP) wheel --no-build-isolation --no-deps --config-settings=wheel.py-api=py3 \
	  --config-settings=cmake.define.ANABRANCH_CUDA=$(CUDA) \
	  "--config-settings=cmake.define.ANABRANCH_HOST_PYTHONS=$(WHEEL_PYTHONS)" -w build/wheel .
	$(PY) -m wheel tags --remove --platform-tag "$$($(PY) .ci/wheel tag build/wheel/*.whl)" build/wheel/*.whl
	mv build/wheel/*.whl dist/

# All that a build needs, and the tests. `pip install dist/*.tar.gz` compiles it.
sdist: $(VENV)/tools
	$(PIP) install build
	$(PY) -m build --no-isolation --sdist --outdir dist .

# On a machine with a GPU, nvcc and a torch with CUDA: everything that only a GPU can say. Uses that machine's Python.
gpu:
	PYTHON=$(PYTHON) .ci/gpu

clean:
	rm -rf .venv build dist
