# make demo   the main job: trains one network with torch's layers and with fastops', and compares
# make test   the test suite (ARGS="-k pool" and the like are handed to pytest)
# make bench  fastops beside torch, row by row (ARGS="--rows max" and the like; python -m bench --help)
# make gpu    the tests that need a GPU, and compute-sanitizer over some of them
# make reliability  the scoreboard of docs/reliability.md, written anew; hours. With ARGS=--quick some minutes,
#             and build/reliability.md
# make lint   style of Python and C++
# make clean  removes what these made
#
# Each makes .venv with PYTHON where it is missing. A torch that PYTHON can import is used as it is;
# otherwise TORCH is installed.
PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q
# The build requirements stand in pyproject.toml, and only there.
BUILD_REQUIRES := $(shell sed -n '/^requires = /s/[^"]*\("[^"]*"\)[^"]*/\1 /gp' pyproject.toml)
CPP := $(shell find csrc tests bench -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' -o -name '*.c')

.PHONY: demo test bench gpu reliability lint build clean

demo: build
	$(BIN)/python examples/demo.py $(ARGS)

test: build
	$(BIN)/python -m pytest $(ARGS)

bench: build
	$(BIN)/python -m bench $(ARGS)

gpu: build
	PYTHON=$(BIN)/python tests/gpu.sh $(ARGS)

reliability: build
	$(BIN)/python -m tests.reliability $(ARGS)

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)

# Compiles what has changed; a second when nothing has.
build: .venv/ready
	@$(BIN)/python setup.py -q build_ext --inplace

.venv/ready: .venv/torch pyproject.toml setup.py
	@echo "installing fastops and what its tests and demo need"
	@$(PIP) $(BUILD_REQUIRES)
	@$(PIP) -e '.[test]' --no-build-isolation
	@touch $@

# (Beside a torch that is used as it is there may be a ruff, whose command is not in .venv.)
.venv/lint: .venv/torch pyproject.toml
	@$(PIP) --ignore-installed $$($(BIN)/python -c 'import re; print(*re.findall(r"\"([\w-]+==[\d.]+)\"", open("pyproject.toml").read()))')
	@touch $@

.venv/torch:
	@$(PYTHON) -m venv .venv
	@packages=$$($(PYTHON) -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' 2>/dev/null) && \
	  echo "using the torch in $$packages" && \
	  echo "$$packages" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth" || \
	  { echo "installing $(TORCH)"; $(PIP) '$(TORCH)'; }
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info fastops/_C.*.so demo.png .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
