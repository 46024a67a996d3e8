"""Conv1d, Conv2d and Conv3d: their outputs and both gradients as integer convolutions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import ConvParams
from ..products import ConvProducts
from .quantized import ProductLayer

SIZES = ("", "L", "H, W", "D, H, W")
"""Names of one, two and three spatial dimensions, for messages."""


class _Convolution(ProductLayer):
    """What the three have in common: any stride, padding ("same" and every padding_mode too), dilation and groups."""

    in_channels: int
    kernel_size: tuple[int, ...]
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    padding_mode: Any
    _reversed_padding_repeated_twice: list[int]

    def forward(self, x: Tensor) -> Tensor:
        images, batched = as_batch(self, x, self.in_channels)
        products = self.products_of_input()
        y = self.multiply(*(self._pad(images) if products is None else (images, products)))
        return y if batched else y.squeeze(0)

    def products_of_input(self) -> ConvProducts | None:
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return None
        n = len(self.kernel_size)  # padding: not what __init__ made of it, networks are given other paddings later
        params = ConvParams(each(self.stride, n), each(self.padding, n), each(self.dilation, n), self.groups)
        return ConvProducts(params)

    def _pad(self, x: Tensor) -> tuple[Tensor, ConvProducts]:
        """Pad here what an integer convolution cannot: other values than zeros, and uneven sides of padding "same"."""
        n = len(self.kernel_size)
        stride, dilation, padding = each(self.stride, n), each(self.dilation, n), (0,) * n
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        elif self.padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, self.kernel_size, strict=True)]
            padding = tuple(t // 2 for t in total)
            if any(t % 2 for t in total):
                x = F.pad(x, [p for t in reversed(total) for p in (t // 2, t - t // 2)])
                padding = (0,) * n
        return x, ConvProducts(ConvParams(stride, padding, dilation, self.groups))


class Conv1d(_Convolution, nn.Conv1d, replaces=nn.Conv1d):
    """torch.nn.Conv1d with the operands of its three products quantized as its LayerScheme says.

    x (N, C, L) or (C, L). A two-dimensional convolution of height 1: it runs on those kernels.
    """


class Conv2d(_Convolution, nn.Conv2d, replaces=nn.Conv2d):
    """torch.nn.Conv2d with the operands of its three products quantized as its LayerScheme says.

    x (N, C, H, W) or (C, H, W).
    """


class Conv3d(_Convolution, nn.Conv3d, replaces=nn.Conv3d):
    """torch.nn.Conv3d with the operands of its three products quantized as its LayerScheme says.

    x (N, C, D, H, W) or (C, D, H, W).
    """


def each(v: Any, n: int) -> tuple[int, ...]:
    """One number for each of n spatial dimensions, from one for all or from n."""
    return (v,) * n if isinstance(v, int) else tuple(v[:n])


def as_batch(layer: Any, x: Tensor, channels: int) -> tuple[Tensor, bool]:
    """(x with an axis of samples, whether it had one). ValueError for another rank or number of channels."""
    n = len(layer.kernel_size)
    if x.ndim not in (n + 1, n + 2) or x.shape[-n - 1] != channels:
        raise ValueError(f"{type(layer).__name__} expects inputs (N, {channels}, {SIZES[n]}), not {tuple(x.shape)}")
    batched = x.ndim == n + 2
    return x if batched else x.unsqueeze(0), batched
