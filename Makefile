# Thin names for run.py, which also works without make: python3 run.py demo
PYTHON ?= python3
ARGS ?=

.PHONY: help demo test test-long test-isa check docs setup
help:
	@$(PYTHON) run.py --help
demo:  ## run the demonstration
	@$(PYTHON) run.py demo $(ARGS)
test:  ## the whole test suite; ARGS go to pytest
	@$(PYTHON) run.py test $(ARGS)
test-long: ## walk all of what `test` samples; ARGS go to pytest
	@$(PYTHON) run.py test-long $(ARGS)
test-isa: ## tests as older and newer processors compute; ARGS go to pytest
	@$(PYTHON) run.py test-isa $(ARGS)
check: ## format, lint, types, import layers, fast tests
	@$(PYTHON) run.py check $(ARGS)
docs: ## the pages as a site in build/docs/site, links and anchors checked
	@$(PYTHON) run.py docs
setup: ## only make .venv
	@$(PYTHON) run.py setup
