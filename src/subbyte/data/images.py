"""Image files: decoding with Pillow, and the one way from a file to a model's input, shared by training and `predict`.

Pillow is optional: without it the in-memory tasks work and these functions say what to install.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from subbyte.data.augment import normalize
from subbyte.data.dataset import DataError, DatasetInfo

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(path: str | Path, channels: int) -> Image:
    """The decoded image in grey (channels 1) or RGB (3), turned upright as its EXIF tag asks.

    DataError naming the file if it is missing, no image or damaged; ImportError if Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('reading image files needs Pillow: pip install "subbyte[images]"') from error
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder, not an image file' if path.is_dir() else 'no such image file'}")
    try:
        with Image.open(path) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's conversion would clip at 255, not scale
                image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
            return image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and their own
        raise DataError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from error


def to_tensor(image: Image) -> Tensor:
    """uint8 (C, H, W) of a Pillow image."""
    pixels = torch.from_numpy(np.array(image))  # np.array copies: the tensor owns its memory
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def resize_and_crop(image: Image, resize: int, size: int) -> Image:
    """Shorter side to `resize` (bilinear, anti-aliased), then the central size x size."""
    from PIL.Image import Resampling

    w, h = image.size
    short = min(w, h)
    w, h = (max(size, round(side * resize / short)) for side in (w, h))
    image = image.resize((w, h), Resampling.BILINEAR) if (w, h) != image.size else image
    left, top = (w - size) // 2, (h - size) // 2
    return image.crop((left, top, left + size, top + size))


def preprocess_image(path: str | Path, info: DatasetInfo) -> Tensor:
    """An image file as the model's input: float32 (1, C, H, W), resized, cropped and normalized as in evaluation.

    Colours are kept as they are: MNIST-like models expect light strokes on a dark ground.
    Errors as in `open_image`.
    """
    image = resize_and_crop(open_image(path, info.in_channels), info.resize or info.image_size, info.image_size)
    return normalize(to_tensor(image)[None], info.mean, info.std)
