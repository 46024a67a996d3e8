"""Synthesis of an Amaranth circuit through pyosys: counts for Xilinx 7-series, Verilog, the mapped netlist.

What it is: `synth_xilinx -family xc7` of yosys, which needs nothing but two pip packages. What it is not: place and
route. Every figure here is a synthesis estimate; the delay is the sum of the cells' delays and knows no net.

Pitfalls that this file works around, each seen:
  - the last step of synth_xilinx (`check`) blackboxes the cell models, after which `sta` reports nonsense: the flow
    stops before it
  - abc9 proves each mapping by SAT (`abc9.verify`), which takes minutes for multipliers: switched off here; netlists
    are simulated against the reference instead (gatesim.py)
  - with DSPs, abc9 may meet a wire's name twice and stop (`count_id(wire->name) == 0`): inner names are hidden first
  - yosys keeps global state and may abort the process: each run is a child process
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

_CHILD = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for line in open(sys.argv[1]):
    if line.strip():
        libyosys.run_pass(line.strip(), design)
"""

_MEMORY_LUTS = {"RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM128X1S": 2, "RAM32X1S": 1}
"""LUTs that a distributed memory cell occupies."""


class SynthesisError(RuntimeError):
    """yosys stopped; the message holds the end of its log."""


@dataclass(frozen=True)
class Resources:
    """What yosys counted. Synthesis estimates, not routed.

    lut       LUT1..LUT6 cells plus the LUTs used as memory or shift register, before two small ones share a LUT6
    lc        yosys' estimate of LUT6 sites after such pairing (`stat -tech xilinx`, plus memory and shift registers)
    ff, dsp   flip-flops, DSP48E1
    carry4    4-bit carry cells (each sits beside 4 LUT6)
    muxf      F7 and F8 multiplexers (free beside the LUTs, but they force a slice)
    memory    the part of `lut` that is distributed memory or a shift register
    bram      half block RAMs (RAMB18E1; a RAMB36E1 counts 2)
    delay_ps  the longest path through cells alone, nets not counted; None when not asked for
    """

    lut: int
    lc: int
    ff: int
    dsp: int
    carry4: int
    muxf: int
    memory: int
    bram: int
    delay_ps: int | None


def tool_version() -> str:
    """The synthesis tool as it is named in result rows and in the cache's keys."""
    return f"yosys {version('pyosys')}"


def to_rtlil(component: Any, name: str = "top") -> str:
    """The circuit as yosys reads it, without source locations: equal circuits give equal text."""
    from amaranth.back import rtlil

    return str(rtlil.convert(component, name=name, emit_src=False))


def run_yosys(commands: Sequence[str], directory: Path) -> str:
    """Run yosys commands in a child process with `directory` as the current folder; -> its log.

    Raises SynthesisError when it stops.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.ys").write_text("\n".join(commands) + "\n")
    process = subprocess.run(
        [sys.executable, "-c", _CHILD, "run.ys"], cwd=directory, capture_output=True, text=True, errors="replace"
    )
    log = process.stdout + process.stderr
    if process.returncode:
        raise SynthesisError(f"yosys stopped with status {process.returncode}:\n{log[-2000:]}")
    return log


def to_verilog(component: Any, name: str = "top") -> str:
    """The circuit as Verilog, written by yosys' own writer as `amaranth.back.verilog` does, without a yosys binary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.il").write_text(to_rtlil(component, name))
        run_yosys(
            ["read_rtlil in.il", "proc -nomux -norom", "memory_collect", "opt_clean", "write_verilog -noattr out.v"],
            path,
        )
        return (path / "out.v").read_text()


def xc7_commands(dsp: bool, delay: bool, netlist: bool) -> list[str]:
    """The yosys commands of the flow: in.il -> stat.json, stat.txt and, when asked for, sta.txt and mapped.v."""
    options = "-family xc7 -top top -noiopad -noclkbuf -flatten" + ("" if dsp else " -nodsp")
    commands = [
        "scratchpad -set abc9.verify 0",
        "read_rtlil in.il",
        *(["hierarchy -top top", "proc", "flatten", "opt_clean", "rename -hide"] if dsp else []),
        f"synth_xilinx {options} -run begin:check",
        "tee -q -o stat.json stat -json",
        "tee -q -o stat.txt stat -tech xilinx",
    ]
    if delay:
        commands.append("tee -q -o sta.txt sta")
    if netlist:
        commands.append("write_verilog -noattr mapped.v")
    return commands


