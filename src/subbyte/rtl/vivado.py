"""Vivado out-of-context runs for the ZC706's xc7z045: scripts to run, and a reader of what they report.

NOT RUN by the authors: no Vivado was at hand. The scripts use plain project-less commands; the reader is tested on
reports in Vivado's format that were written by hand. What a user's run reports enters the table as rows of kind
"vivado", beside the synthesis estimates and never mixed with them.

    subbyte rtl report --write-vivado DIR         one folder for each unit, and run_all.sh
    sh DIR/run_all.sh                             where Vivado is
    subbyte rtl report --vivado DIR               merge
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .resources import Row
from .resources_cases import Case
from .synth import cache_key, to_rtlil, to_verilog

PART = "xc7z045ffg900-2"
"""The device of the ZC706 board."""

PERIOD_NS = 4.0

_TCL = """# {name}: out-of-context synthesis, placement and routing for {part}.
# NOT RUN by the authors of this file: no Vivado was at hand. Tell us what it needs if it needs a change.
#   vivado -mode batch -source run.tcl
set_part {part}
read_verilog top.v
read_xdc -mode out_of_context clock.xdc
synth_design -top top -part {part} -mode out_of_context -flatten_hierarchy rebuilt{options}
opt_design
place_design
phys_opt_design
route_design
report_utilization -file utilization.rpt
report_timing_summary -max_paths 1 -file timing.rpt
report_power -file power.rpt
"""

_XDC = """create_clock -name clk -period {period:.3f} [get_ports clk]
"""

_RUN_ALL = """#!/bin/sh
# Runs Vivado in each folder beside this file, one after another. NOT RUN by the authors.
cd "$(dirname "$0")" || exit 1
for folder in */; do
  (cd "$folder" && vivado -mode batch -nojournal -source run.tcl > vivado.log 2>&1) || echo "failed: $folder"
done
"""


class ReportError(ValueError):
    """A text that is not the Vivado report it should be, or one of another circuit."""


def folder_name(case: str) -> str:
    """The folder of a case: its name without a slash."""
    return case.replace("/", "__")


def write_projects(cases: Iterable[Case], out: Path) -> list[Path]:
    """Verilog, constraint, Tcl and a manifest for each case; -> the folders."""
    folders = []
    for case in cases:
        folder = out / folder_name(case.name)
        folder.mkdir(parents=True, exist_ok=True)
        options = "" if case.dsp else " -max_dsp 0"
        (folder / "top.v").write_text(to_verilog(case.make()))
        (folder / "run.tcl").write_text(_TCL.format(name=case.name, part=PART, options=options))
        (folder / "clock.xdc").write_text(_XDC.format(period=PERIOD_NS))
        manifest = {"case": case.name, "unit": case.label, "part": PART, "circuit": circuit_key(case), "run": False}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        folders.append(folder)
    (out / "run_all.sh").write_text(_RUN_ALL)
    return folders


def circuit_key(case: Case) -> str:
    """What a report must have been made from."""
    return cache_key(to_rtlil(case.make()))


@dataclass(frozen=True)
class Utilization:
    """Of `report_utilization`: slice LUTs (logic and memory), flip-flops, DSPs, block RAM tiles."""

    tool: str
    device: str
    state: str
    lut: int
    lut_memory: int
    ff: int
    carry4: int | None
    dsp: int
    bram_tiles: float


def parse_utilization(text: str) -> Utilization:
    """Read the text of `report_utilization`, of a 7-series or UltraScale device; ReportError when it is none."""
    rows: dict[str, float] = {}
    for name, used in re.findall(r"^\|\s*([^|]+?)\*?\s*\|\s*([<\d.]+)\s*\|", text, re.M):
        rows.setdefault(name, float(used.lstrip("<")))

    def head(name: str) -> str:
        found = re.search(rf"^\|\s*{name}\s*:\s*(.+?)\s*$", text, re.M)
        return found.group(1).rstrip("| ") if found else ""

    def first(*names: str) -> int:
        for name in names:
            if name in rows:
                return int(rows[name])
        raise ReportError(f"no row {' or '.join(names)} in the report: is it of report_utilization?")

    primitives = dict(re.findall(r"^\|\s*([A-Z][A-Z0-9]+)\s*\|\s*(\d+)\s*\|", text, re.M))
    return Utilization(
        tool=re.sub(r"\s*\(.*", "", head("Tool Version")),
        device=head("Device"),
        state=head("Design State"),
        lut=first("Slice LUTs", "CLB LUTs"),
        lut_memory=first("LUT as Memory"),
        ff=first("Register as Flip Flop", "Slice Registers", "CLB Registers"),
        carry4=int(primitives["CARRY4"]) if "CARRY4" in primitives else None,
        dsp=first("DSPs"),
        bram_tiles=rows.get("Block RAM Tile", 0.0),
    )


@dataclass(frozen=True)
class Timing:
    """Of `report_timing_summary`: worst slack and the clock's period; fmax_mhz = 1000 / (period - slack)."""

    worst_slack_ns: float
    period_ns: float

    @property
    def fmax_mhz(self) -> float:
        """The highest clock frequency that the routed circuit would meet."""
        return 1000 / (self.period_ns - self.worst_slack_ns)


def parse_timing(text: str) -> Timing:
    """Read the text of `report_timing_summary` of a design with one clock; ReportError when it is none."""
    slack = re.search(r"^\s*WNS\(ns\).*\n[\s-]+\n\s*(-?[\d.]+)\s", text, re.M)
    clock = re.search(r"^clk\s+\{[^}]*\}\s+([\d.]+)\s", text, re.M)
    if slack is None or clock is None:
        raise ReportError("no worst negative slack or no clock `clk`: is it of report_timing_summary?")
    return Timing(float(slack.group(1)), float(clock.group(1)))


def row_from_reports(case: Case, utilization: str, timing: str | None) -> Row:
    """A row of the table from the two reports' texts; a report of another device is refused."""
    used = parse_utilization(utilization)
    wanted = PART.split("ff")[0]
    if wanted not in used.device.replace("-", ""):
        raise ReportError(f"the report is of device {used.device or 'unknown'}, the table's rows are of {PART}")
    fmax = parse_timing(timing).fmax_mhz if timing is not None else None
    return Row(
        case.name,
        case.label,
        "vivado",
        f"{used.tool}, {used.device}, {used.state or 'state unknown'}",
        case.macs,
        case.plain,
        lut=used.lut,
        ff=used.ff,
        dsp=used.dsp,
        carry4=used.carry4,
        memory=used.lut_memory,
        bram=round(2 * used.bram_tiles),
        fmax_mhz=None if fmax is None else round(fmax, 1),
    )


def rows_from_folder(out: Path, cases: Mapping[str, Case]) -> list[Row]:
    """Rows of each unit's folder under `out` that holds utilization.rpt.

    Refused: a folder whose circuit is no longer the one that the case builds now.
    """
    rows = []
    for manifest_path in sorted(out.glob("*/manifest.json")):
        folder = manifest_path.parent
        if not (folder / "utilization.rpt").exists():
            continue
        manifest: dict[str, Any] = json.loads(manifest_path.read_text())
        case = cases.get(manifest["case"])
        if case is None or manifest["circuit"] != circuit_key(case):
            raise ReportError(f"{folder}: made from another version of {manifest['case']}; write the scripts again")
        timing = folder / "timing.rpt"
        text = timing.read_text() if timing.exists() else None
        rows.append(row_from_reports(case, (folder / "utilization.rpt").read_text(), text))
    if not rows:
        raise ReportError(f"no */utilization.rpt with a manifest.json beside it in {out}")
    return rows
