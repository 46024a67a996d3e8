"""Conv2d: its output and both gradients as integer convolutions."""

from __future__ import annotations

import torch
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
        left_w, right_w, left_h, right_h = self._reversed_padding_repeated_twice
        padding = (left_h, left_w)
        if self.padding_mode != "zeros":
            x, padding = (
                torch.nn.functional.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode),
                (0, 0),
            )
        elif (left_w, left_h) != (right_w, right_h):
            x, padding = torch.nn.functional.pad(x, self._reversed_padding_repeated_twice), (0, 0)
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return x, ConvParams((sh, sw), padding, (dh, dw), self.groups)
