# Other machines' kernels under this one's tests: included by the Makefile, which sets BIN and the target `setup`.
#
# The kernels are compiled for the other machine, the way that a wheel is, and run in a process of their own; torch, the
# wrappers and the reference stay in Python here (tests/native_runner.py).

ARM := build/arm
EVEX := build/evex
EMULATED := build/emulated
QEMU := qemu-aarch64 -L /usr/aarch64-linux-gnu
KERNEL_TESTS := tests/test_kernel_table.py tests/test_integer_ops.py $(wildcard tests/test_backend_cpu_*.py)
ON_RUNNER := PYTHONPATH="tests:$$PYTHONPATH" $(BIN)/python -m pytest -p native_runner
RUNNER_FLAGS := -std=c++17 -O1 -Wall -Wextra -pthread

.PHONY: test-arm test-avxvnni test-emulated arm-tools emulated-tools

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

# The library as it was built, on a Xeon with every ISA of x86-64, and on an Arrow Lake: that one has AVX-VNNI and no
# AVX-512, and the library must notice. Tests that name a plainer ISA are left to `make test`.
LIBRARY := src/subbyte/_lib/libsubbyte.so
ON_BOCHS = $(ON_RUNNER) --runner "$(BIN)/python tests/emulated_cpu.py --cpu $(1) $(EMULATED)/runner $(LIBRARY)"
NEWER := -k "not portable and not avx2"

test-emulated: setup emulated-tools ## Run the tests of AVX-VNNI's and AVX-512's kernels on emulated CPUs that have them
	mkdir -p $(EMULATED)
	$${CXX:-c++} $(RUNNER_FLAGS) -DONE_THREAD tests/native_runner.cc -o $(EMULATED)/runner -ldl
	$(call ON_BOCHS,sapphire_rapids) tests/emulation
	SUBBYTE_REQUIRE_ISAS="avxvnni avx512vnni" $(call ON_BOCHS,sapphire_rapids) $(NEWER) $(KERNEL_TESTS)
	SUBBYTE_REQUIRE_ISAS=avxvnni $(call ON_BOCHS,arrow_lake) $(NEWER) tests/test_kernel_table.py

# The emulator alone, of the version whose C functions and CPU numbers tests/emulated_cpu.py knows.
emulated-tools: setup
	@if [ "$$(uname -sm)" != "Linux x86_64" ]; then echo "make test-emulated is for Linux on x86-64"; exit 1; fi
	@PYTHONPATH="tests:$$PYTHONPATH" $(BIN)/python -c "import emulated_cpu; emulated_cpu.library()" 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet bochscpu-python==0.4.0
