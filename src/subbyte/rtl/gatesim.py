"""One stimulus, two simulators: Amaranth's for the source, Icarus Verilog's for what synthesis made of it.

The source is tested against numerics elsewhere; here the mapped netlist (LUTs, carry cells, flip-flops, DSP48E1, with
the cell models that yosys brings) must give the same outputs in every cycle. Needs the program `iverilog`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.lib.wiring import In, Out

Step = Mapping[str, int]

CELLS = (
    *(f"LUT{i}" for i in range(1, 7)),
    *("CARRY4", "MUXF7", "MUXF8", "INV", "FDRE", "FDSE", "SRL16E", "SRLC32E", "RAM32M", "RAM64M", "DSP48E1"),
)


def have_icarus() -> bool:
    """Whether this machine can run compiled Verilog."""
    return shutil.which("iverilog") is not None and shutil.which("vvp") is not None


@dataclass(frozen=True)
class Ports:
    """Names and widths of a unit's inputs and outputs, in the order of its signature."""

    inputs: dict[str, int]
    outputs: dict[str, int]

    @staticmethod
    def of(unit: Any) -> Ports:
        """The ports of a component."""
        widths = {name: len(as_bits(getattr(unit, name))) for name in unit.signature.members}
        flows = {name: member.flow for name, member in unit.signature.members.items()}
        return Ports(
            {n: w for n, w in widths.items() if flows[n] == In}, {n: w for n, w in widths.items() if flows[n] == Out}
        )

    def unpack(self, word: int) -> dict[str, int]:
        """A packed word of all outputs, the first one lowest, taken apart."""
        out = {}
        for name, width in self.outputs.items():
            out[name] = word & ((1 << width) - 1)
            word >>= width
        return out


def as_bits(port: Any) -> Any:
    """A port as a plain vector, whatever its layout."""
    return port.as_value() if hasattr(port, "as_value") else port


def pack(values: Sequence[int], bits: int) -> int:
    """Values side by side, the first one lowest, each in two's complement.

    >>> hex(pack([1, -1], 4))
    '0xf1'
    """
    return sum((int(v) & ((1 << bits) - 1)) << (i * bits) for i, v in enumerate(values))


