"""late: what each part of int4 costs where training ends: two epochs at a falling rate, from one float net for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from subbyte.nn.norm import FLOAT_L1
from subbyte.quantizers import AbsMax, BlockShiftQuant, TokenShiftQuant
from subbyte.scheme import RECIPES, NormScheme, Scheme
from subbyte.study import Column, Run, Study, training

from .resnet_cifar10 import BLOCKS6, GROUPS, TOKENS6, changed


@dataclass(frozen=True)
class Config:
    """A float net halfway, at a constant rate; each variant goes on from there with the same batches and schedule."""

    task: str = "cifar10"
    model: str = "resnet20"
    seeds: tuple[int, ...] = (0, 1, 2)
    start_epochs: int = 9
    start_lr: float = 0.1
    epochs: int = 2
    lr: float = 0.05
    batch_size: int = 128
    weight_decay: float = 5e-4
    variants: tuple[str, ...] | None = None  # all


EXPECTED = ()
"""None: each variant is reported whether or not it helps."""

WHOLE = AbsMax(4, clip=0.5)
"""What int4 had for activations before it had tokens."""


def schemes() -> dict[str, Scheme]:
    """Variant -> scheme: the bounds, then what takes one thing out of 4 bits, then what may help."""
    int4, saved8 = Scheme.from_name("int4"), NormScheme("l1", saved=8)
    g6 = TokenShiftQuant(6, groups=3, rounding="stochastic")
    return {
        "float": RECIPES["float"],
        "float, l1": dataclasses.replace(RECIPES["float"], name="custom", norm=FLOAT_L1),
        "int4": int4,
        "w8, a8, g6": changed(weight=AbsMax(8), activation=AbsMax(8), gradient=g6),
        "w8": changed(weight=AbsMax(8)),
        "a8": changed(activation=AbsMax(8)),
        "g6": changed(gradient=g6),
        "norm-saved-8": dataclasses.replace(int4, name="custom", norm=saved8),
        "samples-2": changed(gradient_samples=2),
        "tokens-a-3": changed(activation=TokenShiftQuant(4, groups=3, clip=0.6)),
        "blocks-w-4": changed(weight=BlockShiftQuant(4, block=4, clip=0.8)),
        "groups-w": changed(weight=GROUPS),
        "whole-a": changed(activation=WHOLE),
        "groups-w, whole-a": changed(weight=GROUPS, activation=WHOLE),
        "int6": RECIPES["int6"],
        "int6, blocks-w": changed(of="int6", weight=BLOCKS6),
        "int6, tokens-a": changed(of="int6", activation=TOKENS6),
        "int6, blocks-w, tokens-a": changed(of="int6", weight=BLOCKS6, activation=TOKENS6),
        "int6, norm-saved-8": dataclasses.replace(RECIPES["int6"], name="custom", norm=saved8),
    }


def runs(config: Config) -> Iterator[Run]:
    """Seed by seed: the float net, then every variant from it."""
    for seed in config.seeds:
        alike = dict(model=config.model, batch_size=config.batch_size, weight_decay=config.weight_decay)
        how = dict(epochs=config.start_epochs, lr=config.start_lr, schedule="constant", warmup_epochs=0.0)
        start = Run("start", training(config.task, "float", seed, **alike, **how))
        yield start
        for variant, scheme in schemes().items():
            if config.variants is None or variant in config.variants:
                tail = training(
                    config.task, scheme, seed, **alike, epochs=config.epochs, lr=config.lr, warmup_epochs=0.0
                )
                yield Run(variant, tail, begins=start)


STUDY = Study(
    name="late",
    title="what each part of int4 costs at the end of training",
    config=Config(),
    quick=Config(
        task="digits",
        model="resnet8",
        seeds=(0,),
        start_epochs=1,
        epochs=1,
        batch_size=256,
        variants=("float", "int4", "groups-w, whole-a"),
    ),
    runs=runs,
    expected=EXPECTED,
    baseline="int4",
    columns=(Column("train_loss", "train loss", 1, 4), Column("test_loss", "test loss", 1, 4)),
    notes=(
        "All variants of a seed begin with the weights of `start` and see the same batches, so that differences far "
        "below the spread of seeds show in the losses. w8, a8: weights, activations of 8 bits; g6: gradients of 6; "
        "samples-2: gradients quantized twice and averaged for the weights' gradient; tokens-a-3: activations by 3 "
        "groups of tokens in place of 2; blocks-w-4: weights by blocks of 4, with a clip of 0.8; groups-w: by 5 groups "
        "of output channels, with a clip of 0.7; whole-a: activations with one scale, half the largest; "
        "int6, blocks-w: weights by 3 groups of blocks of 8; tokens-a: activations by 3 groups of tokens; "
        "float, l1: L1 norms."
    ),
)
