# The oldest torch and libraries that pyproject.toml allows: included by the Makefile, which sets PYTHON.
# For an old torch the index of Python packages has no build without CUDA: it is a download of 3 GB, and 7 GB of disk.

OLDEST := build/oldest

.PHONY: test-oldest

test-oldest: ## Run the tests with the oldest torch and libraries that pyproject.toml allows
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) scripts/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt -e ".[plot,images]" \
	  pytest hypothesis scikit-learn expecttest griffelib
	$(OLDEST)/bin/python -m pytest -m "not slow" tests
