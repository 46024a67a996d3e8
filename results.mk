# Tables, plots and pages from the rows in results/: nothing is trained. `subbyte reproduce NAME` adds rows.

.PHONY: results
results: setup ## Make tables, plots and pages anew from the rows in results/
	$(BIN)/subbyte reproduce --report
	$(BIN)/python scripts/method_docs.py
	$(BIN)/subbyte reproduce --html docs/results.html
