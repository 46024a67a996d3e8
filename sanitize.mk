# The kernels' tests on builds with sanitizers: included by the Makefile, which sets BIN and the target `setup`.
#
# The library runs in a process of its own (tests/native_runner.cc): a sanitizer then sees the kernels and their threads,
# and nothing of Python or torch. tests/sanitizers first shows that it finds the faults it is for.

SANITIZER_FLAGS := -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all
ASAN := build/asan
TSAN := build/tsan
export UBSAN_OPTIONS ?= print_stacktrace=1
export ASAN_OPTIONS ?= detect_leaks=0
export TSAN_OPTIONS ?= halt_on_error=1
SANITIZED_TESTS = $(KERNEL_TESTS) tests/test_fuzz.py

.PHONY: sanitize sanitize-memory sanitize-threads

sanitize: sanitize-memory sanitize-threads ## Run the kernels' tests under ASan, UBSan and TSan

sanitize-memory: setup
	$(call sanitized,$(ASAN),-fsanitize=address$(,)undefined)
	$(ON_RUNNER) --runner "$(ASAN)/runner $(ASAN)/libsubbyte.so" -k "memory or undefined" tests/sanitizers
	$(ON_RUNNER) --runner "$(ASAN)/runner $(ASAN)/libsubbyte.so" -k "not crash" $(SANITIZED_TESTS)

# Races need threads: the tests that vary their number, and random calls.
sanitize-threads: setup
	$(call sanitized,$(TSAN),-fsanitize=thread)
	$(ON_RUNNER) --runner "$(TSAN)/runner $(TSAN)/libsubbyte.so" -k race tests/sanitizers
	$(ON_RUNNER) --runner "$(TSAN)/runner $(TSAN)/libsubbyte.so" -k "threads or random_calls" $(SANITIZED_TESTS)

, := ,
define sanitized
	CXXFLAGS="$(SANITIZER_FLAGS) $(2)" $(BIN)/python hatch_build.py --out $(1)
	$${CXX:-c++} $(RUNNER_FLAGS) $(SANITIZER_FLAGS) $(2) tests/native_runner.cc -o $(1)/runner -ldl
endef
