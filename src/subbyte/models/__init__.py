"""Models by name, as ordinary float modules: `build` and `names`. `subbyte.quantize_` is what makes them integer.

>>> import torch
>>> build("resnet20", num_classes=10)(torch.zeros(1, 3, 32, 32)).shape
torch.Size([1, 10])
"""

from __future__ import annotations

from typing import Any

from torch import nn

from subbyte.models.reparametrize import KINDS, reparametrize_
from subbyte.models.resnet import BasicBlock, Bottleneck, ResNet
from subbyte.models.smallcnn import SmallCNN
from subbyte.models.smallvit import SmallViT
from subbyte.wording import unknown

__all__ = ["ResNet", "SmallCNN", "SmallViT", "build", "names"]

CIFAR_PIXELS = 32
CIFAR_WIDTHS = (16, 32, 64)
IMAGENET_WIDTHS = (64, 128, 256, 512)
CIFAR_STEM_UP_TO = 64  # pixels; the imagenet stem would leave a 64x64 image 2x2 at the end

# CIFAR: depth = 6 n + 2 with n blocks in each of three stages.
_CIFAR: dict[str, tuple[int, ...]] = {f"resnet{depth}": ((depth - 2) // 6,) * 3 for depth in (8, 20, 32, 44, 56, 110)}
_IMAGENET: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return ("smallcnn", "smallvit", *_CIFAR, *_IMAGENET)


def build(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    stem: str | None = None,
    image_size: int | None = None,
    *,
    shortcut: str | None = None,
    zero_init_residual: bool = False,
) -> nn.Module:
    """A new model with random weights from torch's global generator.

    stem: 'cifar' (3x3, stride 1) or 'imagenet' (7x7, stride 2, pooling). Left out, resnet18/34/50 take 'cifar' for an
    image_size of at most 64 and 'imagenet' otherwise; the CIFAR ResNets (8, 20, 32, 44, 56, 110) have only 'cifar'.
    shortcut: 'A' (zero padding, no parameters; the CIFAR ResNets' default, as in the paper) or 'B' (1x1 convolution;
    the others' default, torchvision's keys). zero_init_residual: residual branches start at zero.
    A suffix puts a function on every convolution's weight (reparametrize): 'resnet20+ws' weight standardization,
    'resnet8+gains' constant gains of the channels.
    ValueError for an unknown name (with the closest known one) and for options that the model does not have.
    """
    name, _, kind = name.partition("+")
    if kind:
        if kind not in KINDS:
            raise ValueError(f"unknown suffix '+{kind}' of {name!r}; known are {', '.join(f'+{k}' for k in KINDS)}")
        options: dict[str, Any] = dict(shortcut=shortcut, zero_init_residual=zero_init_residual)
        return reparametrize_(build(name, num_classes, in_channels, stem, image_size, **options), kind)
    if name not in names():
        raise ValueError(unknown("model", name, names()))
    if num_classes < 1 or in_channels < 1:
        raise ValueError(f"num_classes and in_channels must be positive, found {num_classes} and {in_channels}")
    if stem not in (None, "cifar", "imagenet"):
        raise ValueError(f"unknown stem {stem!r}; known are cifar, imagenet")
    if shortcut not in (None, "A", "B"):
        raise ValueError(f"unknown shortcut {shortcut!r}; known are A (zero padding), B (projection)")
    if name in ("smallcnn", "smallvit"):
        if stem or shortcut or zero_init_residual:
            raise ValueError(f"{name} has no stem, shortcut or residual branch to choose")
        if name == "smallcnn":
            return SmallCNN(num_classes, in_channels)
        return SmallViT(num_classes, in_channels, image_size or CIFAR_PIXELS)
    if name in _CIFAR:
        if stem == "imagenet":
            raise ValueError(f"{name} has only the cifar stem; for large images take resnet18, resnet34 or resnet50")
        stem, shortcut = "cifar", shortcut or "A"
    else:
        stem = stem or ("cifar" if image_size is not None and image_size <= CIFAR_STEM_UP_TO else "imagenet")
        shortcut = shortcut or "B"
    block, depths = _IMAGENET[name] if name in _IMAGENET else (BasicBlock, _CIFAR[name])
    widths = CIFAR_WIDTHS if name in _CIFAR else IMAGENET_WIDTHS
    return ResNet(
        block,
        depths,
        widths,
        num_classes,
        in_channels=in_channels,
        stem=stem,
        shortcut=shortcut,
        zero_init_residual=zero_init_residual,
    )
