# Fuzzing the kernels: included by the Makefile, which sets BIN and the target `setup`.
# FUZZ_SECONDS says how long; python tests/fuzz --help has the rest, and a finding prints how to see it again.

FUZZ_SECONDS ?= 120

.PHONY: fuzz

fuzz: setup ## Compare every kernel with its reference on random calls, for FUZZ_SECONDS
	$(BIN)/python tests/fuzz --seconds $(FUZZ_SECONDS)
