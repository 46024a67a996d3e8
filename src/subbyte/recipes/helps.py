"""helps: what improves 4-bit training, and where its loss comes from: one change to a plain 4-bit scheme at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from subbyte.nn.norm import FLOAT_L1
from subbyte.quantizers import (
    SAWB,
    AbsMax,
    BlockShiftQuant,
    LearnedStep,
    MSEClip,
    PerChannel,
    ShiftQuant,
    TokenShiftQuant,
    ZeroPoint,
)
from subbyte.scheme import RECIPES, LayerScheme, NormScheme, Scheme
from subbyte.study import Column, Run, Study, training


@dataclass(frozen=True)
class Config:
    """A ResNet-8 for a tenth of resnet-cifar10's epochs, since there are many variants; a few on its ResNet-20, too."""

    task: str = "cifar10"
    model: str = "resnet8"
    larger: str | None = "resnet20"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 3
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.5
    long_warmup_epochs: float = 1.0
    variants: tuple[str, ...] | None = None  # all
    on_larger: tuple[str, ...] = (
        *("float", "int4", "plain", "clip-w", "groups-w", "g-channels", "whole a", "tokens-a", "tokens-a-clip"),
    )


EXPECTED = ()
"""None: each variant is reported whether or not it helps."""

PLAIN = dataclasses.replace(
    Scheme.from_name("int4"),
    name="custom",
    layer=LayerScheme(AbsMax(4), AbsMax(4, clip=0.5), TokenShiftQuant(4, groups=5, rounding="stochastic")),
)
"""int4 but for its weights and activations, which have one scale; that of activations clips."""

STOCHASTIC: dict[str, Any] = dict(rounding="stochastic")


def changed(**roles: Any) -> Scheme:
    """PLAIN with other roles in its middle layers."""
    return dataclasses.replace(PLAIN, layer=dataclasses.replace(PLAIN.layer, **roles))


def shift(bits: int, groups: int, axis: int = 1, clip: float = 1.0) -> ShiftQuant:
    """A gradient's by groups of channels, or with axis 0 of samples."""
    return ShiftQuant(bits, groups=groups, axis=axis, clip=clip, **STOCHASTIC)


def tokens(bits: int, groups: int) -> TokenShiftQuant:
    """A gradient's by groups of tokens."""
    return TokenShiftQuant(bits, groups=groups, **STOCHASTIC)


def gradient_bits(pattern: str, bits: int) -> Scheme:
    """PLAIN with gradients of `bits` bits in the layers whose name matches."""
    return PLAIN.override(pattern, dataclasses.replace(PLAIN.layer, gradient=tokens(bits, 9 - bits)))


def schemes() -> dict[str, Scheme]:
    """Variant -> scheme: first what may help, then what shows where the loss comes from."""
    norm8 = NormScheme("l1", saved=8)
    return {
        "g-channels": changed(gradient=shift(4, 9)),
        "g-channels-clip": changed(gradient=shift(4, 9, clip=0.5)),
        "g-channels, whole a": changed(activation=AbsMax(4), gradient=shift(4, 9)),
        "g-samples": changed(gradient=shift(4, 9, axis=0)),
        "g-samples-clip": changed(gradient=shift(4, 9, axis=0, clip=0.5)),
        "g-tokens-3": changed(gradient=tokens(4, 3)),
        "whole a": changed(activation=AbsMax(4)),
        "clip-w": changed(weight=AbsMax(4, clip=0.75)),
        "lsq-w": changed(weight=LearnedStep(4)),
        "lsq-wa": changed(weight=LearnedStep(4), activation=LearnedStep(4)),
        "lsq-wa-slow": changed(weight=LearnedStep(4, rate=1e-3), activation=LearnedStep(4, rate=1e-3)),
        "sawb-w": changed(weight=SAWB(4)),
        "sawb-w-mse-a": changed(weight=SAWB(4), activation=MSEClip(4)),
        "mse-w": changed(weight=MSEClip(4)),
        "mse-wa": changed(weight=MSEClip(4), activation=MSEClip(4)),
        "samples-2": changed(gradient_samples=2),
        "groups-a": changed(activation=ShiftQuant(4, groups=5)),
        "groups-a-clip": changed(activation=ShiftQuant(4, groups=3, clip=0.6)),
        "tokens-a": changed(activation=TokenShiftQuant(4, groups=3)),
        "tokens-a-clip": changed(activation=TokenShiftQuant(4, groups=2, clip=0.6)),
        "groups-w": changed(weight=ShiftQuant(4, groups=5, axis=0)),
        "groups-w-0.7": changed(weight=ShiftQuant(4, groups=5, axis=0, clip=0.7)),
        "groups-w-clip": changed(weight=ShiftQuant(4, groups=5, axis=0, clip=0.5)),
        "blocks-w": changed(weight=BlockShiftQuant(4)),
        "zero-point-w": changed(weight=ZeroPoint(4)),
        "channels-w": changed(weight=PerChannel(4, axis=0)),
        "g6-stage1": gradient_bits("layer1.*", 6),
        "g6-stage2": gradient_bits("layer2.*", 6),
        "g6-stage3": gradient_bits("layer3.*", 6),
        "norm-saved-8": dataclasses.replace(PLAIN, norm=norm8),
        "w-float": changed(weight=None),
        "a-float": changed(activation=None),
        "g-float": changed(gradient=None),
        "w8": changed(weight=AbsMax(8)),
        "a8": changed(activation=AbsMax(8)),
        "g8": changed(gradient=shift(8, 4)),
        "norms-float-l1": dataclasses.replace(PLAIN, norm=FLOAT_L1),
        "norms-float-l2": dataclasses.replace(PLAIN, norm=RECIPES["float"].norm),
        "norms-only": dataclasses.replace(PLAIN, layer=LayerScheme(), first=None, last=None),
    }


