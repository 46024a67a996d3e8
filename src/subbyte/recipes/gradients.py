"""gradients: 4-bit gradients by every quantizer, all else equal: accuracy, variance, time; where one scale fails."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from subbyte import data
from subbyte.quantizers import (
    AbsMax,
    BlockHouseholder,
    GroupOracle,
    LogUnbiased,
    MXInt,
    PerChannel,
    Quantizer,
    ShiftQuant,
    TokenShiftQuant,
    ZeroPoint,
)
from subbyte.scheme import RECIPES, LayerScheme, Scheme
from subbyte.study import Column, Expected, Job, Run, Study, training
from subbyte.study.budget import timed
from subbyte.study.expected import advantage, loss, ratio
from subbyte.study.gradients import weight_gradient_variance
from subbyte.study.rows import beside
from subbyte.train import load_run
from subbyte.train.build import as_input, build_model, load_dataset, reproducible
from subbyte.train.checkpoint import load_model

BASELINE = "float-gradients"


@dataclass(frozen=True)
class Config:
    """ResNet-8 and few epochs: the emulated quantizers (BHQ, LUQ, MXInt, the oracle) are slow."""

    task: str = "cifar10"
    model: str = "resnet8"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 3
    batch_size: int = 128
    lr: float = 0.1
    bits: int = 4
    variants: tuple[str, ...] | None = None  # all
    samples: int = 8
    timed_steps: int = 9


WITHIN = "difference, upper end of its interval"
GROUP, FAR_GROUP = "resnet", "channels far apart"

TOKENS_AND_CHANNELS = ("tokens-5-channels-9", "tokens-5-channels-13")
FAR = (BASELINE, "absmax", "psq", "bhq", "luq", "shift-4", "shift-9", "tokens-5", *TOKENS_AND_CHANNELS, "oracle-4")
"""The variants that run on channels far apart, too."""

EXPECTED = (
    *(
        Expected(f"{ours} minus {other}: {WITHIN}", advantage(ours, other, GROUP), at_least=0, factor=100)
        for ours in ("shift-9", "tokens-5")
        for other in ("psq", "bhq", "luq")
    ),
    *(
        Expected(f"time of a step, {ours} over {other}", ratio(ours, other, "step_seconds", GROUP), at_most=1)
        for ours in ("shift-9", "tokens-5")
        for other in ("bhq", "luq")
    ),
    Expected(
        "channels far apart: one scale loses against float gradients",
        loss("absmax", BASELINE, FAR_GROUP),
        at_least=5,
        factor=100,
        unit="points",
    ),
    *(
        Expected(
            f"channels far apart: {ours} loses",
            loss(ours, BASELINE, FAR_GROUP),
            at_most=1,
            factor=100,
            unit="points",
        )
        for ours in ("shift-9", *TOKENS_AND_CHANNELS)
    ),
)


def quantizers(bits: int) -> dict[str, Quantizer | None]:
    """Every gradient quantizer of the study by its variant's name."""
    how: dict[str, Any] = dict(rounding="stochastic")
    return {
        BASELINE: None,
        "absmax": AbsMax(bits, **how),
        "zero-point": ZeroPoint(bits, **how),
        "psq": PerChannel(bits, axis=0, **how),
        "psq-zero-point": ZeroPoint(bits, axis=0, **how),
        "bhq": BlockHouseholder(bits, **how),
        "luq": LogUnbiased(bits, **how),
        "mxint": MXInt(bits, scale="ceil", **how),
        "shift-2": ShiftQuant(bits, groups=2, **how),
        "shift-4": ShiftQuant(bits, groups=4, **how),
        "shift-9": ShiftQuant(bits, groups=9, **how),
        "shift-9-clip": ShiftQuant(bits, groups=9, clip=0.5, **how),
        "shift-9-samples": ShiftQuant(bits, groups=9, axis=0, **how),
        "tokens-5": TokenShiftQuant(bits, groups=9 - bits, **how),
        "tokens-5-channels-9": TokenShiftQuant(bits, groups=9 - bits, channel_groups=9, **how),
        "tokens-5-channels-13": TokenShiftQuant(bits, groups=9 - bits, channel_groups=13, **how),
        "shift-4-chosen": ShiftQuant(bits, groups=4, exponents="chosen", max_exponent=8, **how),
        "oracle-4": GroupOracle(bits, groups=4, **how),
    }


