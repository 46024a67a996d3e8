"""Plots of studies, drawn with matplotlib where it is installed (ImportError where it isn't)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subbyte.study.select import Row, differences, ordered, values, where
from subbyte.study.statistics import interval
from subbyte.train.plots import new_figure, save_figure

if TYPE_CHECKING:
    from subbyte.study.study import Study


def plot_variants(study: Study, rows: list[Row], prefix: Path) -> list[Path]:
    """<prefix>-variants.png: each variant's paired difference to the baseline, seeds as dots, with its interval."""
    groups = ordered(rows, "group")
    drawn = [group for group in groups if len(ordered(where(rows, group=group), "variant")) > 1]
    if not drawn:
        return []
    heights = [len(ordered(where(rows, group=group), "variant")) for group in drawn]
    figure = new_figure(8, 1.1 * len(drawn) + 0.28 * sum(heights))
    panels = figure.subplots(len(drawn), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, group in zip(panels, drawn, strict=True):
        variants = [v for v in ordered(where(rows, group=group), "variant") if v != study.baseline]
        for place, variant in enumerate(variants):
            deltas = [d * study.factor for d in differences(rows, variant, study.baseline, group)]
            if not deltas:
                continue
            i = interval(deltas)
            axes.plot(deltas, [place] * len(deltas), ".", color="0.6", markersize=5)
            axes.errorbar(i.mean, place, xerr=i.half, fmt="o", color="C0", capsize=3, markersize=5)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_yticks(range(len(variants)), variants, fontsize=8)
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(group, fontsize=9)
    panels[-1].set_xlabel(f"{study.metric} minus {study.baseline} (points of {study.unit}), 95 % interval")
    path = prefix.with_name(prefix.name + "-variants.png")
    save_figure(figure, path)
    return [path]


def plot_lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float | None]]],
    path: Path,
    *,
    x: str,
    y: str,
    title: str = "",
    log: bool = False,
) -> Path:
    """name -> (x, y, half an interval or None for each): one line each, with error bars. x are counts."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for i, (name, (xs, ys, halves)) in enumerate(series.items()):
        bars = [half or 0.0 for half in halves]
        axes.errorbar(xs, ys, yerr=bars if any(bars) else None, fmt="o-", color=f"C{i}", capsize=3, label=name)
    axes.locator_params("x", integer=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)
    return path


def plot_panels(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    path: Path,
    *,
    x: str,
    y: str,
) -> Path:
    """panel -> name -> (x, y): lines in panels below one another."""
    figure = new_figure(7, 1 + 3.5 * len(panels))
    for axes, (title, lines) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True):
        for i, (name, (xs, ys)) in enumerate(lines.items()):
            axes.plot(xs, ys, color=f"C{i % 10}", label=name)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(figure, path)
    return path


def plot_curves_of(rows: list[Row], prefix: Path, factor: float, y: str) -> list[Path]:
    """<prefix>-curves.png: the mean `curve` (a value for each epoch) of each variant, a panel for each group."""
    found = [row for row in rows if row.get("curve")]
    groups = ordered(found, "group")
    if not found:
        return []
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for group in groups:
        panel = panels.setdefault(group, {})
        for variant in ordered(where(found, group=group), "variant"):
            curves = [row["curve"] for row in where(found, group=group, variant=variant)]
            mean = [factor * sum(at) / len(at) for at in zip(*curves)]
            panel[variant] = (list(range(1, len(mean) + 1)), mean)
    path = prefix.with_name(prefix.name + "-curves.png")
    return [plot_panels(panels, path, x="epoch", y=y)]


def by_number(
    rows: list[Row], field: str, factor: float = 1.0, value: str = "value"
) -> tuple[list[float], list[float], list[float | None]]:
    """For plot_lines: the mean of `value` with its interval at each number in `field`."""
    xs = sorted({row[field] for row in rows if values([row], value)})
    intervals = [interval(values(where(rows, **{field: x}), value)) for x in xs]
    halves = [None if i.half is None else i.half * factor for i in intervals]
    return xs, [i.mean * factor for i in intervals], halves