def runs(config: Config) -> Iterator[Run]:
    """float, int4, plain, then every variant; seed by seed, the larger net after the other."""
    own = ("task", "seeds", "model", "larger", "long_warmup_epochs", "variants", "on_larger")
    settings: dict[str, Any] = {k: v for k, v in dataclasses.asdict(config).items() if k not in own}
    longer = {**settings, "warmup_epochs": config.long_warmup_epochs}
    wanted: dict[str, tuple[Scheme | str, str, dict[str, Any]]] = {
        name: (name, "", settings) for name in ("float", "int4")
    }
    wanted["plain"] = PLAIN, "", settings
    wanted |= {variant: (scheme, "", settings) for variant, scheme in schemes().items()}
    wanted["int4, bfloat16"] = "int4", "", {**settings, "autocast": "bfloat16"}
    for name in ("float", "int4"):
        wanted[f"{name}, long warm-up"] = name, "", longer
        wanted[f"{name}, weight standardization"] = name, "+ws", settings
    nets = [(config.model, config.variants), (config.larger, config.on_larger)]
    for seed in config.seeds:
        for net, names in nets:
            for variant, (scheme, suffix, how) in wanted.items():
                if net is not None and (names is None or variant in names):
                    yield Run(variant, training(config.task, scheme, seed, model=net + suffix, **how), net)


STUDY = Study(
    name="helps",
    title="what helps 4-bit training, and where its loss comes from",
    config=Config(),
    quick=Config(
        task="digits",
        larger=None,
        seeds=(0,),
        epochs=1,
        batch_size=512,
        warmup_epochs=0.5,
        long_warmup_epochs=0.8,
        variants=("float", "int4", "plain", "lsq-wa", "groups-w", "g6-stage1", "int4, weight standardization"),
    ),
    runs=runs,
    expected=EXPECTED,
    baseline="plain",
    columns=(Column("train_loss", "train loss", 1, 3),),
    notes=(
        "Each variant is `plain` with one change in its middle layers: 4-bit gradients by TokenShiftQuant(5 groups), "
        "activations that clip at 0.5 of their largest magnitude, weights with one scale. int4, the recipe, has "
        "blocks-w and tokens-a-clip. g-channels, g-samples: gradients by "
        "ShiftQuant's 9 groups of channels, of samples; -clip: at 0.5 of their range; g-tokens-3: 3 groups of tokens. "
        "whole a: activations that clip nothing; clip-w: weights that clip at 0.75. lsq: learned steps (w weights, a "
        "activations; slow: a tenth of the rate). sawb, mse: clipped ranges. samples-2: gradients quantized twice and "
        "averaged for the weights' gradient. groups-a, groups-w: groups for activations (input channels) and weights "
        "(output channels); -clip: at 0.6 and 0.5 of each group's range, -0.7: at 0.7; tokens-a: 3 groups of tokens "
        "for activations (-clip: 2, at 0.6 of the largest); blocks-w: 3 groups of blocks of 8 weights; "
        "channels-w: a free scale for each output channel; zero-point-w: an asymmetric grid. "
        "bfloat16: of that type is what passes between layers. "
        "g6-stage1: 6-bit gradients in that stage. The rest (w-float, a8, ...) takes one thing out of 4 bits, to see "
        "what it costs; norms-only leaves every layer float."
    ),
)
