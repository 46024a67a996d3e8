"""`batches`: the one way from a Dataset to a model, a pure function of (seed, epoch, batch index).

Every draw has its own generator, seeded by a hash of what it is for: the order of an epoch by (seed, epoch), the
augmentation of a batch by (seed, epoch, batch), that of an image file by (seed, epoch, image). So a run that stops in
the middle of an epoch goes on bit for bit with `start=`, and torch's global generator is neither used nor changed.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from subbyte.data.augment import KINDS, augment, normalize
from subbyte.data.dataset import DataError, Dataset
from subbyte.data.imagefolder import ImageFolder

ORDER, BATCH, IMAGE = range(3)  # what a generator is for
MAX_WORKERS = 8


def num_batches(n: int, batch_size: int, *, drop_last: bool = False) -> int:
    """How many batches n images give: n / batch_size, rounded up (down if drop_last).

    >>> num_batches(10, 4), num_batches(10, 4, drop_last=True)
    (3, 2)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, found {batch_size}")
    return n // batch_size if drop_last else -(-n // batch_size)


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    device: str | torch.device = "cpu",
    drop_last: bool = False,
    kind: str | None = None,
    workers: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (x, y): float32 (B, C, H, W) normalized, int64 (B,), on `device`.

    train: the training set in a random order and augmented, otherwise the test set as it is.
    Batch i depends on (seed, epoch, i) and nothing else: `start=k` yields exactly what `start=0` yields from batch k
    on, whatever the device and the number of workers.
    drop_last: leave out a last batch that is not full. kind: instead of dataset.augment ('none' turns it off).
    workers: processes that decode an image folder (None: one a core, at most 8; 0: in this process).
    ValueError for impossible arguments, at once; DataError, while iterating, names an image file that is damaged.
    """
    images, labels = (dataset.train_x, dataset.train_y) if train else (dataset.test_x, dataset.test_y)
    total = num_batches(len(labels), batch_size, drop_last=drop_last)
    if total == 0:
        raise ValueError(f"{dataset.name}: {len(labels)} images give no batch of {batch_size} (drop_last={drop_last})")
    if not 0 <= start <= total:
        raise ValueError(f"start must be in 0..{total}, the number of batches, found {start}")
    kind = (dataset.augment if kind is None else kind) if train else "none"
    allowed = [known for known in KINDS if known == "none" or (known == "imagenet") == isinstance(images, ImageFolder)]
    if kind not in allowed:
        raise ValueError(f"augmentation {kind!r} does not fit {dataset.name}; possible are {', '.join(allowed)}")
    n = len(labels)
    order = torch.randperm(n, generator=_generator(ORDER, seed, epoch)) if train else torch.arange(n)
    chosen = order.split(batch_size)[start:total]
    device = torch.device(device)
    if isinstance(images, ImageFolder):
        view = _EpochView(images, seed, epoch, kind != "none")
        return _from_files(view, chosen, dataset, device, workers)
    return _from_memory(images, labels, chosen, dataset, device, kind, seed, epoch, start)


def _generator(purpose: int, *numbers: int) -> torch.Generator:
    """A CPU generator of its own for each (purpose, numbers); a hash keeps neighbouring seeds unrelated."""
    packed = struct.pack(f"<{1 + len(numbers)}q", purpose, *numbers)
    digest = hashlib.blake2b(packed, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)  # 63 bits: it wants a signed number


def _from_memory(
    images: Tensor,
    labels: Tensor,
    chosen: tuple[Tensor, ...],
    dataset: Dataset,
    device: torch.device,
    kind: str,
    seed: int,
    epoch: int,
    start: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch, index in enumerate(chosen, start):
        index = index.to(images.device)
        x, y = images[index].to(device), labels[index].to(device)
        generator = _generator(BATCH, seed, epoch, batch)
        if kind == "shift":  # before normalization: what comes in at the border is ground (0), not grey
            yield normalize(augment(x, kind, generator), dataset.mean, dataset.std), y
        else:  # after it: what comes in is the mean colour
            yield augment(normalize(x, dataset.mean, dataset.std), kind, generator), y


class _EpochView(torch.utils.data.Dataset[tuple[Tensor, int] | DataError]):
    """An ImageFolder in which each image of an epoch has its own generator.

    An error is a value, so that it leaves a worker process as it is, without a traceback in its text.
    """

    def __init__(self, images: ImageFolder, seed: int, epoch: int, augmented: bool) -> None:
        self.images, self.seed, self.epoch, self.augmented = images, seed, epoch, augmented

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        generator = _generator(IMAGE, self.seed, self.epoch, index)
        try:
            return self.images.read(index, augment=self.augmented, generator=generator), int(self.images.labels[index])
        except DataError as error:
            return error


def _collate(samples: list[tuple[Tensor, int] | DataError]) -> tuple[Tensor, Tensor] | DataError:
    good = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        good.append(sample)
    return torch.stack([x for x, _ in good]), torch.tensor([y for _, y in good], dtype=torch.int64)


def _from_files(
    view: _EpochView, chosen: tuple[Tensor, ...], dataset: Dataset, device: torch.device, workers: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        view,
        batch_sampler=[index.tolist() for index in chosen],
        num_workers=min(MAX_WORKERS, os.cpu_count() or 1) if workers is None else workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or it would draw from the global one, and a resumed run would differ
    )
    for sample in loader:
        if isinstance(sample, DataError):
            raise sample
        x, y = (part.to(device, non_blocking=True) for part in sample)
        yield normalize(x, dataset.mean, dataset.std), y
