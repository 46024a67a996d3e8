"""ConvTranspose1d, 2d and 3d: the products of an integer convolution in other roles (see TransposedConvProducts)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..ops import ConvParams
from ..products import TransposedConvProducts, swap_channels
from .conv import as_batch, each
from .quantized import ProductLayer


class _TransposedConvolution(ProductLayer):
    """What the three have in common.

    size = (in - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1; any groups. The weight stays
    torch's (I, O/groups, ...), but reaches its quantizer as (O, I/groups, ...): axis 0 is the outputs, as elsewhere.
    """

    in_channels: int
    kernel_size: tuple[int, ...]
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    padding_mode: Any
    weight: Tensor
    _output_padding: Any

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """output_size: (P, Q) or (N, O, P, Q), one of those that the stride leaves to choose; None: output_padding."""
        if self.padding_mode != "zeros":
            raise ValueError(f"{type(self).__name__} pads with zeros only, not {self.padding_mode!r}")
        images, batched = as_batch(self, x, self.in_channels)
        n = len(self.kernel_size)
        stride, padding, dilation = (each(v, n) for v in (self.stride, self.padding, self.dilation))
        more = self._output_padding(x, output_size, stride, padding, self.kernel_size, n, dilation)
        if any(m >= max(s, d) for m, s, d in zip(more, stride, dilation, strict=True)):
            raise ValueError(
                f"output_padding {tuple(more)} must be smaller than stride {stride} or dilation {dilation}"
            )
        size = tuple(
            (i - 1) * s - 2 * p + d * (k - 1) + m + 1
            for i, s, p, d, k, m in zip(
                images.shape[2:], stride, padding, dilation, self.kernel_size, more, strict=True
            )
        )
        products = TransposedConvProducts(ConvParams(stride, padding, dilation, self.groups), size)
        y = self.multiply(images, products, swap_channels(self.weight, self.groups))
        return y if batched else y.squeeze(0)


class ConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d, replaces=nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d in integers as its LayerScheme says. x (N, C, L) or (C, L)."""


class ConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d, replaces=nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d in integers as its LayerScheme says. x (N, C, H, W) or (C, H, W)."""


class ConvTranspose3d(_TransposedConvolution, nn.ConvTranspose3d, replaces=nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d in integers as its LayerScheme says. x (N, C, D, H, W) or (C, D, H, W)."""
