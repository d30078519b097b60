# make demo: set up and run the main job on real input.    make test: set up and pass every test.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types unit browser clean

demo: $(READY)
	$(BIN)/optkit convert recipes/digits.yaml

test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

unit: $(READY) browser
	$(BIN)/python -m pytest -n 2

# The HTML report's tests click in a real browser. Where none is there and none can be installed, they are skipped by name.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "no Chromium on PATH: the tests that open the HTML report in a browser are skipped" >&2; fi

# torch goes first and pinned: an unpinned torch, or one resolved beside the rest, brings several GB of GPU packages.
$(READY): pyproject.toml .ci/constraints.txt $(wildcard optkit/envs/*.txt)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable ".[dev]"
	mkdir -p .venv/optkit-environments  # where optkit looks first, so that nothing depends on a home folder
	$(BIN)/optkit env create --quiet onnx2tf
	touch $(READY)

clean:
	rm -rf .venv build
