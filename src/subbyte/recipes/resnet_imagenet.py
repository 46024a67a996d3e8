"""resnet-imagenet: ResNet-18, 34 and 50 on ImageNet, float beside int4 and int6; --data-dir names the image folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from subbyte.study import Column, Expected, Run, Study, training
from subbyte.study.expected import loss, mean


@dataclass(frozen=True)
class Config:
    """The usual 90 epochs with a cosine; the folder holds train/ and val/ with a folder for each class."""

    task: str = "imagefolder"
    models: tuple[str, ...] = ("resnet18", "resnet34", "resnet50")
    schemes: tuple[str, ...] = ("float", "int4", "int6")
    seeds: tuple[int, ...] = (0,)
    epochs: int = 90
    batch_size: int = 256
    image_size: int = 224
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 5.0
    label_smoothing: float = 0.1


FLOAT = 69.7  # %, the float ResNet-18 of LUQ, arXiv 2112.10769
PAPER_LOSS = {"resnet18": 0.92, "resnet50": 1.6}  # points: arXiv 2411.10948, its abstract and a review of it

EXPECTED = (
    Expected("resnet18, float", mean("float", group="resnet18"), at_least=FLOAT, factor=100, unit="%"),
    *(
        Expected(f"{net}, int4: loss", loss("int4", group=net), at_most=points, factor=100, unit="points")
        for net, points in PAPER_LOSS.items()
    ),
)


def runs(config: Config) -> Iterator[Run]:
    """A group for each net."""
    named = ("epochs", "batch_size", "image_size", "lr", "momentum", "weight_decay", "warmup_epochs", "label_smoothing")
    settings = {name: getattr(config, name) for name in named}
    for seed in config.seeds:
        for model in config.models:
            for scheme in config.schemes:
                yield Run(scheme, training(config.task, scheme, seed, model=model, **settings), model)


STUDY = Study(
    name="resnet-imagenet",
    title="4- and 6-bit ResNet-18, 34 and 50 against float on ImageNet",
    config=Config(),
    quick=dataclasses.replace(
        Config(),
        models=("resnet18", "resnet50"),
        schemes=("float", "int4"),
        epochs=1,
        batch_size=4,
        image_size=32,
        warmup_epochs=0,
    ),
    runs=runs,
    expected=EXPECTED,
    columns=(Column("integer_share", "integer %", 100, 1),),
    notes=(
        "Losses are compared with the paper's: 0.92 points for 4-bit ResNets, about 1.6 for ResNet-50 (a review). "
        "--only 'resnet18-*' runs one net."
    ),
)
