"""Writes a core to a folder: Verilog, testbench with vectors, manifest, README; runs the testbench where Icarus is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from ..numerics import accumulator_bits
from . import dspbounds, requantizer, testbench
from .dsp48 import DATA_LATENCY
from .dsptile import EDGE
from .element import stages
from .gemm import GemmCore, default_array
from .gemmconfig import REGISTERS, GemmConfig
from .operands import READ_LATENCY
from .product import Requantize, random_product
from .synth import run_yosys, to_rtlil, tool_version
from .testbench import Job

TOP = "subbyte_gemm"
STREAM = 0x0123456789ABCDEF

MANY_CYCLES = 4000
"""From here on Verilator's build pays off."""


def jobs(config: GemmConfig, m: int, n: int, k: int) -> list[Job]:
    """The whole product without stalls, for its cycle count; then small ones with stalls and each kind of rescaling."""
    spec = config.spec
    code = spec.a
    small = (min(m, config.rows + 1), min(n, 2 * config.cols - 1), min(k, 5 * spec.lanes + 1))
    drop = max(0, accumulator_bits(spec.a, spec.b, small[2], spec.groups - 1) - code.bits)
    rows = torch.arange(small[0]) % 4
    out = [
        Job("accumulators, no stalls", random_product(config, m, n, k), False),
        Job("accumulators in natural order, stalls", random_product(config, *small, seed=1, groups=1), True),
        Job("to nearest, a shift for each row", random_product(config, *small, Requantize(code, drop, rows), 2), True),
    ]
    if config.stochastic:
        out.append(Job("stochastic", random_product(config, *small, Requantize(code, drop, rows, STREAM), 3), True))
    return out


def manifest(
    config: GemmConfig, sizes: tuple[int, int, int], target: str, simulator: str | None, cycles: list[int] | None
) -> dict:
    """What someone who instantiates the core must know, as data."""
    spec = config.spec
    ideal = config.ideal_cycles(*sizes)
    pipeline = requantizer.latency(config.stochastic)
    edge = 1 + (spec.variant == "folded" and spec.groups > 1)
    return {
        "top": TOP,
        "target": target,
        "tool": tool_version(),
        "unit": {**asdict(spec), "a": str(spec.a), "b": str(spec.b)},
        "array": {
            "rows": config.rows,
            "cols": config.cols,
            "dsp": config.dsp,
            "macs_per_cycle": config.rows * config.cols * spec.lanes,
        },
        "ranges": {
            "a": [spec.a.qmin, spec.a.qmax],
            "b": [spec.b.qmin, spec.b.qmax],
            "left_shift": [0, spec.groups - 1],
            "accumulator": [-(1 << spec.acc_bits - 1), (1 << spec.acc_bits - 1) - 1],
            "requantize_shift": [0, 63],
        },
        "bounds": {
            "max_k_of_accumulator": spec.max_k,
            "max_k_of_buffers": config.max_k,
            "max_b_words": config.max_panels * config.max_slots,
            "max_row_shifts": config.row_shifts,
            "dsp_chunk_units": dspbounds.chunk_units(spec) if config.dsp else None,
            "dsp_chunk_k_worst": dspbounds.chunk_units(spec) >> (spec.groups - 1) if config.dsp else None,
            "accumulator_bits_at_max_k": accumulator_bits(spec.a, spec.b, config.max_k, spec.groups - 1),
        },
        "latency_cycles": {
            "sequencer_to_array": 1 + READ_LATENCY,
            "array": EDGE + DATA_LATENCY if config.dsp else edge + stages(spec) + 1,
            "rescaling": pipeline + 1,
        },
        "throughput": {
            "sizes_mnk": list(sizes),
            "ideal_cycles": ideal,
            "schedule_cycles": config.schedule_cycles(*sizes),
            "simulated_cycles": None if cycles is None else cycles[0],
            "efficiency": None if cycles is None else round(ideal / cycles[0], 4),
            "outputs_per_cycle": config.post_lanes,
        },
        "streams": {
            "s_axis_a": {"bits": config.a_beat_bits, "beat": f"{config.rows} rows x {spec.lanes} codes of one slot"},
            "s_axis_b": {"bits": config.b_beat_bits, "beat": f"{config.cols} columns x {spec.lanes} codes of one slot"},
            "s_axis_e": {"bits": 8, "beat": "left shift of a slot; then shift of a row"},
            "m_axis_c": {"bits": config.word_bits * config.post_lanes, "beat": f"{config.post_lanes} outputs of a row"},
        },
        "registers": REGISTERS,
        "verified": {
            "against": "subbyte.numerics and subbyte.integer, bit for bit",
            "testbench": None if simulator is None else f"passed in {simulator}",
            "place_and_route": "not run",
        },
    }


def run_icarus(folder: Path, timeout: float = 1200.0) -> list[int]:
    """Build and run the testbench of `folder` with Icarus: cycles of each job. RuntimeError where it fails."""
    sources = sorted(path.name for path in folder.glob("*.v"))
    _call(["iverilog", "-g2012", "-o", "tb.vvp", "-s", "tb", *sources], folder, timeout)
    cycles = _cycles(_call(["vvp", "-n", "tb.vvp"], folder, timeout))
    (folder / "tb.vvp").unlink()
    return cycles


def run_verilator(folder: Path, timeout: float = 1200.0) -> list[int]:
    """The same with Verilator: half a minute to build, then some 10^5 cycles a second. Not for the DSP48E1's model."""
    options = ["--binary", "--timing", "-Wno-fatal", "--top-module", "tb", "-Mdir", "tb.obj"]
    _call(["verilator", *options, "tb.v", f"{TOP}.v"], folder, timeout)
    cycles = _cycles(_call(["tb.obj/Vtb"], folder, timeout))
    shutil.rmtree(folder / "tb.obj")
    return cycles


