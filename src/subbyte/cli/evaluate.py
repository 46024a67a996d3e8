"""`subbyte eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from subbyte.cli.options import CheckpointOption, DataDirOption, DeviceOption, JsonOption, RunArgument, make_console

if TYPE_CHECKING:
    from rich.table import Table

    from subbyte.train import Evaluation


def command(
    run: RunArgument,
    checkpoint: CheckpointOption = "last",
    data_dir: DataDirOption = None,
    device: DeviceOption = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch; default: as in training.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a run on its task's test set: loss, top-1, top-5 and the accuracy of each class."""
    import json

    from subbyte.train import evaluate, load_run
    from subbyte.train.build import load_dataset

    trained = load_run(run, checkpoint=checkpoint, device=device)
    config = trained.config
    dataset = load_dataset(config, data_dir=data_dir, expected=trained.info)
    evaluation = evaluate(trained.model, dataset, batch_size=batch_size or config.batch_size, device=config.device)
    if as_json:
        progress = trained.progress
        where = {"run": str(run), "checkpoint": checkpoint, "epoch": progress.epoch, "step": progress.step}
        typer.echo(json.dumps({**where, **evaluation.to_dict()}, indent=2))
    else:
        console = make_console()
        console.print(f"{run}, {checkpoint} checkpoint", highlight=False, markup=False, soft_wrap=True)
        console.print(_table(evaluation))


def _table(evaluation: Evaluation) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("")
    table.add_column("images", justify="right")
    table.add_column("value", justify="right")
    table.add_row("loss (nats)", "", f"{evaluation.loss:.4f}")
    table.add_row("top-1", f"{evaluation.images:,}", f"{evaluation.top1:.2%}")
    if evaluation.top5 is not None:
        table.add_row("top-5", f"{evaluation.images:,}", f"{evaluation.top5:.2%}")
    table.add_section()
    for name, images, accuracy in zip(evaluation.classes, evaluation.class_images, evaluation.class_accuracy):
        table.add_row(name, f"{images:,}", "none" if accuracy is None else f"{accuracy:.2%}")
    return table
