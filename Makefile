# Everything runs in .venv, which is made again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
READY := .venv/.ready
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check

demo: $(READY)
	.venv/bin/dspyc demo

test: $(READY)
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal --durations=15

check: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# torch comes first and pinned, so that pip takes the build that it is configured for and no later step replaces it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install $$(grep '^torch==' constraints.txt)
	$(PIP) install --editable '.[dev]' --constraint constraints.txt
	touch $(READY)
