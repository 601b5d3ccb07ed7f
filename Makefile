# Every verb a developer needs. Each sets up what it needs by itself; `make` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
REFERENCE_VENV ?= .venv-reference
SOURCES = $(shell find native -name '*.[ch]') pyengine/_ffi.c pyproject.toml

.DEFAULT_GOAL = help
.PHONY: help build run test test-native test-python test-reference test-arm sanitize lint format layers \
	ffi ffi-check model wheel bench clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/built: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

build: $(VENV)/built  ## build the core and install everything into .venv

run: build  ## run the bundled model
	$(BIN)/pyengine run -p "Once upon a time"

test: build  ## all tests: C, Python, the house's rules
	$(BIN)/python -m pytest

test-native:  ## the C tests alone; needs only a C compiler and Python
	$(PYTHON) tests/native/run.py

test-python: build  ## the Python tests alone
	$(BIN)/python -m pytest --ignore=tests/python/test_native.py

# torch's default build brings gigabytes of CUDA; where an index of CPU builds is set up,
# pip takes that one.
$(REFERENCE_VENV)/built: $(SOURCES) tests/reference/requirements.txt
	$(PYTHON) -m venv $(REFERENCE_VENV)
	$(REFERENCE_VENV)/bin/pip install --quiet -r tests/reference/requirements.txt
	$(REFERENCE_VENV)/bin/pip install --quiet --editable .
	@touch $@

test-reference: $(REFERENCE_VENV)/built  ## against transformers and llama.cpp (a long build first)
	$(REFERENCE_VENV)/bin/python -m pytest tests/reference

test-arm:  ## the C tests on 64-bit Arm under qemu (gcc-aarch64-linux-gnu, qemu-user)
	for cpu in cortex-a72 cortex-a76 max; do \
		CC=aarch64-linux-gnu-gcc EXTRA=-static RUNNER="qemu-aarch64 -cpu $$cpu" \
		$(PYTHON) tests/native/run.py || exit 1; \
	done

sanitize:  ## the C tests under AddressSanitizer, UBSan and ThreadSanitizer
	EXTRA="-O0 -fsanitize=address,undefined -fno-sanitize-recover=all" $(PYTHON) tests/native/run.py
	EXTRA="-O0 -fsanitize=thread" RUNNER="setarch -R" $(PYTHON) tests/native/run.py test_pool test_engine

lint: build layers ffi-check  ## formats, types, layers, the generated binding
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	find native tests bench -name '*.[ch]' | xargs $(BIN)/clang-format --dry-run --Werror

format: build  ## write the formats that lint asks for
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find native tests bench -name '*.[ch]' | xargs $(BIN)/clang-format -i

layers:  ## includes and imports against the layer order
	$(PYTHON) tests/house/check_layers.py

ffi: build  ## regenerate pyengine/_ffi.c from pe_api.h
	$(BIN)/python native/make_ffi.py

ffi-check: build  ## fail when pyengine/_ffi.c is out of date
	@mkdir -p build
	$(BIN)/python native/make_ffi.py build/_ffi.c > /dev/null
	diff -q build/_ffi.c pyengine/_ffi.c

model: build  ## re-create the bundled model: make model CHECKPOINT=DIR
	$(BIN)/python -m converters "$(CHECKPOINT)" --type q4_0 --name stories-29m --force --no-self-test \
		-o pyengine/models/stories-29m-q4_0.gguf
	cd pyengine/models && sha256sum -c SHA256SUMS

wheel: build  ## wheel and sdist into dist/
	$(BIN)/python -m build

bench: build  ## speed of the core here: bandwidth, kernels, the bundled model
	$(BIN)/pyengine bench
	$(BIN)/python bench/kernels.py

clean:  ## remove what the other verbs made
	rm -rf build dist *.egg-info pyengine/*.so $(VENV) $(REFERENCE_VENV) .pytest_cache \
		.mypy_cache .ruff_cache
