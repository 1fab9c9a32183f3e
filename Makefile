# What can be done with this checkout? `make help` says it. Nothing is installed outside it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/setup.stamp
STUBS := build/stubs/rp2.stamp build/stubs/esp32.stamp
WASM := tests/core/wasm/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check prove bench docs wheel lock stubs wasm clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(SETUP) ## make .venv with everything in it, from the locked and hashed list

demo: $(SETUP) ## a day in a lab of five simulated machines, from tap to bill; with STAY=1 it stays open for visitors
	$(BIN)/fabtap demo $(if $(STAY),--stay)

test: $(SETUP) $(STUBS) $(WASM) ## every test, two files at a time: most wait for real time to pass
	$(BIN)/pytest -n 2 --dist loadfile

check: $(SETUP) $(STUBS) ## ruff, mypy, the firmware against both ports, who imports whom; quick
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_port_stubs.py tests/test_layers.py

prove: $(SETUP) ## only the tests that prove a promise of the design
	$(BIN)/pytest -m prove || { status=$$?; test $$status -eq 5 && echo "No test is marked as a proof yet."; }

bench: $(SETUP) ## measure, into build/bench.json
	@mkdir -p build
	$(BIN)/python -m tests.bench.run build/bench.json

docs: $(SETUP) ## generate the tables and diagrams in docs/
	$(BIN)/python docs/generate.py

wheel: $(SETUP) ## dist/fabtap-*.whl
	$(BIN)/python -m build --wheel --no-isolation

LOCK = $(BIN)/uv --no-config pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --quiet $(UPGRADE)

lock: $(SETUP) ## write host/locks/ again; with UPGRADE=--upgrade take newer versions
	$(LOCK) pyproject.toml --extra sim --extra broker --extra audit --extra bench --extra dev -o host/locks/dev.txt
	$(LOCK) --group stubs-rp2 -o host/locks/stubs-rp2.txt
	$(LOCK) --group stubs-esp32 -o host/locks/stubs-esp32.txt

stubs: $(STUBS) ## what each port's modules look like, for mypy

wasm: $(WASM) ## the 32-bit MicroPython, when npm is there

clean: ## remove all that was made here, .venv too
	rm -rf $(VENV) build dist tests/core/wasm/node_modules .pytest_cache .ruff_cache .hypothesis

$(SETUP): host/locks/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "FabTap needs Python 3.11, 3.12 or 3.13; $(PYTHON) is another. Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) can't make a virtual environment. On Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r host/locks/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Both packages hold a machine.pyi, so neither may be in the venv.
build/stubs/%.stamp: host/locks/stubs-%.txt $(SETUP)
	@rm -rf build/stubs/$*
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target build/stubs/$* -r $<
	@touch $@

# Without npm or a network the tests that need it are skipped, and say so.
$(WASM): tests/core/wasm/package.json tests/core/wasm/package-lock.json
	@if ! command -v npm >/dev/null; then \
		echo "There is no npm: the core is not tested on the 32-bit MicroPython. On Debian: apt install npm"; \
	elif (cd tests/core/wasm && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error); then \
		touch $@; \
	else \
		echo "npm could not get the 32-bit MicroPython: the core is not tested on it. Is there a network?"; \
	fi
