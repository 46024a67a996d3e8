"""resnet-cifar10: ResNet-20 on CIFAR-10, float beside 4- and 6-bit integers, same seeds, data and schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subbyte.quantizers import BlockShiftQuant, ShiftQuant, TokenShiftQuant
from subbyte.scheme import NormScheme, Scheme
from subbyte.study import Column, Expected, Row, Run, Study, training
from subbyte.study.expected import loss, mean, worst_loss
from subbyte.study.plots import plot_curves_of


@dataclass(frozen=True)
class Config:
    """The schedule is one for all variants, chosen for the float net: no setting is tuned on integers."""

    task: str = "cifar10"
    model: str = "resnet20"
    schemes: tuple[str, ...] = ("float", "int4", "int6", "int6-fine", "int4-all", "int4-all-clip", "tokens-a")
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 2.0


PAPER_LOSS = 0.92  # points, 4-bit ResNets: arXiv 2411.10948, abstract

EXPECTED = (
    Expected("float baseline", mean("float"), at_least=91.0, factor=100, unit="%"),
    Expected("int4: loss against float", loss("int4"), at_most=0.5, factor=100, unit="points"),
    Expected("int4: loss of the worst seed", worst_loss("int4"), at_most=PAPER_LOSS, factor=100, unit="points"),
    Expected("int6: loss against float", loss("int6"), at_most=0.1, factor=100, unit="points"),
    Expected(
        "int4: multiply-accumulates in integers", mean("int4", "integer_share"), at_least=100, factor=100, unit="%"
    ),
)


def int4_all(name: str, **norm: Any) -> Scheme:
    """int4 with nothing above 4 bits: the first and the last layer too, and every tensor of the norms."""
    four = NormScheme("l1", input=4, normalized=4, saved=4, weight=4, gradient=4, **norm)
    return dataclasses.replace(Scheme.from_name("int4"), name=name, norm=four, first=None, last=None)


def changed(name: str = "custom", of: str = "int4", **roles: Any) -> Scheme:
    """A recipe with other quantizers in its middle layers."""
    recipe = Scheme.from_name(of)
    return dataclasses.replace(recipe, name=name, layer=dataclasses.replace(recipe.layer, **roles))


GROUPS = ShiftQuant(4, groups=5, axis=0, clip=0.7)
"""What int4 had for weights before it had blocks."""

BLOCKS6, TOKENS6 = BlockShiftQuant(6, groups=3, block=8), TokenShiftQuant(6, groups=3)
"""Weights and activations of 6 bits as `int4` has its own: the groups that fold, unclipped."""

BUILT = {
    "int6-fine": changed("int6-fine", of="int6", weight=BLOCKS6, activation=TOKENS6),
    "int4-all": int4_all("int4-all"),
    "int4-all-clip": int4_all("int4-all-clip", clip=0.6, groups=5),
    "tokens-a": changed("tokens-a", weight=GROUPS, activation=TokenShiftQuant(4, groups=3)),
}
"""Variants that are no named recipe."""


def runs(config: Config) -> Iterator[Run]:
    """Seed by seed, so that pairs are complete early."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("task", "schemes", "seeds")}
    for seed in config.seeds:
        for name in config.schemes:
            yield Run(name, training(config.task, BUILT.get(name, name), seed, **settings))


def plots(rows: list[Row], prefix: Path) -> list[Path]:
    """Test accuracy by epoch."""
    return plot_curves_of(rows, prefix, 100, "test accuracy (%)")


STUDY = Study(
    name="resnet-cifar10",
    title="4- and 6-bit ResNet-20 against float on CIFAR-10",
    config=Config(),
    quick=Config(task="digits", model="resnet8", seeds=(0,), epochs=1, batch_size=128, lr=0.05, warmup_epochs=0.5),
    runs=runs,
    expected=EXPECTED,
    columns=(
        Column("integer_share", "integer %", 100, 1),
        Column("train_loss", "train loss", 1, 3),
        Column("test_loss", "test loss", 1, 3),
    ),
    plots=plots,
    notes=(
        "int4: weights, activations and gradients 4 bits, L1 norms in 8-bit codes (6 saved), first and last layer "
        "8 bits. int6-fine: int6 with weights in 3 groups of blocks of 8, and activations in 3 groups of tokens. "
        "int4-all: 4 bits everywhere; int4-all-clip: the same, norms with a clip of 0.6 for their input and 5 groups "
        "of tokens for their gradient. tokens-a: int4 with weights in 5 groups of output channels that clip at 0.7, "
        "and activations in 3 groups of tokens. Accuracy is that of the last epoch, not of the best."
    ),
)
