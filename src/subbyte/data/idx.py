"""`mnist` and `fashion-mnist`: 28x28 grey images in idx files, packed (.gz) or unpacked.

Looked for in DATA_DIR/MNIST/raw (FashionMNIST/raw), in DATA_DIR/raw and in DATA_DIR itself.
Format: big endian; 2 zero bytes, the type (8 = uint8), the number of dimensions, each dimension as int32, the data.
Sources: Y. LeCun, C. Cortes, C. Burges, MNIST; H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from subbyte.data.dataset import DataError, Dataset
from subbyte.data.files import File, describe_folder, fetch, problem, require_folder

UINT8 = 8


@dataclass(frozen=True)
class Part:
    """One of the four files: as published (.gz), and unpacked."""

    packed: File
    plain: File


@dataclass(frozen=True)
class IdxSpec:
    """All facts about one data set in idx files. parts: train images, train labels, test images, test labels."""

    name: str
    folder: str
    parts: tuple[Part, Part, Part, Part]
    classes: tuple[str, ...]
    mean: tuple[float]
    std: tuple[float]


PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PLAIN_SIZES = (16 + 60000 * 28 * 28, 8 + 60000, 16 + 10000 * 28 * 28, 8 + 10000)


def _parts(mirrors: tuple[str, ...], *sums: tuple[str, int, str]) -> tuple[Part, Part, Part, Part]:
    a, b, c, d = (
        Part(
            File(f"{name}.gz", packed_md5, packed_size, tuple(f"{mirror}{name}.gz" for mirror in mirrors)),
            File(name, plain_md5, plain_size),
        )
        for name, plain_size, (packed_md5, packed_size, plain_md5) in zip(PARTS, PLAIN_SIZES, sums, strict=True)
    )
    return a, b, c, d


MNIST = IdxSpec(
    name="mnist",
    folder="MNIST",
    parts=_parts(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/",),
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", 9912422, "6bbc9ace898e44ae57da46a324031adb"),
        ("d53e105ee54ea40749a09fcbcd1e9432", 28881, "a25bea736e30d166cdddb491f175f624"),
        ("9fb629c4189551a2d022fa330f9573f3", 1648877, "2646ac647ad5339dbf082846283269ea"),
        ("ec29112dd5afa0611ce80d1b7f02629c", 4542, "27ae3e4e09519cfbb04c329615203637"),
    ),
    classes=tuple("0123456789"),
    mean=(0.1307,),
    std=(0.3081,),
)

FASHION_MNIST = IdxSpec(
    name="fashion-mnist",
    folder="FashionMNIST",
    parts=_parts(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26421880, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        ("25c81989df183df01b3e8a0aad5dffbe", 29515, "9018921c3c673c538a1fc5bad174d6f9"),
        ("bef4ecab320f06d8554ea6380940ec79", 4422102, "8181f5470baa50b63fa0f6fddb340f0a"),
        ("bb300cfdad3c16e7a12a480ee83cd310", 5148, "15d484375f8d13e6eb1aabb0c3f46965"),
    ),
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=(0.2860,),
    std=(0.3530,),
)


def load_idx(spec: IdxSpec, data_dir: Path, *, download: bool = False) -> Dataset:
    """Reads the four files of `spec` under `data_dir`; fetches what is missing or damaged if `download`.

    DataError names each file that is missing or wrong, what was expected and what to do.
    """
    require_folder(data_dir, spec.name)
    folders = (data_dir / spec.folder / "raw", data_dir / "raw", data_dir)
    found, complaints = {}, []
    for part in spec.parts:
        path, wrong = _find(part, folders)
        if path is None and download:
            path = folders[0] / part.packed.name
            fetch(part.packed, path)
        if path is None:
            complaints += [f"  expected {part.packed} or {part.plain}", f"    found: {wrong}"]
            complaints += [f"    from: {url}" for url in part.packed.urls]
        else:
            found[part] = path
    if complaints:
        raise DataError(
            "\n".join((f"{spec.name}: {describe_folder(data_dir)}", *complaints))
            + "\nAllow the download (download=True, --download), or get the files from these addresses "
            + f"and put them in {folders[0]}."
        )
    train_x, train_y, test_x, test_y = (found[part] for part in spec.parts)
    return Dataset(
        name=spec.name,
        train_x=_images(train_x),
        train_y=_labels(train_y),
        test_x=_images(test_x),
        test_y=_labels(test_y),
        classes=spec.classes,
        mean=spec.mean,
        std=spec.std,
        augment="shift",
    )


def _find(part: Part, folders: tuple[Path, ...]) -> tuple[Path | None, str]:
    """The first right file of `part`, or None and what was wrong with those that are there."""
    wrong = []
    for folder in folders:
        for file in (part.plain, part.packed):
            path = folder / file.name
            if (fault := problem(path, file)) is None:
                return path, ""
            if path.exists():
                wrong.append(f"{path}: {fault}")
    return None, "; ".join(wrong) or "no such file"


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file, packed or not. DataError if the header and the size do not agree."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UINT8:
        raise DataError(f"{path}: not an idx file of uint8, it begins with {content[:4].hex(' ') or 'nothing'}")
    dims, header = content[3], 4 + 4 * content[3]
    if dims == 0 or len(content) < header:
        raise DataError(f"{path}: idx header of {dims} dimensions, {len(content)} bytes in the file")
    shape = struct.unpack(f">{dims}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(f"{path}: idx header says {shape}, but {len(content) - header} bytes follow")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _images(path: Path) -> Tensor:
    array = read_idx(path)
    if array.ndim != 3:
        raise DataError(f"{path}: expected images (N, H, W), found an array of shape {array.shape}")
    return torch.from_numpy(array.copy())[:, None]  # copy: torch wants to own writable memory


def _labels(path: Path) -> Tensor:
    array = read_idx(path)
    if array.ndim != 1:
        raise DataError(f"{path}: expected labels (N,), found an array of shape {array.shape}")
    return torch.from_numpy(array.astype(np.int64))
