"""Conv2d: its output and both gradients as integer convolutions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd import ConvProducts
from ..ops import ConvParams
from .quantized import ProductLayer


class Conv2d(ProductLayer, nn.Conv2d, replaces=nn.Conv2d):
    """torch.nn.Conv2d with the operands of its three products quantized as its LayerScheme says.

    x (N, C, H, W) or (C, H, W), any stride, padding (also "same" and every padding_mode), dilation and groups.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"Conv2d expects inputs (N, {self.in_channels}, H, W), not {tuple(x.shape)}")
        images, params = self._pad(x if x.ndim == 4 else x.unsqueeze(0))
        y = self.multiply(images, ConvProducts(params))
        return y if x.ndim == 4 else y.squeeze(0)

    def _pad(self, x: Tensor) -> tuple[Tensor, ConvParams]:
        """Pad here what an integer convolution cannot: other values than zeros, and uneven sides of padding "same"."""
        stride, dilation = _pair(self.stride), _pair(self.dilation)
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
        elif not isinstance(self.padding, str):
            padding = _pair(self.padding)  # not what __init__ made of it: networks are given other paddings afterwards
        elif self.padding == "valid":
            padding = (0, 0)
        else:
            total = [d * (k - 1) for d, k in zip(dilation, self.kernel_size, strict=True)]
            low = padding = (total[0] // 2, total[1] // 2)
            if total[0] % 2 or total[1] % 2:
                x, padding = F.pad(x, (low[1], total[1] - low[1], low[0], total[0] - low[0])), (0, 0)
        return x, ConvParams(stride, padding, dilation, self.groups)


def _pair(v: Any) -> tuple[int, int]:
    return (v, v) if isinstance(v, int) else (v[0], v[1])
