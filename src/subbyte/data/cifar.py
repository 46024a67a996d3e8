"""`cifar10` and `cifar100`: 32x32 colour images in Python pickles, read without letting a pickle run code.

Looked for in DATA_DIR/cifar-10-batches-py (cifar-100-python), in DATA_DIR itself, and as the published .tar.gz there.
Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subbyte.data.dataset import DataError, Dataset
from subbyte.data.files import File, describe_folder, fetch, problem, require_folder, unpack

SIDE = 32


@dataclass(frozen=True)
class CifarSpec:
    """All facts about one CIFAR. labels, names: the keys of the labels in a batch and of the class names in `meta`."""

    name: str
    folder: str
    archive: File
    train: tuple[File, ...]
    test: File
    meta: File
    labels: str
    names: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def files(self) -> tuple[File, ...]:
        """All files of the unpacked folder."""
        return (*self.train, self.test, self.meta)


CIFAR10 = CifarSpec(
    name="cifar10",
    folder="cifar-10-batches-py",
    archive=File(
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        170498071,
        ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    ),
    train=(
        File("data_batch_1", "c99cafc152244af753f735de768cd75f", 31035704),
        File("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec", 31035320),
        File("data_batch_3", "54ebc095f3ab1f0389bbae665268c751", 31035999),
        File("data_batch_4", "634d18415352ddfa80567beed471001a", 31035696),
        File("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb", 31035623),
    ),
    test=File("test_batch", "40351d587109b95175f43aff81a1287e", 31035526),
    meta=File("batches.meta", "5ff9c542aee3614f3951f8cda6e48888", 158),
    labels="labels",
    names="label_names",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = CifarSpec(
    name="cifar100",
    folder="cifar-100-python",
    archive=File(
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        169001437,
        ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    ),
    train=(File("train", "16019d7e3df5f24257cddd939b257f8d"),),
    test=File("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    meta=File("meta", "7973b15100ade9c7d40fb424638fde48"),
    labels="fine_labels",
    names="fine_label_names",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def load_cifar(spec: CifarSpec, data_dir: Path, *, download: bool = False) -> Dataset:
    """Reads `spec` under `data_dir`. If its folder is not complete, the archive is unpacked, or fetched if `download`.

    DataError names each file that is missing or wrong, what was expected and what to do.
    """
    folder = _complete_folder(spec, data_dir, download)
    train_x, train_y = zip(*(_read_batch(folder / file.name, spec.labels) for file in spec.train), strict=True)
    test_x, test_y = _read_batch(folder / spec.test.name, spec.labels)
    return Dataset(
        name=spec.name,
        train_x=torch.cat(train_x),
        train_y=torch.cat(train_y),
        test_x=test_x,
        test_y=test_y,
        classes=_read_names(folder / spec.meta.name, spec.names),
        mean=spec.mean,
        std=spec.std,
        augment="crop_flip",
    )


def _complete_folder(spec: CifarSpec, data_dir: Path, download: bool) -> Path:
    require_folder(data_dir, spec.name)
    here = data_dir.name == spec.folder or any((data_dir / file.name).is_file() for file in spec.files)
    folder = data_dir if here else data_dir / spec.folder
    faults = {file: fault for file in spec.files if (fault := problem(folder / file.name, file))}
    if not faults:
        return folder
    archive = data_dir / spec.archive.name
    archive_fault = problem(archive, spec.archive)
    if archive_fault and download:
        fetch(spec.archive, archive)
        archive_fault = None
    if archive_fault is None:
        unpack(archive, {f"{spec.folder}/{file.name}": file for file in spec.files}, folder)
        return folder
    lines = "".join(f"  expected {folder / file.name}: {file}\n    found: {fault}\n" for file, fault in faults.items())
    raise DataError(
        f"{spec.name}: {describe_folder(data_dir)}\n{lines}  or the archive {archive}: {spec.archive}\n"
        f"    found: {archive_fault}\n"
        f"Allow the download (download=True, --download), or get {spec.archive.urls[0]} and put it in {data_dir}."
    )


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode` as numpy's pickles call it (bytes in protocols 0 to 2), without the codecs that decompress."""
    if encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise pickle.UnpicklingError(f"forbidden encoding {encoding!r}")
    return text.encode("latin1")


_RECONSTRUCT = np.zeros(0).__reduce__()[0]  # numpy moved its module, so ask an array for it
SAFE_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return SAFE_GLOBALS[module, name]
        except KeyError:
            allowed = ", ".join(f"{m}.{n}" for m, n in SAFE_GLOBALS)
            raise DataError(f"the pickle asks for the forbidden global {module}.{name}; allowed: {allowed}") from None


def safe_unpickle(content: bytes, source: str) -> Any:
    """Unpickles containers, numbers, strings and numpy arrays; nothing that could run code.

    Text of Python 2 becomes str by latin1, as numpy's arrays need. `source` names the origin in errors.
    DataError on a global outside SAFE_GLOBALS (named) and on a damaged pickle.
    """
    try:
        return _SafeUnpickler(io.BytesIO(content), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{source}: not a readable pickle ({type(error).__name__}: {error})") from error


def _read_dict(path: Path) -> dict[str, Any]:
    content = safe_unpickle(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary, found {type(content).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def _read_batch(path: Path, labels_key: str) -> tuple[Tensor, Tensor]:
    content = _read_dict(path)
    data, labels = content.get("data"), content.get(labels_key)
    pixels = 3 * SIDE * SIDE
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != pixels:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: 'data' must be uint8 (N, {pixels}), found {found}")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise DataError(f"{path}: {labels_key!r} must be a list of {len(data)} labels, found {type(labels).__name__}")
    return torch.from_numpy(data.copy()).view(-1, 3, SIDE, SIDE), torch.tensor(labels, dtype=torch.int64)


def _read_names(path: Path, key: str) -> tuple[str, ...]:
    names = _read_dict(path).get(key)
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: {key!r} must be a list of class names, found {type(names).__name__}")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)
