"""ZeroPoint: an asymmetric grid from the smallest to the largest value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..numerics import RANGE_FLOOR, IntFormat, step
from ..qtensor import Emulated
from .base import Quantizer


@dataclass(frozen=True)
class ZeroPoint(Quantizer):
    """x ~ z + s q with q in 0..2^b - 1, z = min x, s = (max x - min x) / (2^b - 1).

    One pair (s, z) for the tensor, or for each index of `axis`; with axis 0 on a gradient: PSQ as in its paper.
    Nothing is clipped, so stochastic rounding is unbiased. The sum of z over what a product reduces is no code times a
    scale: its products are emulated. A tensor whose width max - min is below RANGE_FLOOR is z everywhere; NaN or Inf,
    or a width beyond float32, makes its share NaN.

    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", arXiv 1712.05877, equation 1, with z a float as in StatQuant, Chen et al., arXiv 2010.14298.

    >>> import torch
    >>> ZeroPoint(2)(torch.tensor([1.0, 2.1, 4.0])).values.tolist()
    [1.0, 2.0, 4.0]
    """

    axis: int | None = None

    @property
    def format(self) -> IntFormat:
        """Unsigned: the offset takes the place of a sign."""
        return IntFormat(self.bits, signed=False)

    def represent(self, x: Tensor, stream: Tensor | None) -> Emulated:
        x = x.float()
        if self.axis is not None and not 0 <= self.axis < x.ndim:
            raise ValueError(f"a zero point for each index of axis {self.axis} needs it, not {tuple(x.shape)}")
        if x.numel() == 0:
            return Emulated(x, self.format)
        rest = [i for i in range(x.ndim) if i != self.axis]
        low, high = (x.amin(rest, keepdim=True), x.amax(rest, keepdim=True)) if rest else (x, x)
        width = high - low
        width = torch.where(width.isfinite(), width, torch.full_like(width, torch.nan))
        width = torch.where(width < RANGE_FLOOR, torch.zeros_like(width), width)
        codes = ops.quantize(x - low, width, None, stream, self.bits, False)
        return Emulated(codes.float() * step(width, self.format) + low, self.format)

    def details(self) -> str:
        return "" if self.axis is None else f"axis {self.axis}"
