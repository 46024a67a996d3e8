"""integer-only: power-of-two scales and an integer weight update, against int4 and float."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from subbyte.quantizers import AbsMax, ShiftQuant
from subbyte.scheme import LayerScheme, Scheme
from subbyte.study import Expected, Row, Run, Study, training
from subbyte.study.expected import loss
from subbyte.study.plots import plot_curves_of


@dataclass(frozen=True)
class Config:
    """The schedule of resnet-cifar10, whose rows for float and int4 serve here, too."""

    task: str = "cifar10"
    model: str = "resnet20"
    schemes: tuple[str, ...] = ("float", "int4", "int4-integer-only", "one scale")
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.2
    weight_decay: float = 5e-4
    warmup_epochs: float = 2.0


EXPECTED = (
    Expected("integer-only: loss against float", loss("int4-integer-only"), at_most=1.0, factor=100, unit="points"),
)


def one_scale() -> Scheme:
    """int4-integer-only without blocks and tokens: weights and activations have one power of two each."""
    gradient = ShiftQuant(4, rounding="stochastic", groups=9)
    layer = LayerScheme(AbsMax(4), AbsMax(4), gradient)
    return dataclasses.replace(Scheme.from_name("int4-integer-only"), name="custom", layer=layer)


def runs(config: Config) -> Iterator[Run]:
    """Seed by seed, every scheme."""
    settings = dict(epochs=config.epochs, batch_size=config.batch_size, lr=config.lr)
    for seed in config.seeds:
        for name in config.schemes:
            yield Run(
                name,
                training(
                    config.task,
                    one_scale() if name == "one scale" else name,
                    seed,
                    model=config.model,
                    weight_decay=config.weight_decay,
                    warmup_epochs=config.warmup_epochs,
                    **settings,
                ),
            )


def plots(rows: list[Row], prefix: Path) -> list[Path]:
    """Test accuracy by epoch."""
    return plot_curves_of(rows, prefix, 100, "test accuracy (%)")


STUDY = Study(
    name="integer-only",
    title="training without a float between the input and the loss",
    config=Config(),
    quick=Config(task="digits", model="resnet8", seeds=(0,), epochs=1, batch_size=256, lr=0.05, warmup_epochs=0.5),
    runs=runs,
    expected=EXPECTED,
    plots=plots,
    notes=(
        "int4-integer-only has exponents for blocks of weights and tokens of activations and gradients; one scale: one "
        "power of two for all weights and for all activations of a layer, groups of channels for gradients."
    ),
)
