"""`subbyte rtl report`: measure what is missing, print the table, write results/rtl.jsonl and results/rtl.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from subbyte.rtl.resources import Row


def command(
    results: Annotated[Path, typer.Option(help="Folder of rtl.jsonl and rtl.md, read and written.")] = Path("results"),
    only: Annotated[
        list[str] | None, typer.Option(help="Cases whose names begin so (array, element/int6...); may repeat.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Synthesize even what is known already.")] = False,
    routed: Annotated[bool, typer.Option("--routed", help="Also place and route elements for ECP5 (a proxy).")] = False,
    vivado: Annotated[
        list[Path] | None, typer.Option(help="Merge the reports that a run of those scripts left there; may repeat.")
    ] = None,
    write_vivado: Annotated[
        Path | None,
        typer.Option(help="Write Vivado scripts for the cases into this folder and stop (never run by us)."),
    ] = None,
) -> None:
    """Resource table: LUT, FF, DSP and logic delay of ShiftMM, plain INT, MX, FP8 and FP16 units in one flow.

    A circuit is synthesized once: rows of results/rtl.jsonl and the user's cache are reused while circuit, flow and
    tool stay the same. From nothing it takes about half an hour on one core.
    """
    from rich.console import Console

    from subbyte.rtl.resources import markdown, measure_all, merged, read_jsonl, write_jsonl
    from subbyte.rtl.resources_cases import cases
    from subbyte.rtl.synth import default_cache

    console = Console()
    old = read_jsonl(results / "rtl.jsonl")
    chosen = [c for c in cases().values() if not only or any(c.name.startswith(prefix) for prefix in only)]
    if not chosen and only:
        raise typer.BadParameter(f"no case begins with {' or '.join(only)}; there are {', '.join(cases())}")
    if write_vivado is not None:
        from subbyte.rtl.vivado import write_projects

        folders = write_projects(chosen, write_vivado)
        console.print(f"{len(folders)} Vivado projects in {write_vivado}; run `sh {write_vivado}/run_all.sh`")
        return
    with console.status("synthesis") as status:
        cache = None if again else default_cache()
        new = measure_all(chosen, cache, [] if again else old, lambda name: status.update(f"synthesis of {name}"))
        if routed:
            from subbyte.rtl.ecp5 import measure_routed

            new += measure_routed(cache, lambda name: status.update(f"place and route of {name}"))
    for folder in vivado or ():
        from subbyte.rtl.vivado import rows_from_folder

        new += rows_from_folder(folder, cases())
    order = {name: i for i, name in enumerate(cases())}
    rows = sorted(
        (r for r in merged(old, new) if r.case in order), key=lambda r: (r.kind != "synthesis", order[r.case])
    )
    write_jsonl(rows, results / "rtl.jsonl", "subbyte rtl report")
    (results / "rtl.md").write_text(HEADER + markdown(rows))
    shown = {c.name for c in chosen}
    show(console, [r for r in rows if r.case in shown])
    console.print(f"{len(rows)} rows in {results / 'rtl.jsonl'}, as Markdown in {results / 'rtl.md'}")


HEADER = """# Resources of the arithmetic units

Written by `subbyte rtl report`. **Synthesis estimates: not placed, not routed, not Vivado.** LUT counts LUT1..LUT6
cells before two small ones share a site, and LUTs used as memory; LC is yosys' estimate after sharing. All accumulate
in 32 bits (int32, FP32) unless the row says otherwise. Operand buffers, control and interfaces are counted nowhere.
The floating-point units know neither NaN, infinity nor (serial and pipelined ones) subnormals, and the final sum of a
pipelined adder's partial sums is not charged: both favour floating point. "LUT vs FP16" compares with the smaller of
the FP16 units of the same section that have that accumulator.

"""


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print one rich table for each section and kind."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from subbyte.rtl.resources import KINDS, cells, columns, sections

    for kind, what in KINDS.items():
        for title, part in sections(rows, kind):
            table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
            table.caption, table.caption_justify = f"{what}; {part[0].tool}", "left"
            table.add_column("unit", min_width=26)
            for name in columns(kind)[1:]:
                table.add_column(name, justify="right")
            for row in part:
                table.add_row(*cells(row))
            console.print(table)
