# All paths are relative and quoted, so the clone may lie anywhere, in a folder with spaces too.
# Another interpreter: make test PYTHON=python3.13

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check fuzz test-export test-oldest test-newest lint bench clean

help: ## Show this list
	@echo 'torchmor: smaller and faster ODE layers for trained PyTorch networks'
	@echo
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'The first run installs everything into .venv (about 1.4 GB). make demo PYTHON=... picks another Python >= 3.11.'

demo: $(INSTALLED) ## Train a small convolutional Neural ODE, reduce it, print the table, write the report
	$(BIN)/torchmor demo

test: lint ## Run all that CI runs: lint, then every test
	$(BIN)/pytest -n 2 --dist loadscope

check: $(INSTALLED) ## Run every law on a few cases, in a minute, for the inner loop
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 -q --quick

N ?= 2000
fuzz: $(INSTALLED) ## Try N=2000 random functions, networks and files; a failing case prints its seed
	$(BIN)/pytest -q tests/fuzz --fuzz $(N)

test-export: $(INSTALLED) ## Export every catalogue entry to every target (half an hour)
	$(BIN)/pytest -n 2 -m '' tests/adapters/export

test-oldest: ## Run the tests with the oldest versions that pyproject.toml allows, in .venv-oldest
	$(call test_in,.venv-oldest,constraints-oldest.txt)

# torch alone is pinned: unpinned it may come with gigabytes for graphics cards.
test-newest: ## Run the tests with the newest versions that pyproject.toml allows but of torch, in .venv-newest
	@mkdir -p build
	@grep '^torch==' constraints.txt > build/constraints-newest.txt
	$(call test_in,.venv-newest,build/constraints-newest.txt)

# A new environment (1) with constraints (2), for the tests in TESTS; anew each time, for newer versions appear.
TESTS ?=
define test_in
	rm -rf $(1)
	"$(PYTHON)" -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) -e '.[experiments,sequences,export,test]'
	$(1)/bin/pytest -n 2 --dist loadscope $(TESTS)
endef

lint: $(INSTALLED) ## Check style, formatting, the dependency rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@mkdir -p build/types/torchmor
	@for folder in engine adapters experiments; do ln -sfn "../../../$$folder" build/types/torchmor/$$folder; done
	$(BIN)/mypy

bench: $(INSTALLED) ## Measure speed and memory on this machine
	$(BIN)/python -m torchmor.experiments.benchmark

clean: ## Remove all environments and all that was built; reports stay
	rm -rf .venv .venv-oldest .venv-newest build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last and says for which folder: in a moved or copied clone .venv would run the old code.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

# One pip call with the constraints: torch is never resolved unpinned.
$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "torchmor: expected Python >= 3.11, got PYTHON=$(PYTHON) ($$("$(PYTHON)" --version 2>&1 || true))," \
	         "do: make $(MAKECMDGOALS) PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	@echo 'torchmor: installing into .venv'
	@if [ -e $(INSTALLED) ] && [ "$$(cat $(INSTALLED))" != "$(CURDIR)" ]; then rm -rf .venv; fi
	@"$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[experiments,sequences,export,test,dev]'
	@echo "$(CURDIR)" > $(INSTALLED)