def with_gradient(quantizer: Quantizer | None) -> Scheme:
    """int4 with one scale for weights, and another quantizer for the gradients of its middle layers."""
    layer = LayerScheme(AbsMax(4), AbsMax(4, clip=0.5), quantizer)
    return dataclasses.replace(Scheme.from_name("int4"), name="custom", layer=layer)


def only_gradient(quantizer: Quantizer | None) -> Scheme:
    """Nothing quantized but the gradients of all layers."""
    return Scheme("custom", LayerScheme(gradient=quantizer), RECIPES["float"].norm)


def runs(config: Config) -> Iterator[Run]:
    """On a ResNet as it is (int4, gradients apart), then with gains that put its gradient's channels octaves apart."""
    settings = dict(epochs=config.epochs, batch_size=config.batch_size, lr=config.lr)
    wanted = config.variants
    chosen = {name: q for name, q in quantizers(config.bits).items() if wanted is None or name in wanted}
    for seed in config.seeds:
        for name, quantizer in chosen.items():
            scheme = with_gradient(quantizer)
            measure: dict[str, Any] = {}
            if quantizer is None:  # its net is the common one on which all of them are measured
                measured = {"bits": config.bits, "variants": list(chosen)}
                measured |= {"samples": config.samples, "timed_steps": config.timed_steps}
                measure = dict(after=measure_all, settings=measured)
            yield Run(name, training(config.task, scheme, seed, model=config.model, **settings), GROUP, **measure)
        for name, quantizer in chosen.items():
            if name in FAR:
                model, scheme = config.model + "+gains", only_gradient(quantizer)
                yield Run(name, training(config.task, scheme, seed, model=model, **settings), FAR_GROUP)


def measure_all(job: Job) -> Iterator[Mapping[str, Any]]:
    """The training's own row, then for each quantizer: variance and time of a step, on the same net and batch."""
    yield {}
    settings, config = job.run.settings, job.config
    trained = load_run(job.folder.path, device=config.device)
    dataset = load_dataset(config)
    x, y = next(data.batches(dataset, config.batch_size, train=True, seed=config.seed, device=config.device, workers=0))
    x = as_input(x)
    state = trained.model.state_dict()
    models = {}
    with reproducible(config.seed, config.threads):
        every = quantizers(settings["bits"])
        for name in settings["variants"]:
            scheme = with_gradient(every[name]).to_dict()
            models[name] = build_model(dataclasses.replace(config, scheme=scheme), dataset.info).train()
            load_model(models[name], state, job.folder.last)
        seconds = alternating(models, x, y, settings["timed_steps"], config.device)
        for name, model in models.items():
            variance = weight_gradient_variance(model, x, y, settings["samples"])
            yield beside("gradient", variant=name, gradient_variance=variance, step_seconds=seconds[name])


def alternating(models: Mapping[str, nn.Module], x: Tensor, y: Tensor, rounds: int, device: str) -> dict[str, float]:
    """The median core-seconds of forward and backward over rounds in which all take turns, after one to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            step = functools.partial(forward_backward, model, x, y)
            taken[name].append(timed(step, device))
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def forward_backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """What is timed."""
    F.cross_entropy(model(x), y).backward()


STUDY = Study(
    name="gradients",
    title="4-bit gradients by every quantizer",
    config=Config(),
    quick=Config(
        task="digits",
        seeds=(0,),
        epochs=1,
        batch_size=256,
        variants=(BASELINE, "absmax", "shift-9"),
        samples=2,
        timed_steps=1,
    ),
    runs=runs,
    expected=EXPECTED,
    baseline=BASELINE,
    columns=(
        Column("gradient_variance", "variance of the weights' gradient / its square", 1, 4),
        Column("step_seconds", "core-ms a step", 1000, 0),
        Column("integer_share", "integer %", 100, 1),
    ),
    notes=(
        "psq-zero-point is PSQ as in its paper; psq is its symmetric form. "
        "A ResNet-8 and a short schedule, since the emulated quantizers are slow. In the group `resnet` all else is "
        "the int4 recipe with one scale for weights; variance and time are measured on one net (trained with float "
        "gradients), one batch, in one process whose steps alternate; time is forward and backward. `channels far "
        "apart`: the same ResNet-8 whose convolutions carry constant gains, up to 2^12 apart, which the norms behind "
        "them take out again: in floats the same net and the same training, but the channels of its gradients differ "
        "by orders of magnitude; only "
        "gradients are quantized there."
    ),
)
