"""`imagefolder`: image files in ImageNet's layout, DATA_DIR/{train,val}/CLASS/*, decoded when needed.

Training: a random area of 8 to 100 % at a random aspect of 3/4 to 4/3, resized, mirrored at random (C. Szegedy et al.,
Going Deeper with Convolutions, arXiv 1409.4842, section 6). Evaluation: shorter side to size * 256 / 224, central crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from subbyte.data.dataset import DataError, Dataset
from subbyte.data.files import describe_folder, require_folder
from subbyte.data.images import open_image, resize_and_crop, to_tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training set
AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10


class ImageFolder(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A map-style data set: folder[i] is (uint8 (3, S, S), label), usable in a torch DataLoader.

    root: the folder that holds one folder a class. train: folder[i] is augmented with torch's global generator; `read`
    takes a generator instead. classes: the allowed names in label order (None: the folders found, sorted).
    Attributes: paths, labels (int64 (N,)), classes, image_size, resize.
    """

    def __init__(
        self, root: Path, *, image_size: int = 224, train: bool = False, classes: Sequence[str] | None = None
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be positive, found {image_size}")
        self.image_size, self.resize, self.train = image_size, round(image_size * 256 / 224), train
        entries = root.iterdir() if root.is_dir() else ()
        found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        if not found:
            raise DataError(f"imagefolder: expected folders {root}/CLASS/ with images, but {describe_folder(root)}")
        self.classes = tuple(found if classes is None else classes)
        if unknown := [name for name in found if name not in self.classes]:
            raise DataError(f"imagefolder: {root} has folders that are no training class: {', '.join(unknown[:5])}")
        self.paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.classes):
            files = sorted(path for path in (root / name).glob("**/*") if path.suffix.lower() in EXTENSIONS)
            if not files and classes is None:
                raise DataError(f"imagefolder: the class folder {root / name} has no image ({', '.join(EXTENSIONS)})")
            self.paths += files
            labels += [label] * len(files)
        if not self.paths:
            raise DataError(f"imagefolder: no image ({', '.join(EXTENSIONS)}) in the folders of {root}")
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index, augment=self.train), int(self.labels[index])

    def read(self, index: int, *, augment: bool, generator: torch.Generator | None = None) -> Tensor:
        """Image `index` as uint8 (3, S, S): augmented with draws from `generator`, or resized and cropped centrally.

        DataError naming the file if it cannot be decoded.
        """
        image = open_image(self.paths[index], channels=3)
        if not augment:
            return to_tensor(resize_and_crop(image, self.resize, self.image_size))
        from PIL.Image import Resampling

        left, top, w, h = random_area(*image.size, generator)
        image = image.crop((left, top, left + w, top + h)).resize((self.image_size,) * 2, Resampling.BILINEAR)
        pixels = to_tensor(image)
        return pixels.flip(2) if torch.rand((), generator=generator) < 0.5 else pixels


def random_area(width: int, height: int, generator: torch.Generator | None = None) -> tuple[int, int, int, int]:
    """left, top, w, h of a random part: its area uniform in AREA times the image's, log of w / h uniform in ASPECT.

    Parts that do not fit are drawn again; after ATTEMPTS the largest central part with an allowed aspect is taken.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for _ in range(ATTEMPTS):
        u = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * u[0])
        aspect = math.exp(low + (high - low) * u[1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(0, width - w + 1, (), generator=generator))
            top = int(torch.randint(0, height - h + 1, (), generator=generator))
            return left, top, w, h
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def load_imagefolder(data_dir: Path, *, image_size: int = 224) -> Dataset:
    """Lists DATA_DIR/train and DATA_DIR/val; opens no image yet. DataError says which folder is missing or empty."""
    require_folder(data_dir, "imagefolder")
    for part in ("train", "val"):
        if not (data_dir / part).is_dir():
            raise DataError(
                f"imagefolder: expected {data_dir / 'train'}/CLASS/*.jpg and {data_dir / 'val'}/CLASS/*.jpg, "
                f"but {describe_folder(data_dir)}. There is no download: ImageNet is at https://image-net.org "
                f"(sort its validation images into class folders first)."
            )
    train = ImageFolder(data_dir / "train", image_size=image_size, train=True)
    val = ImageFolder(data_dir / "val", image_size=image_size, classes=train.classes)
    return Dataset(
        name="imagefolder",
        train_x=train,
        train_y=train.labels,
        test_x=val,
        test_y=val.labels,
        classes=train.classes,
        mean=MEAN,
        std=STD,
        augment="imagenet",
    )
