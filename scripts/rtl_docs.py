"""Fills docs/fpga.md from data: the tables between its markers, and the waveform, drawn from a simulation.

python scripts/rtl_docs.py              tables from results/rtl.jsonl and results/rtl_activity.jsonl, and the waveform
python scripts/rtl_docs.py --activity   first measure switching again (needs iverilog), into rtl_activity.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from subbyte.rtl import baselines_models as models
from subbyte.rtl import units
from subbyte.rtl.baselines_float import FP16
from subbyte.rtl.gatesim import Ports, toggles, trace_source
from subbyte.rtl.resources import markdown, read_jsonl
from subbyte.rtl.resources_cases import cases
from subbyte.rtl.synth import netlist_xc7, tool_version

ROOT = Path(__file__).resolve().parents[1]
DOCS, RESULTS = ROOT / "docs", ROOT / "results"

ACTIVITY_CASES = (
    "element/int4",
    "element/int4-horner",
    "element/int6",
    "element/int6-horner",
    "element/int6-folded",
    "element/int6-product",
    "element/int8",
    "element/fp16-fp16-serial",
    "element/fp16-fp32-serial",
)
CYCLES = 1000
GROUP_LENGTH = 256


def activity_steps(name: str, unit: Any) -> list[dict[str, int]]:
    """One long reduction of random operands: uniform codes, or FP16 within 4 octaves of 1; a new group now and then."""
    rng = np.random.default_rng(1)
    ports = Ports.of(unit).inputs
    if "fp16" in name:
        a, b = (models.random_floats(rng, FP16, CYCLES, 4) for _ in range(2))
    else:
        top = (1 << (ports["a"] - 1)) - 1
        a, b = (rng.integers(-top, top + 1, CYCLES).tolist() for _ in range(2))
    steps = []
    left = 0
    for t in range(CYCLES):
        step = {**dict.fromkeys(ports, 0), "a": a[t], "b": b[t], "drain": int(t < 4)}
        if "horner" in name and t % GROUP_LENGTH == GROUP_LENGTH - 1:
            step["double"] = 1
        if "product" in name:
            left = int(rng.integers(0, 4))
            step["left"] = left
        if "folded" in name:
            step["b"] = int(rng.integers(-31, 32)) << int(rng.integers(0, 4))
        steps.append({n: v & ((1 << ports[n]) - 1) for n, v in step.items()})
    return steps


def measure_activity() -> None:
    """results/rtl_activity.jsonl: toggles of net bits for each multiply-accumulate."""
    table, lines = cases(), []
    for name in ACTIVITY_CASES:
        unit = table[name].make()
        per_cycle = toggles(Ports.of(unit), netlist_xc7(table[name].make()), activity_steps(name, unit))
        row = {
            "study": "rtl_activity",
            "case": name,
            "unit": table[name].label,
            "kind": "zero-delay simulation of the mapped netlist, no glitches, no wire loads",
            "tool": f"{tool_version()}, Icarus Verilog",
            "toggles_per_mac": round(per_cycle, 1),
            "command": "python scripts/rtl_docs.py --activity",
        }
        print(name, row["toggles_per_mac"], flush=True)
        lines.append(json.dumps(row) + "\n")
    (RESULTS / "rtl_activity.jsonl").write_text("".join(lines))


def activity_table() -> str:
    """Markdown of results/rtl_activity.jsonl, each row against plain INT6."""
    path = RESULTS / "rtl_activity.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    base = next(r["toggles_per_mac"] for r in rows if r["case"] == "element/int6")
    lines = ["| unit | net bits that toggle for each MAC | against plain INT6 |", "|---|---:|---:|"]
    lines += [f"| {r['unit']} | {r['toggles_per_mac']:.1f} | {r['toggles_per_mac'] / base:.2f} x |" for r in rows]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- waveform


def horner_trace() -> list[dict[str, Any]]:
    """Seven products in three groups through an INT6 Horner element: inputs and accumulator in each cycle."""
    spec = units.spec_for(6, 4, "horner")
    unit = units.element(spec)
    groups = [(2, [(3, 5), (-2, 4), (1, 1)]), (1, [(2, 2), (-1, 7)]), (0, [(4, -3), (1, 6)])]
    slots: list[dict[str, int]] = [{"a": 0, "b": 0, "double": 0}]
    for index, (_, pairs) in enumerate(groups):
        slots += [{"a": a, "b": b, "double": int(index > 0 and k == 0)} for k, (a, b) in enumerate(pairs)]
    expected = sum((a * b) << left for left, pairs in groups for a, b in pairs)
    slots += [{"a": 0, "b": 0, "double": 0}] * (unit.latency + 1)
    steps = [{**s, "a": s["a"] & 63, "b": s["b"] & 63, "left": 0, "drain": 0, "d_in": 0} for s in slots]
    accs = [v - (1 << 32) if v >> 31 else v for v in (t["acc"] for t in trace_source(unit, steps))]
    assert accs[-1] == expected
    # trace_source looks after the edge that ends a slot: acc of slot t as seen during it is the one before.
    return [{**s, "acc": acc} for s, acc in zip(slots, [0, *accs])]


def waveform_svg(trace: list[dict[str, Any]]) -> str:
    """The trace as an SVG timing diagram."""
    cell, height, left = 56, 40, 90
    width = left + cell * len(trace) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height * 5 + 20}" font-family="monospace" '
        'font-size="13">',
        f'<rect width="{width}" height="{height * 5 + 20}" fill="white"/>',
    ]
    for i, name in enumerate(("clk", "a", "b", "double", "acc")):
        y = 15 + i * height
        lines.append(f'<text x="8" y="{y + 18}">{name}</text>')
        if name == "clk":
            edges = "".join(f"h4 v-22 h{cell // 2} v22 h{cell // 2 - 4}" for _ in trace)
            lines.append(f'<path d="M{left} {y + 24} {edges}" fill="none" stroke="#444"/>')
        elif name == "double":
            level, path = 0, f"M{left} {y + 24}"
            for t in trace:
                path += f" v{-22 if t[name] > level else 22 if t[name] < level else 0} h{cell}"
                level = t[name]
            lines.append(f'<path d="{path}" fill="none" stroke="#b3261e" stroke-width="2"/>')
        else:
            for n, t in enumerate(trace):
                x = left + n * cell
                outline = f"M{x} {y + 13} l4 -11 h{cell - 8} l4 11 l-4 11 h{8 - cell} z"
                lines.append(
                    f'<path d="{outline}" fill="#eef3fb" stroke="#335"/>'
                    f'<text x="{x + cell // 2}" y="{y + 18}" text-anchor="middle">{t[name]}</text>'
                )
    return "\n".join([*lines, "</svg>", ""])


def insert(text: str, name: str, body: str) -> str:
    """The text with what stands between <!-- name --> and <!-- /name --> replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    if not pattern.search(text):
        raise SystemExit(f"docs/fpga.md has no markers <!-- {name} --> ... <!-- /{name} -->")
    return pattern.sub(lambda m: m.group(1) + body.rstrip() + "\n" + m.group(2), text)


def main() -> None:
    if "--activity" in sys.argv[1:]:
        measure_activity()
    (DOCS / "fpga-waveform.svg").write_text(waveform_svg(horner_trace()))
    page = DOCS / "fpga.md"
    text = insert(page.read_text(), "table", markdown(read_jsonl(RESULTS / "rtl.jsonl")))
    page.write_text(insert(text, "activity", activity_table()))


if __name__ == "__main__":
    main()
