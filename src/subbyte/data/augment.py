"""Normalization and augmentation of whole batches, on any device, without a loop over images.

The random numbers are drawn where the generator lives (a CPU generator by default) and then moved, so that the same
seed gives the same batch on a CPU and on a GPU. Shapes: N images, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("none", "shift", "crop_flip", "imagenet")
CROP_PAD = 4  # He et al., arXiv 1512.03385, section 4.2
SMALL_SIDE = 16  # below it a shift of 2 pixels would cut strokes off


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std per channel for uint8 x (N, C, H, W); a float x is taken to be in 0..1 already.

    Returns float32, or x's own float type. NaN stays NaN. ValueError if mean or std do not fit C.

    >>> normalize(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), (0.5,), (0.25,)).item()
    2.0
    """
    if x.ndim != 4 or not len(mean) == len(std) == x.shape[1]:
        raise ValueError(
            f"normalize needs x (N, C, H, W) and C values each in mean and std; "
            f"x is {tuple(x.shape)}, mean has {len(mean)}, std {len(std)}"
        )
    if not x.is_floating_point():
        # A tensor on x's device, not a Python number, by which CUDA multiplies as 1/255: it would differ from the CPU.
        x = x.float() / torch.tensor(255.0, device=x.device)
    shift = torch.tensor(mean, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
    scale = torch.tensor(std, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
    return (x - shift) / scale


def augment(x: Tensor, kind: str, generator: torch.Generator | None = None) -> Tensor:
    """Random changes of x (N, C, H, W), uint8 or float; each image is drawn on its own. The new border is 0.

    'none': x itself. 'shift': moved by up to 1 pixel (H below 16) or 2, horizontally and vertically.
    'crop_flip': padded by 4, cropped back at a random place, mirrored with probability 1/2. Give it normalized images,
    so that the border is the mean colour. ValueError for an unknown kind and for 'imagenet', which changes sizes and
    therefore happens while an image is decoded (`ImageFolder`).
    """
    if kind == "none":
        return x
    if kind == "shift":
        pad = 1 if min(x.shape[-2:]) < SMALL_SIDE else 2
    elif kind == "crop_flip":
        pad = CROP_PAD
    elif kind == "imagenet":
        raise ValueError("augmentation 'imagenet' works on image files as they are decoded, not on a batch")
    else:
        raise ValueError(f"unknown augmentation {kind!r}; known are {', '.join(KINDS)}")

    n, c, h, w = x.shape
    where = generator.device if generator is not None else torch.device("cpu")
    corner = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator, device=where).to(x.device)
    rows = torch.arange(h, device=x.device).expand(n, h) + corner[0]  # N H, indices into the padded image
    cols = torch.arange(w, device=x.device).expand(n, w)
    if kind == "crop_flip":
        flip = torch.randint(0, 2, (n, 1), generator=generator, device=where).to(x.device, torch.bool)
        cols = torch.where(flip, w - 1 - cols, cols)
    cols = cols + corner[1]
    padded = F.pad(x, (pad, pad, pad, pad)).flatten(2)
    index = (rows[:, :, None] * (w + 2 * pad) + cols[:, None, :]).view(n, 1, h * w)
    return padded.gather(2, index.expand(n, c, h * w)).view(n, c, h, w)
