"""Rows of the resource table: measured, compared with plain INT and FP16, kept as data in results/rtl.jsonl.

A row says what it is in `kind`, and rows of different kinds are never compared:

    synthesis   yosys for Xilinx 7-series: an estimate before place and route
    routed      nextpnr for Lattice ECP5: a proxy, another family with LUT4s
    vivado      a report that a user brought (vivado.py)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .resources_cases import FP16_ROWS, SECTIONS, Case
from .synth import Synthesis, to_rtlil, tool_version

KINDS = {
    "synthesis": "yosys synthesis for xc7, not routed; delay is logic only, without nets",
    "routed": "nextpnr place and route for Lattice ECP5-45k (LUT4): a proxy, not xc7",
    "vivado": "Vivado report brought by a user",
}


@dataclass(frozen=True)
class Row:
    """One measurement. Counts that a kind does not know are None.

    key              what was measured: hash of circuit, flow and tool (synth.Synthesis)
    lut_over_plain   lut / plain's lut - 1; None where plain takes less than a LUT for each MAC: see lut_more
    lut_more         lut - plain's lut
    lut_under_fp16, lut_under_fp32   1 - lut / lut of the smaller FP16 unit with that accumulator in the section
    """

    case: str
    unit: str
    kind: str
    tool: str
    macs: int
    plain: str
    key: str = ""
    lut: int | None = None
    lc: int | None = None
    ff: int | None = None
    dsp: int | None = None
    carry4: int | None = None
    muxf: int | None = None
    memory: int | None = None
    bram: int | None = None
    delay_ps: int | None = None
    fmax_mhz: float | None = None
    fmax_seeds: tuple[float, ...] = ()
    lut_over_plain: float | None = None
    lut_more: int | None = None
    lut_under_fp16: float | None = None
    lut_under_fp32: float | None = None

    @property
    def section(self) -> str:
        """array, array-dsp, element, element-dsp or dot."""
        return self.case.split("/")[0]


def measure(case: Case, cache: Path | None, known: Mapping[str, Row] | None = None) -> Row:
    """Synthesize a case for xc7, unless the cache or a `known` row (by key) has it already."""
    job = Synthesis(to_rtlil(case.make()), case.dsp, case.delay)
    found = (known or {}).get(job.key)
    if found is not None:
        return replace(found, case=case.name, unit=case.label, macs=case.macs, plain=case.plain)
    counts = asdict(job.run(cache))
    return Row(case.name, case.label, "synthesis", tool_version(), case.macs, case.plain, job.key, **counts)


def measure_all(
    cases: Iterable[Case],
    cache: Path | None,
    known: Iterable[Row] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Rows of all cases, compared; `say` hears the name of each case before it is measured."""
    by_key = {row.key: row for row in known if row.key}
    rows = []
    for case in cases:
        say(case.name)
        rows.append(measure(case, cache, by_key))
    return compared(rows)


