# Needs only make and Python >= 3.10. Every target installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Tests run in two processes; more threads in each would only fight over the cores.
test test-py310 soak: export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-py310 soak bench format clean

help:
	@echo "make demo    the whole path on real photographs"
	@echo "make test    format, lint, types, imports and tests: the gate"
	@echo "make test-py310  the deployed half on JetPack 6's Python, without torch"
	@echo "make soak    the long proofs; they write benchmarks/results/"
	@echo "make bench   measure speed on this machine"
	@echo "make format  rewrite the code in the project's format"
	@echo "make clean   remove the environment and everything generated"

# The stamp is written last. Without it the environment is unfinished and is built again from nothing;
# with it, a change of the pins or of pyproject.toml only updates what is there.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "$(PYTHON) is missing or older than 3.10; install Python 3.10 or newer, or name one: make PYTHON=python3.12" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make an environment with pip; on Debian and Ubuntu run: apt-get install python3-venv" >&2; \
	    exit 1; }
	@echo "== install into $(VENV)"
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test]'
	@# The stubs ask for TensorRT itself, whose libraries only NVIDIA's own index has; types need none of them.
	@# timm asks for torchvision, of which its models, a reference of the tests, need nothing.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps tensorrt-stubs timm
	@touch $@

demo: $(READY)
	@$(BIN)/python examples/demo.py

test: $(READY)
	@echo "== ruff format" && $(BIN)/ruff format --check --quiet .
	@echo "== ruff check" && $(BIN)/ruff check --quiet .
	@echo "== mypy" && $(BIN)/mypy
	@echo "== lint-imports" && $(BIN)/lint-imports
	@echo "== pytest" && $(BIN)/python -m pytest -n 2 --dist loadfile -m "not soak"

# What runs on a device with JetPack 6: its Python, the versions that exist for it, neither torch nor an exporter.
# onnx is there only because tests write graphs with it; tests/runtime/conftest.py leaves out what needs more.
PYTHON310 ?= python3.10
VENV310 := .venv-py310
DEPLOYED := tests/runtime tests/examples/test_jetson_camera.py \
    tests/test_artefacts.py tests/test_errors.py tests/test_files.py tests/test_manifest.py tests/test_spec.py

$(VENV310)/.ready: pyproject.toml constraints-py310.txt
	@$(PYTHON310) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' || { \
	    echo "$(PYTHON310) is not Python 3.10; name one: make PYTHON310=PATH test-py310" >&2; exit 1; }
	@echo "== install into $(VENV310)"
	@$(PYTHON310) -m venv --clear $(VENV310)
	@$(VENV310)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-py310.txt \
	    -e '.[cpu,parquet,video]' hypothesis onnx packaging pytest
	@touch $@

test-py310: $(VENV310)/.ready
	@$(VENV310)/bin/python -m pytest $(DEPLOYED)

soak: $(READY)
	@$(BIN)/python -m pytest -m soak

bench: $(READY)
	@$(BIN)/python -m benchmarks.spine

format: $(READY)
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV310) build dist demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find mae_export tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
