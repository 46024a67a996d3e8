# Other machines' kernels under this one's tests: included by the Makefile, which sets BIN and the target `setup`.
#
# The kernels are compiled for the other machine, the way that a wheel is, and run in a process of their own; torch, the
# wrappers and the reference stay in Python here (tests/native_runner.py).

ARM := build/arm
EVEX := build/evex
QEMU := qemu-aarch64 -L /usr/aarch64-linux-gnu
KERNEL_TESTS := tests/test_kernel_table.py tests/test_integer_ops.py $(wildcard tests/test_backend_cpu_*.py)
ON_RUNNER := PYTHONPATH="tests:$$PYTHONPATH" $(BIN)/python -m pytest -p native_runner
RUNNER_FLAGS := -std=c++17 -O1 -Wall -Wextra -pthread

.PHONY: test-arm test-avxvnni arm-tools

# A CPU with dotprod runs everything; one without it has to do with plain NEON, and to notice that it must.
test-arm: setup arm-tools ## Run the kernels' tests on an ARMv8 build, emulated
	CXX=aarch64-linux-gnu-g++ $(BIN)/python hatch_build.py --out $(ARM)
	aarch64-linux-gnu-g++ $(RUNNER_FLAGS) tests/native_runner.cc -o $(ARM)/runner -ldl
	SUBBYTE_REQUIRE_ISAS="portable neon neondot" $(ON_RUNNER) \
	  --runner "$(QEMU) -cpu max $(ARM)/runner $(ARM)/libsubbyte.so" $(KERNEL_TESTS)
	SUBBYTE_REQUIRE_ISAS="portable neon" $(ON_RUNNER) \
	  --runner "$(QEMU) -cpu cortex-a72 $(ARM)/runner $(ARM)/libsubbyte.so" tests/test_kernel_table.py

arm-tools:
	@if command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; then exit 0; fi >/dev/null; \
	if ! command -v apt-get >/dev/null; then \
	  echo "make test-arm needs aarch64-linux-gnu-g++ and qemu-aarch64: install them; here is no apt-get"; exit 1; fi; \
	if [ "$$(id -u)" = 0 ]; then as=; elif command -v sudo >/dev/null; then as=sudo; else \
	  echo "make test-arm wants to install g++-aarch64-linux-gnu and qemu-user: run it as root"; exit 1; fi; \
	$$as apt-get update -qq && $$as apt-get install -y -qq g++-aarch64-linux-gnu qemu-user

# AVX-VNNI where the CPU has only AVX-512's VNNI: the same kernels, in that encoding (csrc/subbyte.h).
test-avxvnni: setup ## Run the tests of AVX-VNNI's kernels on a CPU that has AVX-512 VNNI instead
	@if grep -qw avx_vnni /proc/cpuinfo; then echo "this CPU has AVX-VNNI: make test runs its kernels"; \
	elif ! grep -w avx512_vnni /proc/cpuinfo | grep -qw avx512vl; then echo "AVX-VNNI not tested: no VNNI on this CPU"; \
	else set -ex; \
	  CXXFLAGS=-DSB_AVXVNNI_BY_EVEX $(BIN)/python hatch_build.py --out $(EVEX); \
	  $${CXX:-c++} $(RUNNER_FLAGS) tests/native_runner.cc -o $(EVEX)/runner -ldl; \
	  SUBBYTE_REQUIRE_ISAS=avxvnni $(ON_RUNNER) --runner "$(EVEX)/runner $(EVEX)/libsubbyte.so" \
	    -k avxvnni tests/test_kernel_table.py tests/test_backend_cpu_products.py tests/test_backend_cpu_convolutions.py; fi
