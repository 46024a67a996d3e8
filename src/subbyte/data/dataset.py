"""What a data set is: `Dataset` (images in memory or a lazy folder), `DatasetInfo` (what `predict` needs), `DataError`.

Not here: reading files (idx, cifar, digits, imagefolder), augmentation (augment) and batching (loader).
Shapes: N images, C channels, H = W = image_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from subbyte.data.imagefolder import ImageFolder


class DataError(RuntimeError):
    """Data is missing, damaged or not what it should be; the message says what was expected, found, and what to do."""


@dataclass(frozen=True)
class DatasetInfo:
    """What turns an image file into a model's input, and its output into a name, without the data set.

    `resize` is the length that the shorter side gets before the central crop of image_size (None: image_size itself).
    `to_dict` gives plain lists, strings and numbers (JSON, safetensors metadata); `from_dict` checks and restores them.

    >>> info = DatasetInfo("toy", ("cat", "dog"), (0.5,), (0.25,), in_channels=1, image_size=8)
    >>> DatasetInfo.from_dict(info.to_dict()) == info
    True
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_channels: int
    image_size: int
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.in_channels not in (1, 3) or self.image_size < 1:
            raise ValueError(
                f"{self.name}: needs 1 or 3 channels and a positive image size, "
                f"found {self.in_channels} and {self.image_size}"
            )
        if not len(self.mean) == len(self.std) == self.in_channels:
            raise ValueError(
                f"{self.name}: mean has {len(self.mean)} and std {len(self.std)} values for {self.in_channels} channels"
            )
        if not min(self.std) > 0:
            raise ValueError(f"{self.name}: every std must be positive, found {self.std}")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: `json.dumps` takes it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of `to_dict`. ValueError on a missing or unknown key."""
        known = {field.name for field in fields(cls)}
        missing, unknown = sorted(known - {"resize"} - set(values)), sorted(set(values) - known)
        if missing or unknown:
            raise ValueError(f"not the description of a data set: missing keys {missing}, unknown keys {unknown}")
        return cls(
            name=str(values["name"]),
            classes=tuple(map(str, values["classes"])),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            in_channels=int(values["in_channels"]),
            image_size=int(values["image_size"]),
            resize=None if values.get("resize") is None else int(values["resize"]),
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set with what is needed to feed them to a model.

    train_x, test_x: uint8 (N, C, H, W) tensors in memory, or an `ImageFolder` that decodes image by image.
    train_y, test_y: int64 (N,), indices into `classes`. mean, std: per channel, of pixels / 255.
    augment: the standard augmentation's name ('none', 'shift', 'crop_flip', 'imagenet'), used by `batches`.
    """

    name: str
    train_x: Tensor | ImageFolder
    train_y: Tensor
    test_x: Tensor | ImageFolder
    test_y: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if isinstance(x, Tensor) and (x.dtype != torch.uint8 or x.ndim != 4 or x.shape[2] != x.shape[3]):
                raise DataError(f"{self.name}: {part}_x must be uint8 (N, C, H, H), found {x.dtype} {tuple(x.shape)}")
            if y.dtype != torch.int64 or y.shape != (len(x),):
                raise DataError(
                    f"{self.name}: {part}_y must be int64 ({len(x)},), one label an image, "
                    f"found {y.dtype} {tuple(y.shape)}"
                )
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
                raise DataError(
                    f"{self.name}: {part} labels are in {int(y.min())}..{int(y.max())}, "
                    f"but there are {self.num_classes} classes"
                )

    @property
    def in_memory(self) -> bool:
        """True if train_x and test_x are tensors, False if they are decoded image by image."""
        return isinstance(self.train_x, Tensor)

    @property
    def in_channels(self) -> int:
        """C."""
        return len(self.mean)

    @property
    def image_size(self) -> int:
        """H (= W) of what `batches` yields."""
        return self.train_x.shape[-1] if isinstance(self.train_x, Tensor) else self.train_x.image_size

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def info(self) -> DatasetInfo:
        """The part of it that a checkpoint keeps for `preprocess_image`."""
        resize = None if isinstance(self.test_x, Tensor) else self.test_x.resize
        return DatasetInfo(self.name, self.classes, self.mean, self.std, self.in_channels, self.image_size, resize)

    def to(self, device: str | torch.device) -> Dataset:
        """The same data set with its tensors on `device`, which saves a copy a batch; a lazy folder stays as it is."""

        def moved(x: Tensor | ImageFolder) -> Tensor | ImageFolder:
            return x.to(device) if isinstance(x, Tensor) else x

        return replace(
            self,
            train_x=moved(self.train_x),
            train_y=self.train_y.to(device),
            test_x=moved(self.test_x),
            test_y=self.test_y.to(device),
        )
