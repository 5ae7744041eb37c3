# Everything a newcomer needs: `make demo`, `make test`. Only Python 3.11 (or newer) must be there already.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: setup demo check test test-all docs bench

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	touch $@

demo: setup
	@echo "How small can a network be and still get all 1,797 handwritten digits right?"
	@echo
	$(BIN)/isthmus memorize digits --out demo-model --force --onnx
	@echo
	@echo "Now the saved files alone, checked in plain NumPy, and then in exact rational arithmetic:"
	@echo
	$(BIN)/isthmus verify demo-model digits
	@echo
	$(BIN)/isthmus verify demo-model digits --backend exact

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

test: setup
	$(BIN)/pytest -n 2

test-all: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[wrappers]"
	$(BIN)/pytest -n 2 -m ""

docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

bench: setup
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done
