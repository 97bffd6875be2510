# The front door: `make help` lists the verbs. ARGS is handed on, as in: make test ARGS="-k claim".

PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
COMPILED := build/compiled
CODE   := waitingroom tests $(wildcard benchmarks fuzz loadtest)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fuzz wheel bench bench-million bench-ten-million bench-many bench-check outages lock fmt clean

help:         ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(READY)  ## create .venv from the hash-pinned lock (every other verb does this by itself)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed. If you have one under another name: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "This Python cannot create virtual environments. On Debian: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## run the whole thing on this machine: shop, store, gateway and a crowd
	$(BIN)/waitingroom demo $(ARGS)

test: $(READY)  ## all checks, then all tests; installs Debian packages that they drive, where it may
	@.ci/debian-packages
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest $(or $(ARGS),--cov=waitingroom)

check: $(READY)  ## lint, format, types, and that imports only go down
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fuzz: $(READY)  ## look for bytes that break a promise, a minute for each target (ARGS="--seconds 10 --only paths")
	@$(BIN)/pip install --quiet --no-deps --require-hashes --requirement fuzz/requirements.lock
	$(BIN)/python -m fuzz $(ARGS)

wheel: $(READY)  ## build dist/*.whl with the data path compiled; needs a C compiler
	@rm -rf build && mkdir -p build/source dist
	@cp -r waitingroom pyproject.toml README.md LICENSE build/source
	cd build/source && HATCH_BUILD_HOOK_ENABLE_MYPYC=1 \
	    ../../$(BIN)/python -m hatchling build --target wheel --directory ../../dist
	@$(BIN)/pip install --quiet --no-deps --no-index --upgrade --target $(COMPILED) dist/*.whl

bench: wheel  ## what a request costs on each path, beside nginx, HAProxy and aiohttp: about six minutes
	$(BIN)/python -m benchmarks.paths --compiled $(COMPILED) $(ARGS)

bench-million: wheel  ## a million people who wait, at two gateways on one store: about three minutes
	PYTHONPATH=$(COMPILED):. $(BIN)/python -P -m benchmarks.million $(ARGS)

bench-ten-million: wheel  ## ten million, without sockets: what the store and the ticks then cost
	PYTHONPATH=$(COMPILED):. $(BIN)/python -P -m benchmarks.still $(ARGS)

bench-many: wheel  ## ten thousand connections, eight gateways, and how long a start takes: about two minutes
	$(BIN)/python -m benchmarks.many --compiled $(COMPILED) $(ARGS)

outages: $(READY)  ## sales during which the store fails in eight ways, judged by the shop's own log: about four minutes
	$(BIN)/python -m tests.outages $(ARGS)

bench-check: wheel  ## whether anything has become slower than the committed figures say
	$(BIN)/python -m benchmarks.check --compiled $(COMPILED) $(ARGS)

lock: $(READY)  ## write requirements.lock anew from pyproject.toml (ARGS=--upgrade for newer versions)
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --quiet \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate --output-file requirements.lock $(ARGS)
	sed -i '1i # What the project and its tools need, pinned by hash. Written by: make lock' requirements.lock
	$(BIN)/uv pip compile --group fuzz --universal --python-version 3.11 --quiet \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate --output-file fuzz/requirements.lock $(ARGS)
	sed -i '1i # What make fuzz needs besides, pinned by hash. Written by: make lock' fuzz/requirements.lock

fmt: $(READY)  ## put the code into its format
	$(BIN)/ruff check --fix-only --quiet $(CODE)
	$(BIN)/ruff format $(CODE)

clean:        ## remove what the other verbs made, except data folders
	rm -rf $(VENV) dist build .coverage* .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
