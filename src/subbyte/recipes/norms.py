"""norms: L1 against L2 normalization, float and quantized, on a ResNet and a Transformer: accuracy and sharpness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subbyte import data
from subbyte.convert import dequantize_, quantized_layers
from subbyte.scheme import LayerScheme, NormScheme, Scheme
from subbyte.study import Column, Job, Row, Run, Study, training
from subbyte.study.landscape import sharpness
from subbyte.study.plots import plot_panels
from subbyte.study.select import ordered, where
from subbyte.train import load_run
from subbyte.train.build import load_dataset, reproducible


@dataclass(frozen=True)
class Config:
    """Layers stay float: what differs is the norms alone. Each net has the optimizer that is usual for it."""

    task: str = "cifar10"
    models: tuple[str, ...] = ("resnet8", "smallvit")
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 3
    batch_size: int = 128
    bits: tuple[int, ...] = (8, 6, 4)
    kinds: tuple[str, ...] = ("l2", "l1")
    images: int = 512
    directions: int = 3
    radius: float = 0.5
    points: int = 11
    iterations: int = 12


EXPECTED = ()
"""None: the issue asks what is the case."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "resnet8": dict(optimizer="sgd", lr=0.1),
    "smallvit": dict(optimizer="adamw", lr=1e-3),
}


CLIP, GROUPS = 0.6, 5
"""What 4 bits get in the variants that are named for it."""


def scheme(kind: str, bits: int | None, **few: Any) -> Scheme:
    """Float layers; norms of that kind with every tensor of `bits` bits, or in floats."""
    name = ", ".join((f"{kind}-{'float' if bits is None else bits}", *few))
    return Scheme(name, LayerScheme(), NormScheme(kind, bits, bits, bits, bits, bits, **few))


def schemes(config: Config) -> Iterator[Scheme]:
    """Kinds and bits; then what 4 bits gain by a clip of the input, and by groups of tokens for the gradient."""
    for bits in (None, *config.bits):
        for kind in config.kinds:
            yield scheme(kind, bits)
    if 4 in config.bits:
        yield scheme("l1", 4, clip=CLIP)
        yield scheme("l1", 4, clip=CLIP, groups=GROUPS)


def runs(config: Config) -> Iterator[Run]:
    """Every scheme, on each net."""
    measured = {name: getattr(config, name) for name in ("images", "directions", "radius", "points", "iterations")}
    for seed in config.seeds:
        for model in config.models:
            for named in schemes(config):
                settings = dict(epochs=config.epochs, batch_size=config.batch_size, **OPTIMIZERS[model])
                train = training(config.task, named, seed, model=model, **settings)
                yield Run(named.name, train, model, after=measure, settings=measured)


def measure(job: Job) -> Iterator[Mapping[str, Any]]:
    """Sharpness of the trained net, dequantized and in eval mode, on the first training images as they are."""
    trained = load_run(job.folder.path, device=job.config.device)
    model = dequantize_(trained.model) if quantized_layers(trained.model) else trained.model
    dataset = load_dataset(job.config)
    s = job.run.settings
    x, y = next(
        data.batches(dataset, s["images"], train=True, seed=0, device=job.config.device, kind="none", workers=0)
    )
    with reproducible(job.config.seed, job.config.threads):
        yield sharpness(
            model.eval(),
            x,
            y,
            directions=s["directions"],
            radius=s["radius"],
            points=s["points"],
            iterations=s["iterations"],
        )


def plots(rows: list[Row], prefix: Path) -> list[Path]:
    """The loss along random filter-normalized directions, a panel for each net: the mean over directions and seeds."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for group in ordered(rows, "group"):
        panel = panels.setdefault(group, {})
        for variant in ordered(where(rows, group=group), "variant"):
            found = [row for row in where(rows, group=group, variant=variant) if row.get("landscape")]
            if found:
                curves = [curve for row in found for curve in row["landscape"]]
                panel[variant] = (found[0]["distances"], [sum(at) / len(at) for at in zip(*curves)])
    path = prefix.with_name(prefix.name + "-landscape.png")
    x, y = "distance along a filter-normalized direction", "loss (nats)"
    return [plot_panels(panels, path, x=x, y=y)] if any(panels.values()) else []


STUDY = Study(
    name="norms",
    title="L1 against L2 normalization, float and quantized",
    config=Config(),
    quick=Config(
        task="digits", seeds=(0,), epochs=1, batch_size=256, bits=(4,), images=64, directions=1, points=3, iterations=2
    ),
    runs=runs,
    expected=EXPECTED,
    baseline="l2-float",
    columns=(
        Column("hessian", "top Hessian eigenvalue", 1, 1),
        Column("rise", "rise of the loss at the radius (nats)", 1, 3),
    ),
    plots=plots,
    notes=(
        "Layers are float; l1-4 are L1 norms with every tensor (input, normalized, saved, weight, gradient) in 4-bit "
        "codes; clip: the input's range is 0.6 of its largest magnitude; groups: the gradient has 5 groups of tokens. "
        "Sharpness is that of the trained net with its norms in floats (L1 LayerNorms stay L1), in eval mode, on "
        "training images without augmentation: the top eigenvalue of the Hessian by power iteration on central "
        "differences of the gradient, and the loss along random filter-normalized directions (Li et al., arXiv "
        "1712.09913)."
    ),
)
