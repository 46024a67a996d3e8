"""integer-only-fashion: the integer-only mode on Fashion-MNIST beside float and int4, in minutes rather than hours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from subbyte.study import Expected, Row, Run, Study, training
from subbyte.study.expected import loss
from subbyte.study.plots import plot_curves_of


@dataclass(frozen=True)
class Config:
    """One schedule for all; the integer-only runs update with IntegerSGD.

    At the end of the last epoch the norms go by their running statistics. The background of these images is one value,
    and 4 bits round all of it up or all of it down: batches with the one and with the other don't have one average.
    """

    task: str = "fashion-mnist"
    model: str = "smallcnn"
    schemes: tuple[str, ...] = ("int4-integer-only", "float")
    seeds: tuple[int, ...] = (0,)
    epochs: int = 6
    batch_size: int = 128
    lr: float = 0.05
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    freeze_norms_epochs: float = 0.25


EXPECTED = (
    Expected("integer-only: loss against float", loss("int4-integer-only"), at_most=1.0, factor=100, unit="points"),
)


def runs(config: Config) -> Iterator[Run]:
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("task", "schemes", "seeds")}
    for seed in config.seeds:
        for name in config.schemes:
            yield Run(name, training(config.task, name, seed, **settings))


def plots(rows: list[Row], prefix: Path) -> list[Path]:
    """Test accuracy by epoch."""
    return plot_curves_of(rows, prefix, 100, "test accuracy (%)")


STUDY = Study(
    name="integer-only-fashion",
    title="Fashion-MNIST without a float between the input and the loss",
    config=Config(),
    quick=Config(task="digits", model="resnet8", epochs=1, batch_size=256, warmup_epochs=0.5, freeze_norms_epochs=0.25),
    runs=runs,
    expected=EXPECTED,
    plots=plots,
)
