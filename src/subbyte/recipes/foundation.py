"""foundation: ResNet-20 on CIFAR-10 for 3 epochs, float beside int4: it shows that training works end to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from subbyte.study import Column, Row, Run, Study, training
from subbyte.study.plots import plot_curves_of


@dataclass(frozen=True)
class Config:
    """The task's own defaults."""

    task: str = "cifar10"
    model: str = "resnet20"
    schemes: tuple[str, ...] = ("float", "int4")
    seeds: tuple[int, ...] = (0,)
    epochs: int = 3


EXPECTED = ()
"""None: few epochs and one seed don't show how much accuracy 4 bits cost."""


def runs(config: Config) -> Iterator[Run]:
    """Seed by seed."""
    for seed in config.seeds:
        for scheme in config.schemes:
            yield Run(scheme, training(config.task, scheme, seed, model=config.model, epochs=config.epochs))


def plots(rows: list[Row], prefix: Path) -> list[Path]:
    """Test accuracy by epoch."""
    return plot_curves_of(rows, prefix, 100, "test accuracy (%)")


STUDY = Study(
    name="foundation",
    title="3 epochs of ResNet-20 on CIFAR-10",
    config=Config(),
    quick=Config(task="digits", model="resnet8", epochs=1),
    runs=runs,
    expected=EXPECTED,
    columns=(Column("integer_share", "integer %", 100, 1), Column("train_loss", "train loss", 1, 3)),
    plots=plots,
    notes="One seed and few epochs: it shows that 4-bit training works end to end, not how much accuracy it costs.",
)
