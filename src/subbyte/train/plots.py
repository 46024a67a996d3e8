"""The plots of a run, drawn with matplotlib where it is installed (ImportError where it isn't)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subbyte.train.checkpoint import publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    # Figure without pyplot: nothing global, no display needed.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG; the file appears whole."""
    aside = path.with_name(path.name + ".part")
    figure.savefig(aside, format="png", dpi=_DPI)
    publish(aside, path)


def plot_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Loss and accuracy against epoch from the `epoch` rows of one or more runs: test solid, train dashed."""
    figure = new_figure(10, 4)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for i, (name, rows) in enumerate(runs.items()):
        rows = [row for row in rows if row["kind"] == "epoch"]
        epochs = [row["epoch"] for row in rows]
        for axes, metric, factor in ((loss_axes, "loss", 1), (accuracy_axes, "accuracy", 100)):
            for split, line in (("test", "-"), ("train", "--")):
                values = [row[f"{split}_{metric}"] * factor for row in rows]
                axes.plot(epochs, values, line, color=f"C{i}", marker=".", label=f"{name} {split}".strip())
    for axes, label in ((loss_axes, "loss (nats)"), (accuracy_axes, "accuracy (%)")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


def plot_channels(layers: Mapping[str, tuple[Any, Any]], path: Path) -> None:
    """For each layer (ranges, exponents): log2 of each channel's max |g| over the layer's largest, coloured by group.

    A dash marks each exponent e in use at -e octaves, the upper end of its group. Channels that are all zero are left
    out. exponents may be None: one group.
    """
    figure = new_figure(max(7.0, 1.2 + 0.45 * len(layers)), 5)
    axes = figure.subplots()
    for i, (ranges, exponents) in enumerate(layers.values()):
        octaves = (ranges / ranges.max()).log2()
        groups = exponents if exponents is not None else ranges.new_zeros(len(ranges)).long()
        alive = ranges > 0
        # Side by side across the layer's column, in the channels' order, so that equal ranges don't hide each other.
        across = i + 0.7 * ((alive.cumsum(0) - 0.5) / max(int(alive.sum()), 1) - 0.5)
        for e in sorted(set(groups.tolist())):
            chosen = alive & (groups == e)
            axes.plot(across[chosen], octaves[chosen], ".", color=f"C{e % 10}", markersize=4)
            axes.hlines(-e, i - 0.4, i + 0.4, color=f"C{e % 10}", linewidth=0.8)
    axes.set_xticks(range(len(layers)), list(layers), rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("octaves below the layer's largest |gradient|")
    axes.set_title("max |gradient| of each channel; lines: upper ends of the groups in use", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    save_figure(figure, path)
