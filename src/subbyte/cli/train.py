"""`subbyte train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subbyte.cli.allocator import keep_freed_memory
from subbyte.cli.options import DataDirOption, DeviceOption, DownloadOption, make_console, read_scheme

if TYPE_CHECKING:
    from subbyte.train import Outcome


def command(
    task: Annotated[
        str | None,
        typer.Option(help="digits (default, needs no data), mnist, fashion-mnist, cifar10, cifar100 or imagefolder."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The network; the default goes by the task.")] = None,
    stem: Annotated[str | None, typer.Option(help="A ResNet's stem: cifar or imagenet.")] = None,
    scheme: Annotated[
        str | None,
        typer.Option(help="float, int8, int6, int4 (default), int4-integer-only or a .json file: `subbyte schemes`."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    data_dir: DataDirOption = None,
    download: DownloadOption = False,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness [0].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, integer-sgd, adamw, adamw8bit, adamw4bit.")] = None,
    momentum: Annotated[float | None, typer.Option(help="SGD's momentum, AdamW's beta1.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Not for biases and norm layers.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine, onecycle or constant.")] = None,
    warmup_epochs: Annotated[
        float | None,
        typer.Option(help="Epochs in which the rate rises; a fraction is allowed."),
    ] = None,
    freeze_norms_epochs: Annotated[
        float | None,
        typer.Option(help="Epochs at the end in which batch norms keep their running statistics [0]."),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="none, shift or crop_flip; the default goes by the task."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side; imagefolder only.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="In [0, 1).")] = None,
    autocast: Annotated[
        str | None, typer.Option(help="bfloat16: floats between layers, in training [float32].")
    ] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between rows of metrics.jsonl.")] = None,
    device: DeviceOption = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's choice.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder. Default: runs/<task>-<model>-<scheme>-seed<k>."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder, bit for bit.")] = False,
    time_limit: Annotated[
        str | None,
        typer.Option(help="Checkpoint and end after this time: 90s, 10m, 1h30m."),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints. Default: each epoch and every 5 minutes."),
    ] = None,
) -> None:
    """Train a network and keep the run in a folder.

    With no flags: smallcnn on the embedded digits in 4-bit integers. Ctrl-C checkpoints and ends; --resume goes on.
    """
    keep_freed_memory()

    from subbyte.train import RunFolder, train
    from subbyte.train.config import DEFAULT_SCHEME, DEFAULT_TASK, Config, default_run_dir
    from subbyte.train.stop import parse_seconds

    given: dict[str, Any] = dict(
        task=task,
        model=model,
        stem=stem,
        epochs=epochs,
        data_dir=str(data_dir.absolute()) if data_dir else None,
        seed=seed,
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup_epochs=warmup_epochs,
        freeze_norms_epochs=freeze_norms_epochs,
        augment=augment,
        image_size=image_size,
        label_smoothing=label_smoothing,
        autocast=autocast,
        log_every=log_every,
        device=device,
        threads=threads,
    )
    given = {name: value for name, value in given.items() if value is not None}
    limit = parse_seconds(time_limit) if time_limit else None
    chosen, scheme_name = read_scheme(scheme or DEFAULT_SCHEME)
    config = Config.for_task(**{"task": DEFAULT_TASK, **given}, scheme=chosen.to_dict())
    run_dir = out or default_run_dir(config, scheme_name)
    if resume:
        # The run's own settings, with what was typed on top, so that only a contradiction is refused.
        if scheme:
            given["scheme"] = chosen.to_dict()
        config = Config.from_dict({**RunFolder(run_dir).config().to_dict(), **given})
    console = make_console()
    outcome = train(
        config,
        run_dir,
        resume=resume,
        time_limit=limit,
        checkpoint_every=checkpoint_every,
        download=download,
        console=console,
    )
    for line in summary(outcome):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def summary(outcome: Outcome) -> list[str]:
    """The closing lines of a run: its result, or how to go on with it."""
    from subbyte.train.stop import format_seconds

    folder = outcome.folder
    where = f"after epoch {outcome.epoch}, step {outcome.step}, {format_seconds(outcome.seconds)}"
    if not outcome.finished:
        return [
            f"paused {where}: {outcome.reason}; {folder.last} is written",
            f"go on with: subbyte train --resume --out {folder.path}",
        ]
    share = (
        "" if outcome.integer_share is None else f"; {outcome.integer_share:.2%} of multiply-accumulates in integers"
    )
    return [
        f"finished {where}: test accuracy {outcome.test_accuracy:.2%}, "
        f"best {outcome.best_accuracy:.2%} in epoch {outcome.best_epoch}{share}",
        f"run folder: {folder.path}  curves: {folder.curves_file}",
    ]
