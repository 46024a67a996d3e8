"""The rows as tables: on the terminal, and as results/bench.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subbyte.bench import crossover, quantize, rows, targets
from subbyte.bench.rows import Row
from subbyte.bench.targets import Verdict

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    "gemm": "ShiftMM on codes, M x K x N",
    "linear": "Linear forward + backward, quantization included, tokens x inputs x outputs",
    "conv": "conv 3x3 forward + both gradients, quantization included",
    "norm": "L1 norm forward + backward with statistics, against torch's L2 norm",
    "quantize": "quantize, one pass over float32",
    "step": "whole training step, optimizer included",
    "memory": "memory of training",
    "crossover": "where a layer is too small to gain",
}
COLUMNS = ("case", "implementation", "time", "spread", "rate", "of the roof", "against bf16", "against fp32", "notes")
GOAL_COLUMNS = ("case", "implementation", "target", "measured", "quartiles", "verdict")


def seconds(value: float) -> str:
    """A time with its unit and three figures.

    >>> seconds(0.0123), seconds(4.5), seconds(2e-6)
    ('12.3 ms', '4.5 s', '2 us')
    """
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def suites(found: Sequence[Row]) -> list[str]:
    """The suites of which there are rows, in the order of TITLES."""
    present = {row.bench for row in found}
    return [name for name in TITLES if name in present]


def lines(found: Sequence[Row], bench: str) -> list[tuple[str, ...]]:
    """The newest rows of a suite as the cells of COLUMNS."""
    mine = [row for row in found if row.bench == bench]
    out = []
    for key, latest in rows.latest(mine).items():
        case = key[1] + (f" ({key[2]} only)" if key[2] else "")
        for i, row in enumerate(latest):
            out.append((case if i == 0 else "", row.impl, *_figures(row, mine)))
    return out


def _figures(row: Row, found: Sequence[Row]) -> tuple[str, ...]:
    if not row.measured:
        return ("refused" if row.refused else "-", "", "", "", "", "", row.skipped)
    notes = [row.layout] if row.layout else []
    if row.part < 1:
        notes.append(f"{row.part:.2g} of the work: a lower bound")
    if row.integer_share is not None:
        notes.append(f"{row.integer_share:.2%} integer")
    if row.error is not None:
        notes.append(f"error {row.error:.2g}")
    if row.bench == "memory":
        against = _against(row, found, "torch-fp32", "bytes")
        return (f"{(row.bytes or 0) / 2**20:.1f} MiB", "", "", "", "", against, ", ".join(notes))
    assert row.seconds is not None
    time = ("> " if row.part < 1 else "") + seconds(row.seconds)
    return (
        time,
        f"{row.spread or 0:.1%}",
        _rate(row),
        "" if row.roofline is None else f"{row.roofline:.0%}",
        _against(row, found, "torch-bf16"),
        _against(row, found, "torch-fp32"),
        ", ".join(notes),
    )


def _rate(row: Row) -> str:
    amount, unit = (row.ops, "GOP/s") if row.ops else (row.bytes, "GB/s")
    return f"{amount / row.seconds / 1e9:.3g} {unit}" if amount and row.seconds else ""


def _against(row: Row, found: Sequence[Row], peer: str, what: str = "seconds") -> str:
    pair = rows.together(found, row.key, row.impl, peer) if row.impl != peer else None
    bound = "< " if row.part < 1 else ""
    return f"{bound}{rows.ratio(*pair, what=what).median:.2f}x" if pair else ""


def goal_line(verdict: Verdict) -> tuple[str, ...]:
    """A verdict as the cells of GOAL_COLUMNS."""
    goal, ratio = verdict.goal, verdict.ratio
    case = f"{goal.bench}: {goal.case}" + (f" ({goal.forced_isa} only)" if goal.forced_isa else "")
    measured = "-" if ratio is None else f"{'> ' if verdict.at_least else ''}{ratio.median:.2f}"
    around = verdict.why if ratio is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
    return case, verdict.impl, f">= {goal}", measured, around, str(verdict)


def table(found: Sequence[Row], bench: str) -> Table:
    """A rich table of a suite."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(title=TITLES[bench], title_justify="left", box=SIMPLE_HEAD)
    for column in COLUMNS:
        made.add_column(column, overflow="fold", justify="left" if column in ("case", "implementation") else "right")
    for line in lines(found, bench):
        if line[0]:
            made.add_section()
        made.add_row(*line)
    return made