def run_testbench(config: GemmConfig, folder: Path, cycles: int) -> tuple[str | None, list[int] | None]:
    """(simulator, cycles of each job), or (None, None) where none is installed. Verilator for more than MANY_CYCLES."""
    if cycles > MANY_CYCLES and not config.dsp and shutil.which("verilator") is not None:
        return "verilator", run_verilator(folder)
    if shutil.which("iverilog") is not None:
        return "icarus", run_icarus(folder)
    return None, None


def _call(command: list[str], folder: Path, timeout: float) -> str:
    executable = str(folder / command[0]) if "/" in command[0] else command[0]
    run = subprocess.run([executable, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=timeout)
    if run.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{run.stdout[-1000:]}{run.stderr[-2000:]}")
    return run.stdout


def _cycles(report: str) -> list[int]:
    if "PASS" not in report.splitlines():
        raise RuntimeError(f"the testbench failed:\n{report[-2000:]}")
    return [int(c) for c in re.findall(r"^job \d+ cycles (\d+)$", report, re.M)]


def dsp_model() -> str:
    """yosys' own model of the DSP48E1, for simulation."""
    import pyosys

    source = (Path(str(pyosys.__file__)).parent / "share" / "xilinx" / "cells_sim.v").read_text()
    found = re.search(r"module DSP48E1\b.*?\nendmodule", source, re.S)
    if found is None:
        raise RuntimeError("this version of pyosys brings no model of the DSP48E1")
    return f"`timescale 1ns/1ps\n{found.group(0)}\n"


def verilog(core: GemmCore) -> str:
    """The core with continuous assignments for its processes.

    These have values from time 0 on; an `always @*` waits for a first change, and what it drives is unknown until then.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.il").write_text(to_rtlil(core, TOP))
        run_yosys(
            ["read_rtlil in.il", "proc -norom", "memory_collect", "opt_clean", "write_verilog -noattr out.v"], path
        )
        return (path / "out.v").read_text()


def generate(config: GemmConfig, out: Path, sizes: tuple[int, int, int], target: str, run: bool = True) -> dict:
    """Fill `out`; -> the manifest. BoundError before anything is written."""
    config.require(*sizes)
    todo = jobs(config, *sizes)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{TOP}.v").write_text(verilog(GemmCore(config, default_array(config, primitive=target == "xc7"))))
    for name, text in testbench.files(config, todo, TOP).items():
        (out / name).write_text(text)
    if config.dsp:
        (out / "dsp48e1_sim.v").write_text(dsp_model())
    simulator, cycles = run_testbench(config, out, config.schedule_cycles(*sizes)) if run else (None, None)
    facts = manifest(config, sizes, target, simulator, cycles)
    (out / "manifest.json").write_text(json.dumps(facts, indent=2) + "\n")
    (out / "README.md").write_text(readme(config, facts))
    return facts


def readme(config: GemmConfig, facts: dict) -> str:
    spec, t = config.spec, facts["throughput"]
    stream = "\n".join(
        f"    .{name}_tdata({name}_tdata), .{name}_tvalid({name}_tvalid), .{name}_tready({name}_tready),"
        for name in ("s_axis_a", "s_axis_b", "s_axis_e", "m_axis_c")
    )
    measured = (
        f"{t['simulated_cycles']} simulated ({facts['verified']['testbench']})"
        if t["simulated_cycles"]
        else "not simulated here"
    )
    registers = "\n".join(f"| 0x{offset:02x} | {name} |" for name, offset in REGISTERS.items())
    return f"""# {TOP}: {spec.variant}, {spec}, {config.rows} x {config.cols}

acc[m, n] = sum_k a[m, k] b[k, n] 2^left[k], {spec.acc_bits}-bit accumulators; K at most {config.max_k}.
`manifest.json` holds every width, bound and latency. The core has not been placed and routed.

```verilog
{TOP} gemm (
    .clk(clk), .rst(rst),                    // synchronous reset, active high
{stream}
    .m_axis_c_tlast(m_axis_c_tlast),
    .s_axil_awaddr(awaddr), .s_axil_awprot(3'b0), .s_axil_awvalid(awvalid), .s_axil_awready(awready),
    .s_axil_wdata(wdata), .s_axil_wstrb(4'hf), .s_axil_wvalid(wvalid), .s_axil_wready(wready),
    .s_axil_bresp(bresp), .s_axil_bvalid(bvalid), .s_axil_bready(bready),
    .s_axil_araddr(araddr), .s_axil_arprot(3'b0), .s_axil_arvalid(arvalid), .s_axil_arready(arready),
    .s_axil_rdata(rdata), .s_axil_rresp(rresp), .s_axil_rvalid(rvalid), .s_axil_rready(rready)
);
```

A product: write the sizes, FLAGS (1 grouped, 2 row shifts, 4 requantize, 8 stochastic) and what they need, then 1 to
START. Send A ({config.a_beat_bits}-bit beats), B ({config.b_beat_bits}-bit) and shifts in any order of time; read C
until tlast. START reads as status: 1 busy, 2 done, 4 refused (sizes beyond the buffers).

| offset | register |
|---|---|
{registers}

{t["sizes_mnk"]} (M, N, K): {t["ideal_cycles"]} cycles ideal, {measured}.
Testbench: `iverilog -g2012 -s tb -o tb.vvp *.v && vvp -n tb.vvp` prints PASS.
{"dsp48e1_sim.v is a model for simulation (from yosys): leave it out of synthesis." if config.dsp else ""}
"""