def random_steps(unit: Any, n: int, seed: int, rare: Mapping[str, float] | None = None) -> list[dict[str, int]]:
    """n steps of random inputs. rare: the probability that a one-bit input is set; otherwise 1/2.

    Every tenth step sets each wide input to all zeros, all ones, or only its top bit: extremes of any format in it.
    """
    rng = np.random.default_rng(seed)
    steps = []
    for t in range(n):
        step = {}
        for name, width in Ports.of(unit).inputs.items():
            if rare and name in rare:
                step[name] = int(rng.random() < rare[name])
            elif t % 10 == 9 and width > 1:
                step[name] = (0, (1 << width) - 1, 1 << (width - 1))[rng.integers(0, 3)]
            else:
                step[name] = int.from_bytes(rng.bytes((width + 7) // 8), "little") & ((1 << width) - 1)
        steps.append(step)
    return steps


def trace_source(unit: Any, steps: Sequence[Step]) -> list[dict[str, int]]:
    """All outputs after each clock edge, inputs still applied, in Amaranth's simulator."""
    from amaranth.sim import Simulator

    ports, trace = Ports.of(unit), []

    async def bench(ctx: Any) -> None:
        for step in steps:
            for name, value in step.items():
                ctx.set(as_bits(getattr(unit, name)), value)
            await ctx.tick()
            trace.append({n: ctx.get(as_bits(getattr(unit, n))) & ((1 << w) - 1) for n, w in ports.outputs.items()})

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return trace


def cell_models() -> str:
    """yosys' simulation models of the 7-series cells in CELLS, without their timing blocks."""
    import pyosys

    assert pyosys.__file__ is not None
    source = (Path(pyosys.__file__).parent / "share" / "xilinx" / "cells_sim.v").read_text()
    models = []
    for name in CELLS:
        found = re.search(rf"module {name}\b.*?endmodule", source, re.S)
        assert found, name
        text = found.group(0)
        models.append(text if "`ifdef YOSYS" in text else re.sub(r"specify.*?endspecify", "", text, flags=re.S))
    return "`timescale 1ns/1ps\n" + "\n".join(models)


def bench_verilog(ports: Ports, steps: Sequence[Step], modules: Sequence[str]) -> tuple[str, str]:
    """(testbench, stimulus in hex): the modules run side by side on one stimulus; a line each cycle, outputs in hex."""
    width = sum(ports.inputs.values())
    out_width = sum(ports.outputs.values())
    stimulus = []
    for step in steps:
        word, at = 0, 0
        for name, w in ports.inputs.items():
            word |= (step[name] & ((1 << w) - 1)) << at
            at += w
        stimulus.append(f"{word:x}")
    connections, at = [], 0
    for name, w in ports.inputs.items():
        connections.append(f".{name}(v[{at + w - 1}:{at}])")
        at += w
    instances = []
    for i, module in enumerate(modules):
        wires, at = [], 0
        for name, w in ports.outputs.items():
            wires.append(f".{name}(o{i}[{at + w - 1}:{at}])")
            at += w
        clocked = [".clk(clk)", ".rst(1'b0)"]
        instances.append(
            f"wire [{out_width - 1}:0] o{i};\n{module} u{i}({', '.join([*clocked, *connections, *wires])});"
        )
    words = ", ".join(f"o{i}" for i in range(len(modules)))
    text = f"""`timescale 1ns/1ps
module bench;
reg clk = 0;
reg [{width - 1}:0] stimulus [0:{len(steps) - 1}];
reg [{width - 1}:0] v = 0;
integer i;
{chr(10).join(instances)}
initial begin
  $readmemh("stimulus.hex", stimulus);
  for (i = 0; i < {len(steps)}; i = i + 1) begin
    v = stimulus[i]; #5 clk = 1; #5 $display("{" ".join(["%h"] * len(modules))}", {words}); clk = 0;
  end
  $finish;
end
endmodule
"""
    return text, "\n".join(stimulus) + "\n"


def run_icarus(
    ports: Ports, steps: Sequence[Step], sources: Sequence[str], modules: Sequence[str] = ("top",)
) -> list[list[int | None]]:
    """The packed outputs of each module in each cycle; None where a bit is unknown."""
    bench, stimulus = bench_verilog(ports, steps, modules)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "stimulus.hex").write_text(stimulus)
        names = []
        for i, text in enumerate([bench, *sources]):
            (path / f"s{i}.v").write_text(text)
            names.append(f"s{i}.v")
        compiled = subprocess.run(
            ["iverilog", "-g2012", "-s", "bench", "-o", "bench.vvp", *names], cwd=path, capture_output=True, text=True
        )
        if compiled.returncode:
            raise RuntimeError(f"iverilog: {compiled.stderr[-2000:]}")
        done = subprocess.run(["vvp", "-n", "bench.vvp"], cwd=path, capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines() if re.fullmatch(r"[0-9a-fxzXZ ]+", line)]
    return [[None if set(word.lower()) & set("xz") else int(word, 16) for word in row] for row in rows]


def trace_netlist(ports: Ports, netlist: str, steps: Sequence[Step]) -> list[dict[str, int] | None]:
    """As trace_source, of a mapped netlist (synth.netlist_xc7) in Icarus; None for a cycle with unknown bits."""
    words = run_icarus(ports, steps, [netlist, cell_models()])
    return [None if word is None else ports.unpack(word) for (word,) in words]


def toggles(ports: Ports, netlist: str, steps: Sequence[Step]) -> float:
    """Changes of net bits per cycle in a mapped netlist, the clock left out: a proxy for switching energy.

    Zero-delay simulation: no glitches; every net counts alike, whatever its length or load.
    """
    bench, stimulus = bench_verilog(ports, steps, ["top"])
    bench = bench.replace("initial begin\n", 'initial begin\n  $dumpfile("t.vcd"); $dumpvars(1, bench.u0);\n', 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for name, text in {"stimulus.hex": stimulus, "b.v": bench, "n.v": netlist, "c.v": cell_models()}.items():
            (path / name).write_text(text)
        command = ["iverilog", "-g2012", "-s", "bench", "-o", "b.vvp", "b.v", "n.v", "c.v"]
        subprocess.run(command, cwd=path, capture_output=True, check=True)
        subprocess.run(["vvp", "-n", "b.vvp"], cwd=path, capture_output=True, check=True)
        return count_changes((path / "t.vcd").read_text(), "clk") / len(steps)


def count_changes(vcd: str, clock: str) -> int:
    """Bits that change in a value change dump after its first values, aliases counted once, the clock not at all.

    >>> count_changes("$var wire 1 ! clk $end\\n$var wire 2 # a $end\\n#0\\n0!\\nb0 #\\n#5\\n1!\\nb11 #\\n", "clk")
    2
    """
    widths = {code: int(w) for w, code in re.findall(r"\$var \w+ (\d+) (\S+) ", vcd)}
    skipped = set(re.findall(rf"\$var \w+ 1 (\S+) {clock} ", vcd))
    last: dict[str, str] = {}
    changes = 0
    for line in vcd.splitlines():
        if line[:1] in "01xz" and line[1:] in widths:
            code, value = line[1:], line[0]
        elif line[:1] == "b" and " " in line:
            value, code = line[1:].split()
            value = value.rjust(widths[code], value[0] if value[0] in "xz" else "0")
        else:
            continue
        if code in last and code not in skipped:
            changes += sum(a != b for a, b in zip(last[code], value))
        last[code] = value
    return changes
