# One command for each job, from a fresh clone: the first sets up .venv and compiles, later ones
# compile what changed. Nothing is fetched once everything is installed.

PYTHON ?= python3
VENV ?= .venv
# Installed where .venv has no torch yet. The package index decides whether this is a build for CPUs
# or for GPUs; on a machine with a GPU and another driver set TORCH=torch, or a version.
TORCH ?= torch==2.13.0
# Passed on to the program a target runs, as in: make test ARGS='-k lstm -m "not slow"'
ARGS ?=

PY := $(VENV)/bin/python
CPP := $(shell find csrc -name '*.h' -o -name '*.inl' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CLANG_FORMAT := $(VENV)/bin/clang-format
PYTHON_SOURCES := fastrnn tests bench setup.py

# On a machine with a GPU: where results go, which parts of the benchmark, seconds of a part and of
# all parts together, a folder with what gpu-sync measured before and, where this is no clone, the
# commit.
GPU_OUT ?= bench/results
PART ?=
SECONDS ?=
TOTAL ?=
EARLIER ?=
COMMIT ?=
GPU_OPTIONS = --output '$(GPU_OUT)' $(if $(PART),--select '$(PART)') \
  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(TOTAL),--total $(TOTAL)) \
  $(if $(EARLIER),--earlier '$(EARLIER)') $(if $(COMMIT),--commit '$(COMMIT)') $(ARGS)

# What takes long without a GPU: every CUDA kernel compiled for several of them, and run on the CPU with
# every access to memory watched.
CUDA_TESTS := $(wildcard tests/test_cuda_*.py tests/test_cupy*.py) tests/test_nvrtc.py

.PHONY: help setup demo test test-cuda bench lint lint-python lint-types lint-cpp format clean
.PHONY: gpu gpu-build gpu-test gpu-sanitize gpu-sync gpu-bench gpu-store gpu-rehearse

help:
	@echo 'make demo    train a character model with fastrnn and with torch.nn   TEXT=file'
	@echo 'make test    run all tests                                            ARGS="-k lstm"'
	@echo 'make test-cuda  the long tests of the CUDA kernels; no GPU is needed'
	@echo 'make bench   time fastrnn against torch.nn and ONNX Runtime           THREADS=n'
	@echo 'make gpu     on a machine with a GPU: build, test and measure  GPU_OUT=folder TOTAL=seconds'
	@echo '  its parts: gpu-build, gpu-test, gpu-sanitize, gpu-sync, gpu-bench   PART=gru SECONDS=n'
	@echo '  gpu-store puts results into bench/results and README.md; gpu-rehearse needs no GPU'
	@echo 'make lint    ruff, mypy, clang-format: report'
	@echo 'make format  ruff, clang-format: rewrite'
	@echo 'make setup   only create $(VENV), install and compile'
	@echo 'make clean   remove $(VENV) and everything built'

setup: $(VENV)/built

demo: $(VENV)/built
	$(PY) -m fastrnn.examples.char_lm $(if $(TEXT),--text '$(TEXT)') $(ARGS)

test: $(VENV)/built
	$(PY) -m pytest $(ARGS)

test-cuda: $(VENV)/built
	$(PY) -m pytest -m cuda $(CUDA_TESTS) $(ARGS)

bench: $(VENV)/built $(VENV)/peers
	$(PY) -m bench.run $(if $(THREADS),--threads $(THREADS)) $(ARGS)
	$(if $(ARGS),,$(PY) -m bench.whole_model $(if $(THREADS),--threads $(THREADS)))
	$(PY) -m bench.pages

# With the interpreter that is given, which must have a torch for the GPU: nothing is installed.
gpu:
	$(PYTHON) -m bench.gpu all $(GPU_OPTIONS)

gpu-build gpu-test gpu-sanitize gpu-sync gpu-bench: gpu-%:
	$(PYTHON) -m bench.gpu $* $(GPU_OPTIONS)

gpu-store:
	$(PYTHON) -m bench.gpu store --from '$(GPU_OUT)'

gpu-rehearse: $(VENV)/built
	$(PY) -m bench.gpu all --rehearse --output build/gpu-rehearsal $(ARGS)

lint: lint-python lint-types lint-cpp

lint-python: $(VENV)/installed
	$(PY) -m ruff check $(PYTHON_SOURCES)
	$(PY) -m ruff format --check $(PYTHON_SOURCES)

lint-types: $(VENV)/installed
	$(PY) -m mypy

lint-cpp: $(VENV)/installed
	$(CLANG_FORMAT) --dry-run -Werror $(CPP) bench/gpu/sync.cu

format: $(VENV)/installed
	$(PY) -m ruff check --fix $(PYTHON_SOURCES)
	$(PY) -m ruff format $(PYTHON_SOURCES)
	$(CLANG_FORMAT) -i $(CPP) bench/gpu/sync.cu

clean:
	rm -rf '$(VENV)' build dist *.egg-info fastrnn/_C.*.so fastrnn/_launches.*.so fastrnn/_cuda.*.so

# Without build isolation, so that later compiles need no network and can be incremental. torch goes
# first: one that is there satisfies fastrnn's requirement and is left alone.
$(VENV)/installed: pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv '$(VENV)'
	$(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' \
	  || $(PY) -m pip install '$(TORCH)'
	$(PY) -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  > '$(VENV)/build-requires.txt'
	$(PY) -m pip install -r '$(VENV)/build-requires.txt'
	$(PY) -m pip install --no-build-isolation -e '.[dev]'
	touch $@

# Only the benchmark wants it, and does without where it cannot be installed.
$(VENV)/peers: $(VENV)/installed
	$(PY) -m pip install onnx onnxruntime || echo 'fastrnn: no ONNX Runtime to compare with'
	touch $@

$(VENV)/built: $(VENV)/installed CMakeLists.txt $(CPP)
	$(PY) setup.py --quiet build_ext --inplace
	@ls fastrnn/_C.*.so > /dev/null 2>&1 \
	  || echo 'fastrnn: installed as pure Python, without C++ kernels (see setup.py)'
	touch $@
