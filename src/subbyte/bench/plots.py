"""Plots of the rows, drawn with matplotlib where it is installed (ImportError where it isn't)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from subbyte.bench import quantize, rows, tables, targets
from subbyte.bench.rows import Row
from subbyte.train.plots import new_figure, save_figure

OVERVIEW = "bench.png"
_BASES = ("torch-bf16", "torch-fp32", quantize.COPY)  # the first of these that was measured in a case
_LABELS = {"memory": "bytes of bf16 / bytes", "quantize": "speed over a copy"}


def draw(found: Sequence[Row], folder: Path) -> list[str]:
    """The overview and a plot for each suite that has figures, into the folder; their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    if any(v.ratio for v in targets.judge(found)):
        _overview(found, folder / OVERVIEW)
        names.append(OVERVIEW)
    for bench in tables.suites(found):
        name = f"bench_{bench}.png"
        if _suite(found, bench, folder / name):
            names.append(name)
    return names


def _overview(found: Sequence[Row], path: Path) -> None:
    """Every target's measured ratio over what it asks for: right of the line it is met."""
    verdicts = [v for v in targets.judge(found) if v.ratio is not None]
    figure = new_figure(10, 1.5 + 0.17 * len(verdicts))
    axes = figure.subplots()
    for i, verdict in enumerate(verdicts):
        assert verdict.ratio is not None
        least = verdict.goal.least
        colour = "C2" if verdict.met else "C3"
        axes.plot([verdict.ratio.low / least, verdict.ratio.high / least], [i, i], "-", color=colour, alpha=0.5)
        axes.plot(verdict.ratio.median / least, i, "o", color=colour, markersize=4)
    labels = [
        f"{v.goal.bench}: {v.goal.case} {v.impl.removeprefix('subbyte/')}{' avx2' if v.goal.forced_isa else ''}, "
        f"{v.goal.least:g} x {v.goal.peer}"
        for v in verdicts
    ]
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("measured / target, with quartiles")
    axes.set_title(tables.summary(targets.judge(found)), fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def _suite(found: Sequence[Row], bench: str, path: Path) -> bool:
    """Bars for each case: speed (memory: fewer bytes) relative to a base, bf16 where it was measured. False: none."""
    mine = [row for row in found if row.bench == bench]
    latest = {key: [r for r in case if r.measured] for key, case in rows.latest(mine).items()}
    latest = {key: case for key, case in latest.items() if case}
    if not latest or bench == "crossover":  # a table says it better
        return False
    impls = list(dict.fromkeys(row.impl for case in latest.values() for row in case))
    figure = new_figure(max(7.0, 1.5 + 0.22 * len(latest) * len(impls)), 4.5)
    axes = figure.subplots()
    width = 0.85 / len(impls)
    for j, impl in enumerate(impls):
        places, heights = [], []
        for i, case in enumerate(latest.values()):
            own = next((row for row in case if row.impl == impl), None)
            base = next((row for name in _BASES for row in case if row.impl == name), case[-1])
            if own is not None:
                places.append(i + (j - (len(impls) - 1) / 2) * width)
                heights.append(_height(own, base))
        axes.bar(places, heights, width, label=impl, color=f"C{j % 10}", hatch="//" if j >= 10 else None)
    names = [f"{case}{f' ({isa})' if isa else ''}" for _, case, isa in latest]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    axes.set_ylabel(_LABELS.get(bench, "speed over bf16 (over fp32 where bf16 is missing)"))
    axes.set_title(tables.TITLES[bench], fontsize=10)
    axes.axhline(1, color="black", linewidth=0.6)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    save_figure(figure, path)
    return True


def _height(own: Row, base: Row) -> float:
    if own.bench == "memory":
        return (base.bytes or 0) / (own.bytes or 1)
    return (base.seconds or 0.0) / (own.seconds or 1.0)
