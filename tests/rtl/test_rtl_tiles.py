"""8 x 8 arrays in Verilator: hundreds of matrix products against int64 arithmetic in C++, every group layout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from subbyte.rtl import units
from subbyte.rtl.synth import to_verilog

pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")

TILES = 300

BENCH = r"""
#include <cstdint>
#include <cstdio>
#include <random>
#include "Vtop.h"
constexpr int N = 8, BITS = %(bits)d, GROUPS = %(groups)d, LATENCY = %(latency)d, TILES = %(tiles)d;
constexpr bool HORNER = %(horner)d, ANY_ORDER = %(any_order)d;
constexpr int64_t Q = (1 << (BITS - 1)) - 1, MASK = (1 << BITS) - 1;
std::mt19937 random_bits(20);
int below(int n) { return int(random_bits() %% unsigned(n)); }
Vtop dut;
long cycles = 0;
void slot(const int* a, const int* b, bool valid, bool doubling, int left, bool drain) {
  uint64_t pa = 0, pb = 0;
  for (int i = 0; i < N; i++) {
    pa |= uint64_t((a ? a[i] : below(1 << BITS)) & MASK) << (BITS * i);
    pb |= uint64_t((b ? b[i] : below(1 << BITS)) & MASK) << (BITS * i);
  }
  dut.a = pa; dut.b = pb; dut.valid = valid; dut.double_ = doubling; dut.left = left; dut.drain = drain;
  dut.clk = 0; dut.eval(); dut.clk = 1; dut.eval(); cycles++;
}
int main() {
  long wrong = 0, rows = 0;
  dut.rst = 0;
  for (int i = 0; i < N + LATENCY + 4; i++) slot(nullptr, nullptr, 0, 0, 0, 1);
  for (int tile = 0; tile < TILES; tile++) {
    int depth = 1 + below(96), extreme = below(4);
    int64_t want[N][N] = {};
    int previous = GROUPS - 1;
    for (int k = 0; k < depth; k++) {
      int a[N], b[N];
      for (int i = 0; i < N; i++) {
        a[i] = extreme ? below(2 * Q + 1) - Q : Q;
        b[i] = extreme ? below(2 * Q + 1) - Q : (tile & 4 ? Q : -Q);
      }
      int left = 0;
      if (ANY_ORDER) left = below(GROUPS);
      if (HORNER) {  // largest left shift first; groups may be empty and cost a slot that only doubles
        left = previous;
        if (k == 0 || below(16) == 0) left = below(previous + 1);
        for (; previous > left + 1; previous--) slot(nullptr, nullptr, 0, 1, 0, 0);
      }
      slot(a, b, 1, HORNER && previous != left, left, 0);
      previous = HORNER ? left : previous;
      if (below(8) == 0) slot(nullptr, nullptr, 0, 0, below(GROUPS), 0);  // a gap in the stream
      for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) want[i][j] += (int64_t(a[i]) * b[j]) << left;
    }
    if (HORNER) for (; previous > 0; previous--) slot(nullptr, nullptr, 0, 1, 0, 0);
    int row = N;
    for (int i = 0; i < N + LATENCY; i++) {
      slot(nullptr, nullptr, 0, 0, 0, i < N);
      // out is what stands in the last row before the next edge; out_valid says that it is being drained
      dut.eval();
      if (!dut.out_valid) continue;
      row--; rows++;
      for (int j = 0; j < N; j++) if (int32_t(dut.out[j]) != int32_t(want[row][j])) wrong++;
    }
    if (row != 0) { std::printf("tile %%d: %%d rows missing\n", tile, row); return 1; }
  }
  std::printf("%%ld cycles, %%ld rows, %%ld wrong\n", cycles, rows, wrong);
  return wrong != 0 || rows != long(TILES) * N;
}
"""


@pytest.mark.parametrize("variant", ["plain", "horner", "folded", "product"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_tiles(bits: int, variant: str, tmp_path: Path) -> None:
    groups = 1 if variant == "plain" else 4
    array = units.array(units.spec_for(bits, groups, variant), 8, 8)
    settings = {
        "bits": bits,
        "groups": groups,
        "latency": array.latency,
        "tiles": TILES,
        "horner": int(variant == "horner"),
        "any_order": int(variant in ("folded", "product")),
    }
    # `double` is a keyword of C++: Verilator would rename the port.
    (tmp_path / "top.v").write_text(_renamed(to_verilog(array)))
    (tmp_path / "bench.cpp").write_text(BENCH % settings)
    options = ["--cc", "--exe", "--build", "-O3", "-Wno-fatal", "--top-module", "top", "-Mdir", "obj"]
    built = subprocess.run(["verilator", *options, "top.v", "bench.cpp"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    done = subprocess.run([tmp_path / "obj" / "Vtop"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{8 * TILES} rows, 0 wrong" in done.stdout


def _renamed(verilog: str) -> str:
    import re

    return re.sub(r"\bdouble\b", "double_", verilog)