def count_cells(cells: Mapping[str, int], pairing_estimate: int, delay_ps: int | None) -> Resources:
    """Cell counts by type -> Resources.

    >>> count_cells({"LUT6": 10, "LUT2": 2, "RAM32M": 1, "FDRE": 8, "CARRY4": 3}, 11, None).lut
    16
    """
    shift_registers = sum(n for kind, n in cells.items() if kind.startswith("SRL"))
    memory = shift_registers + sum(n * cells.get(kind, 0) for kind, n in _MEMORY_LUTS.items())
    return Resources(
        lut=sum(n for kind, n in cells.items() if re.fullmatch(r"LUT[1-6]", kind)) + memory,
        lc=pairing_estimate + memory,
        ff=sum(n for kind, n in cells.items() if kind.startswith("FD")),
        dsp=cells.get("DSP48E1", 0),
        carry4=cells.get("CARRY4", 0),
        muxf=cells.get("MUXF7", 0) + cells.get("MUXF8", 0),
        memory=memory,
        bram=cells.get("RAMB18E1", 0) + 2 * cells.get("RAMB36E1", 0),
        delay_ps=delay_ps,
    )


def _read_counts(path: Path, delay: bool) -> Resources:
    by_type = json.loads((path / "stat.json").read_text())["design"]["num_cells_by_type"]
    cells = {kind: (n if isinstance(n, int) else n.get("count", 0)) for kind, n in by_type.items()}
    estimate = re.search(r"Estimated number of LCs:\s+(\d+)", (path / "stat.txt").read_text())
    arrival = re.search(r"Latest arrival time in .*? is (\d+)", (path / "sta.txt").read_text()) if delay else None
    return count_cells(cells, int(estimate.group(1)) if estimate else 0, int(arrival.group(1)) if arrival else None)


def netlist_xc7(component: Any, dsp: bool = False) -> str:
    """The mapped netlist (LUTs, carries, flip-flops, DSPs) as Verilog, for gate-level simulation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.il").write_text(to_rtlil(component))
        run_yosys(xc7_commands(dsp, delay=False, netlist=True), path)
        return (path / "mapped.v").read_text()


def default_cache() -> Path:
    """Where results are kept between runs: $SUBBYTE_RTL_CACHE, or subbyte/rtl in the user's cache folder."""
    chosen = os.environ.get("SUBBYTE_RTL_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "subbyte" / "rtl"


def cache_key(*parts: str) -> str:
    """The name under which something made from `parts` (circuit, commands, tool version) is kept."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader never sees half of it, whoever else writes at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as f:
        f.write(text)
    os.replace(f.name, path)


@dataclass(frozen=True)
class Synthesis:
    """A circuit and how it is to be mapped; dsp=False keeps multiplications in the LUT fabric.

    key   hash of the circuit's text (which the Verilog is written from), the flow's commands and the tool's version:
          equal keys, equal counts
    """

    design: str
    dsp: bool = False
    delay: bool = True

    @property
    def commands(self) -> list[str]:
        """The flow."""
        return xc7_commands(self.dsp, self.delay, netlist=False)

    @property
    def key(self) -> str:
        """The name of the result."""
        return cache_key(self.design, *self.commands, tool_version())

    def run(self, cache: Path | None = None) -> Resources:
        """Map and count, unless the cache folder holds the counts already."""
        entry = cache / f"{self.key}.json" if cache else None
        if entry is not None and entry.exists():
            return Resources(**json.loads(entry.read_text()))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            (path / "in.il").write_text(self.design)
            run_yosys(self.commands, path)
            resources = _read_counts(path, self.delay)
        if entry is not None:
            write_atomically(entry, json.dumps(asdict(resources)))
        return resources


def synth_xc7(component: Any, dsp: bool = False, delay: bool = True, cache: Path | None = None) -> Resources:
    """Map a circuit to 7-series cells and count them; with a cache folder, at most once."""
    return Synthesis(to_rtlil(component), dsp, delay).run(cache)