def fp16_lut(rows: Mapping[str, Row], section: str, total: str) -> int | None:
    """LUTs of the smaller FP16 unit of a section with that accumulator ("fp16", "fp32"); None without one."""
    names = [f"{section}/{name}" for name in FP16_ROWS[total]] + [f"{section}/fp16-fused"] * (total == "fp32")
    counts = [lut for name in names if name in rows and (lut := rows[name].lut) is not None]
    return min(counts, default=None)


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows with their comparisons filled in, each within its kind."""
    out = []
    for row in rows:
        peers = {r.case: r for r in rows if r.kind == row.kind}
        plain = peers[row.plain].lut if row.plain in peers else None
        under = {}
        for total in FP16_ROWS:
            reference = fp16_lut(peers, row.section, total)
            known = reference is not None and row.lut is not None
            under[total] = 1 - row.lut / reference if known else None  # type: ignore[operator]
        out.append(
            replace(
                row,
                lut_over_plain=row.lut / plain - 1 if plain and plain >= row.macs and row.lut is not None else None,
                lut_more=row.lut - plain if plain is not None and row.lut is not None else None,
                lut_under_fp16=under["fp16"],
                lut_under_fp32=under["fp32"],
            )
        )
    return out


# ------------------------------------------------------------------------------------------------------- as data


def write_jsonl(rows: Iterable[Row], path: Path, command: str) -> None:
    """One JSON object a line, keys as in Row, plus study and command."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"study": "rtl", **asdict(row), "command": command}) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a file that write_jsonl wrote; [] when there is none."""
    if not path.exists():
        return []
    known = {f.name for f in fields(Row)}
    rows = []
    for line in path.read_text().splitlines():
        data: dict[str, Any] = {k: v for k, v in json.loads(line).items() if k in known}
        rows.append(Row(**{**data, "fmax_seeds": tuple(data.get("fmax_seeds", ()))}))
    return rows


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Old rows with those of the same kind and case replaced, new ones added at the end; compared again."""
    table = {(r.kind, r.case): r for r in old}
    table |= {(r.kind, r.case): r for r in new}
    return compared(list(table.values()))


# ------------------------------------------------------------------------------------------------------- as a table

COLUMNS = (
    "unit",
    "LUT over plain INT",
    "LUT",
    "LC",
    "FF",
    "DSP",
    "logic ns",
    "LUT vs FP16 → fp16",
    "LUT vs FP16 → fp32",
)
VIVADO_COLUMNS = (
    "unit",
    "LUT over plain INT",
    "LUT",
    "FF",
    "DSP",
    "Fmax MHz",
    "LUT vs FP16 → fp16",
    "LUT vs FP16 → fp32",
)
ROUTED_COLUMNS = ("unit", "LUT4 over plain INT", "LUT4", "FF", "MULT18", "Fmax MHz, median", "of seeds")


def columns(kind: str) -> tuple[str, ...]:
    """Headings of a table of rows of the kind."""
    return {"routed": ROUTED_COLUMNS, "vivado": VIVADO_COLUMNS}.get(kind, COLUMNS)


def cells(row: Row) -> tuple[str, ...]:
    """The texts of a row under columns(row.kind): the overhead over itself is "=", over no LUT at all a difference."""
    if row.case == row.plain:
        over = "="
    elif row.lut_over_plain is not None:
        over = f"{100 * row.lut_over_plain:+.1f} %"
    else:
        over = "" if row.lut_more is None else f"{row.lut_more:+d} LUT"

    def count(n: int | None) -> str:
        return "" if n is None else f"{n}"

    def under(share: float | None) -> str:
        return "" if share is None or "/fp16" in row.case else f"{-100 * share:+.1f} %"

    fmax = "" if row.fmax_mhz is None else f"{row.fmax_mhz:.1f}"
    fp16 = (under(row.lut_under_fp16), under(row.lut_under_fp32))
    if row.kind == "routed":
        seeds = ", ".join(f"{f:.1f}" for f in row.fmax_seeds)
        return (row.unit, over, count(row.lut), count(row.ff), count(row.dsp), fmax, seeds)
    if row.kind == "vivado":
        return (row.unit, over, count(row.lut), count(row.ff), count(row.dsp), fmax, *fp16)
    delay = "" if row.delay_ps is None else f"{row.delay_ps / 1000:.2f}"
    return (row.unit, over, count(row.lut), count(row.lc), count(row.ff), count(row.dsp), delay, *fp16)


def sections(rows: Sequence[Row], kind: str) -> list[tuple[str, list[Row]]]:
    """(title, rows) of each section that has rows of the kind."""
    found = [(title, [r for r in rows if r.kind == kind and r.section == name]) for name, title in SECTIONS.items()]
    return [(title, part) for title, part in found if part]


def markdown(rows: Sequence[Row]) -> str:
    """The whole table as Markdown."""
    lines: list[str] = []
    for kind, what in KINDS.items():
        for title, part in sections(rows, kind):
            lines += [f"### {title}", "", f"{what}; {part[0].tool}.", ""]
            names = columns(kind)
            lines += ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
            lines += ["| " + " | ".join(cells(row)) + " |" for row in part]
            lines.append("")
    return "\n".join(lines)
