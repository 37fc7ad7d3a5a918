# make search: install, then run the quick start.  make test: install, then run the tests.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed

.PHONY: search test lint clean

search: $(INSTALLED)
	$(VENV)/bin/nas search quickstart

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# installed once; again only when pyproject.toml changes, so that everything else works offline
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nas-codesign needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV)
