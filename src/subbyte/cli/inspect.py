"""`subbyte inspect`: how the gradients of each layer spread over its channels, and what quantization does to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subbyte.cli.options import CheckpointOption, DataDirOption, DeviceOption, JsonOption, RunArgument, make_console

if TYPE_CHECKING:
    from rich.table import Table

    from subbyte.report import LayerReport


def command(
    run: RunArgument,
    checkpoint: CheckpointOption = "last",
    data_dir: DataDirOption = None,
    device: DeviceOption = None,
    timed: Annotated[bool, typer.Option(help="Time each layer against torch's float layer on this machine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show each layer in one training step of a copy of the model: gradient ranges, groups, SQNR, clipped and zero %.

    inspect.png in the run folder shows the range of every channel and the boundaries of the groups.
    """
    from subbyte.train import RunError, load_run, measure
    from subbyte.train.build import load_dataset
    from subbyte.train.folder import to_json
    from subbyte.train.plots import plot_channels

    trained = load_run(run, checkpoint=checkpoint, device=device)
    dataset = load_dataset(trained.config, data_dir=data_dir, expected=trained.info)
    if not trained.quantized:
        raise RunError(f"{run} was trained in float: it has no quantized layer to inspect")
    report = measure(trained.model, dataset, trained.config, timed)
    layers = [layer for layer in report.layers.values() if layer.gradient_ranges is not None]
    if as_json:
        typer.echo(to_json([_row(layer) for layer in layers]))
        return
    console = make_console()
    console.print(_table(layers, f"{run}, {checkpoint} checkpoint, one batch of {trained.config.batch_size}"))
    console.print(report.summary(), highlight=False, markup=False, soft_wrap=True)
    path: Path = trained.folder.path / "inspect.png"
    try:
        plot_channels({layer.name: (layer.gradient_ranges, layer.gradient_exponents) for layer in layers}, path)
        where = f"plot: {path}"
    except ImportError:
        where = "no plot: matplotlib is not installed; pip install 'subbyte[plot]'"
    console.print(where, highlight=False, markup=False, soft_wrap=True)


def _row(layer: LayerReport) -> dict[str, Any]:
    """The figures of one layer: ranges of max |g| by channel, octaves between the largest and the smallest not zero."""
    ranges = layer.gradient_ranges
    assert ranges is not None
    alive = ranges[ranges > 0]
    row: dict[str, Any] = {
        "name": layer.name,
        "type": layer.type,
        "channels": len(ranges),
        "dead_channels": len(ranges) - len(alive),
        "range_min": ranges.min().item(),
        "range_median": ranges.median().item(),
        "range_max": ranges.max().item(),
        "octaves": (alive.max() / alive.min()).log2().item() if len(alive) else 0.0,
    }
    for role, stats in layer.operands.items():
        row[role] = {
            "format": stats.format,
            "sqnr_db": stats.sqnr_db,
            "clipped_pct": stats.clipped_pct,
            "zero_pct": stats.zero_pct,
            "groups_used": stats.groups_used,
        }
    return row if layer.gain is None else {**row, "gain": layer.gain.to_dict()}


def _table(layers: list[LayerReport], title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    caption = "g: gradient of the layer's output, range: a channel's largest |g|, x: activation, w: weight"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD)
    for heading in ("layer", "g", "channels"):
        table.add_column(heading, overflow="fold")
    for heading in ("range min", "median", "max", "octaves", "groups", "SQNR dB x / w / g", "clipped % g", "zero % g"):
        table.add_column(heading, justify="right", overflow="fold")
    timed = any(layer.gain for layer in layers)
    if timed:
        table.add_column("gain", justify="right")
    for layer in layers:
        row = _row(layer)
        gradient = row["gradient"]
        sqnr = (f"{row[role]['sqnr_db']:.1f}" if role in row else "-" for role in ("activation", "weight", "gradient"))
        dead = f" ({row['dead_channels']} zero)" if row["dead_channels"] else ""
        table.add_row(
            layer.name,
            gradient["format"],
            f"{row['channels']}{dead}",
            f"{row['range_min']:.2e}",
            f"{row['range_median']:.2e}",
            f"{row['range_max']:.2e}",
            f"{row['octaves']:.1f}",
            str(gradient["groups_used"]),
            " / ".join(sqnr),
            f"{gradient['clipped_pct']:.2f}",
            f"{gradient['zero_pct']:.0f}",
            *([f"{layer.gain.ratio:.2f}" if layer.gain else "-"] if timed else []),
        )
    return table
