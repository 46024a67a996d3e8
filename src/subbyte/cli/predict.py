"""`subbyte predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from subbyte.cli.options import CheckpointOption, DeviceOption, JsonOption, RunArgument, make_console


def command(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show for each image.")] = 3,
    checkpoint: CheckpointOption = "last",
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Classify image files with a trained run: the likeliest classes and their probabilities."""
    import json

    import torch
    from rich.table import Table

    from subbyte.data import preprocess_image
    from subbyte.train import load_run

    trained = load_run(run, checkpoint=checkpoint, device=device)
    inputs = [preprocess_image(path, trained.info) for path in images]  # all are read before any is classified
    results: list[tuple[Path, list[tuple[str, float]]]] = []
    for path, x in zip(images, inputs):
        with torch.no_grad():
            probabilities = trained.model(x.to(trained.config.device))[0].double().softmax(0)
        best = probabilities.topk(min(top, trained.info.num_classes))
        names = [trained.info.classes[i] for i in best.indices.tolist()]
        results.append((path, list(zip(names, best.values.tolist()))))
    if as_json:
        rows = [
            {"image": str(path), "top": [{"class": name, "probability": p} for name, p in ranked]}
            for path, ranked in results
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("image", "class", "probability")
    for path, ranked in results:
        for i, (name, p) in enumerate(ranked):
            table.add_row(str(path) if i == 0 else "", name, f"{p:.2%}")
        table.add_section()
    make_console().print(table)
