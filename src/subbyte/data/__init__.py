"""Data sets by name: `load`, `tasks`, `batches`, and what `predict` needs (`DatasetInfo`, `preprocess_image`).

>>> data = load("digits")
>>> x, y = next(batches(data, 32, train=True, seed=0, epoch=0))
>>> x.shape
torch.Size([32, 1, 8, 8])
"""

from __future__ import annotations

import os
from pathlib import Path

from subbyte.data.augment import augment, normalize
from subbyte.data.cifar import CIFAR10, CIFAR100, load_cifar
from subbyte.data.dataset import DataError, Dataset, DatasetInfo
from subbyte.data.digits import load_digits
from subbyte.data.idx import FASHION_MNIST, MNIST, load_idx
from subbyte.data.imagefolder import ImageFolder, load_imagefolder
from subbyte.data.images import preprocess_image
from subbyte.data.loader import batches, num_batches
from subbyte.wording import unknown

__all__ = [
    "DataError",
    "Dataset",
    "DatasetInfo",
    "ImageFolder",
    "augment",
    "batches",
    "load",
    "normalize",
    "num_batches",
    "preprocess_image",
    "tasks",
]

_IDX = {spec.name: spec for spec in (MNIST, FASHION_MNIST)}
_CIFAR = {spec.name: spec for spec in (CIFAR10, CIFAR100)}


def tasks() -> tuple[str, ...]:
    """The names that `load` knows; the first needs no files."""
    return ("digits", *_IDX, *_CIFAR, "imagefolder")


def load(task: str, data_dir: str | Path | None = None, *, download: bool = False, image_size: int = 224) -> Dataset:
    """The data set `task`, read from `data_dir` (default: the environment variable SUBBYTE_DATA, or else ./data).

    download: fetch missing or damaged files from the publishers (MNIST, Fashion-MNIST, CIFAR) into data_dir.
    image_size: of an imagefolder's crops; the other tasks have a size of their own.
    ValueError for an unknown task; DataError if files are missing or damaged, saying which and what to do.
    """
    if task not in tasks():
        raise ValueError(unknown("task", task, tasks()))
    if task == "digits":
        return load_digits()
    folder = Path(data_dir if data_dir is not None else os.environ.get("SUBBYTE_DATA", "data")).expanduser()
    if task in _IDX:
        return load_idx(_IDX[task], folder, download=download)
    if task in _CIFAR:
        return load_cifar(_CIFAR[task], folder, download=download)
    return load_imagefolder(folder, image_size=image_size)
