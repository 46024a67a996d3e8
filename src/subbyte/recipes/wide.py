"""wide: int4 and int4-wide where channels lie up to 12 octaves apart, and where they don't, beside float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subbyte.study import Column, Expected, Row, Run, Study, training
from subbyte.study.expected import loss
from subbyte.study.plots import plot_curves_of


@dataclass(frozen=True)
class Config:
    """The net and the schedule of `gradients`."""

    task: str = "cifar10"
    model: str = "resnet8"
    schemes: tuple[str, ...] = ("float", "int4", "int4-wide")
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 3
    batch_size: int = 128
    lr: float = 0.1


FAR = "channels far apart"
GROUPS = {FAR: "+gains", "resnet": ""}
"""Group -> what is put on the model's convolutions."""

POINTS: dict[str, Any] = dict(factor=100, unit="points")

EXPECTED = (
    Expected(f"{FAR}: int4 loses", loss("int4", "float", FAR), at_least=5, **POINTS),
    Expected(f"{FAR}: int4-wide loses", loss("int4-wide", "float", FAR), at_most=1, **POINTS),
)


def runs(config: Config) -> Iterator[Run]:
    """Seed by seed; far apart first, since that is the question."""
    settings = dict(epochs=config.epochs, batch_size=config.batch_size, lr=config.lr)
    for seed in config.seeds:
        for group, suffix in GROUPS.items():
            for scheme in config.schemes:
                model = config.model + suffix
                yield Run(scheme, training(config.task, scheme, seed, model=model, **settings), group)


def plots(rows: list[Row], prefix: Path) -> list[Path]:
    """Test accuracy by epoch."""
    return plot_curves_of(rows, prefix, 100, "test accuracy (%)")


STUDY = Study(
    name="wide",
    title="4 bits where channels lie octaves apart",
    config=Config(),
    quick=Config(task="digits", seeds=(0,), epochs=1, batch_size=256, lr=0.05),
    runs=runs,
    expected=EXPECTED,
    baseline="float",
    columns=(Column("integer_share", "integer %", 100, 1), Column("train_loss", "train loss", 1, 3)),
    plots=plots,
    notes=(
        "`channels far apart`: a ResNet-8 whose convolutions carry constant gains, up to 2^12 apart, which the "
        "norms behind them take out again: in floats the same net and the same training, but rows of its weights "
        "and channels of its gradients differ by orders of magnitude. All is quantized here; `gradients` has the "
        "gradients alone. int4 has one scale for the rows of a weight and for the channels of a gradient; "
        "int4-wide gives each a power of two where they lie apart."
    ),
)