def goal_table(verdicts: Sequence[Verdict]) -> Table:
    """A rich table of verdicts."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(title=summary(verdicts), title_justify="left", box=SIMPLE_HEAD)
    for column in GOAL_COLUMNS:
        made.add_column(column, overflow="fold")
    for verdict in verdicts:
        made.add_row(*goal_line(verdict), style="" if verdict.met else "red")
    return made


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many targets are met."""
    met, absent = sum(v.met for v in verdicts), sum(v.ratio is None for v in verdicts)
    return f"targets: {met} of {len(verdicts)} met, {len(verdicts) - met} missed ({absent} of them without a figure)"


# ---------------------------------------------------------------------------------------------------------- markdown


def page(found: Sequence[Row], plots: Sequence[str] = ()) -> str:
    """results/bench.md, from the rows alone. plots: file names beside it."""
    verdicts = targets.judge(found)
    parts = [
        "# Benchmarks",
        "",
        "Written by `subbyte bench report` from bench.jsonl. All implementations of a case ran in one process, in",
        "turns; a ratio is the median of the ratios of the rounds. The roof is the measured int8 peak of",
        "`torch._int_mm`, or of our own product where torch has no kernel; for norm and quantize, the bandwidth of a",
        "copy. Where there are several memory formats or dtypes to choose from, every implementation, ours or theirs,",
        "has the one that is fastest for it (notes).",
        "Whole steps update by torch's fused SGD (Transformer: AdamW, no dropout), for all of them.",
        "",
        *_where(found),
        "",
        "## Targets",
        "",
        summary(verdicts) + ".",
        "",
        *_markdown(GOAL_COLUMNS, [goal_line(v) for v in verdicts]),
    ]
    parts += [f"![{name}]({name})\n" for name in plots]
    for bench in suites(found):
        parts += ["", f"## {bench}: {TITLES[bench]}", "", *_markdown(COLUMNS, lines(found, bench))]
        if bench == "crossover":
            parts += ["", *_crossover(found)]
        if bench == "quantize":
            parts += ["", f"A pass reads 4 bytes an element and writes 1 (`{quantize.COPY}`: writes 4)."]
    return "\n".join(parts) + "\n"


def _where(found: Sequence[Row]) -> list[str]:
    """The machines and commits behind the rows shown."""
    shown = [row for latest in rows.latest(found).values() for row in latest if row.measured]
    kinds = sorted({(row.machine, row.isa, row.commit, row.command) for row in shown})
    return [f"- {machine}, {isa}, commit {commit}: `{command}`" for machine, isa, commit, command in kinds]


def _markdown(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(columns), "|---" * len(columns) + "|", *(line(cells) for cells in body)]


def _crossover(found: Sequence[Row]) -> list[str]:
    """What the suite says, in words made from its figures: faster is what is faster in three rounds of four."""
    said = []
    slower = []
    for n in crossover.PRODUCTS:
        key = ("crossover", crossover.product_name(n), "")
        pair = rows.together(found, key, crossover.BY_KERNEL, crossover.BY_FLOATS)
        if pair and rows.ratio(*pair).high < 1:
            slower.append(str(n))
    said.append(
        f"The exact float product of the codes is faster than the kernel at n = {', '.join(slower)}."
        if slower
        else "The exact float product of the codes is faster at no size measured: the automatic choice is the kernel."
    )
    for peer in ("torch-fp32", "torch-bf16"):
        gains = []
        for n in crossover.LINEARS:
            pair = rows.together(found, ("crossover", crossover.linear_name(n), ""), "subbyte/int4", peer)
            if pair and rows.ratio(*pair).low > 1:
                gains.append(n)
        said.append(
            f"A Linear n x n with {crossover.ROWS} rows in int4 gains on {peer} from n = {min(gains)}."
            if gains
            else f"No Linear measured here gains on {peer}."
        )
    return said
