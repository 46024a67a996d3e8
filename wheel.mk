# The wheel as a user gets it: included by the Makefile, which sets BIN and the target `setup`.

.PHONY: wheel-test

wheel-test: setup ## Build the wheel, install it without a compiler, run it on each ISA and on the reference
	$(BIN)/python scripts/wheel_test.py
