"""LogUnbiased (LUQ): levels that are powers of two, with stochastic rounding between them and below the smallest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..numerics import FRACTION_BITS, power_of_two, random_bits16, round_nearest, round_stochastic
from ..qtensor import Emulated
from .base import Quantizer


@dataclass(frozen=True)
class LogUnbiased(Quantizer):
    """Levels 0 and +-alpha 2^i, i = 0..L - 1, with L = 2^(b-1) - 1 and alpha = R 2^(1-L): FP4 [1,3,0] at 4 bits.

    With y = |x| / alpha and lower level l <= y (2^i, or 0 where y < 1), the next level u and the fixed-point
    t = rint((y - l) / (u - l) 2^16):   level = u with probability t / 2^16, l otherwise
    so E[level] = l + (u - l) t / 2^16, below alpha (stochastic underflow) as above it (logarithmic rounding). R is a
    level, nothing is clipped. Nearest rounding takes the nearer level, the lower one in the middle between two.

    The products are emulated. (They need not be: at 4 bits y is an integer up to 64, a product of 7-bit integers; but
    that is not a product of 4-bit integers, which is what this stands beside.)

    Source: Chmiel et al., "Accurate neural training with 4-bit matrix multiplications at standard formats" (LUQ), arXiv
    2112.10769. Its second sample (SMP) is LayerScheme.gradient_samples.

    >>> import torch
    >>> LogUnbiased(3, rounding="nearest")(torch.tensor([4.0, -1.9, 0.4, 2.0])).values.tolist()
    [4.0, -2.0, 0.0, 2.0]
    """

    bits: int = 4
    rounding: str = "stochastic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits > 6:
            raise ValueError(f"LogUnbiased takes 2 to 6 bits, not {self.bits}: 7 already span more than float32 can")

    @property
    def levels(self) -> int:
        """L, how many magnitudes there are besides 0."""
        return (1 << (self.bits - 1)) - 1

    def represent(self, x: Tensor, stream: Tensor | None) -> Emulated:
        r = ops.amax(x, ops.WHOLE)
        x = x.float() if self.signed else x.float().clamp(min=0)
        usable = r > 0
        top = float(1 << (self.levels - 1))
        y = torch.where(usable, x.abs() / torch.where(usable, r, torch.ones_like(r)), torch.zeros_like(r)) * top
        octave = ((y.clamp(min=1.0).view(torch.int32) >> 23) - 127).clamp(0, self.levels - 1)
        low = power_of_two(octave)
        small = y < 1
        gap = torch.where(small, torch.ones_like(low), low)
        low = torch.where(small, torch.zeros_like(low), low)
        t = torch.round((y - low) / gap * (1 << FRACTION_BITS)).nan_to_num(0.0).to(torch.int32)
        if stream is None:
            up = round_nearest(t)
        else:
            up = round_stochastic(t, random_bits16(stream, x.numel()).view(x.shape))
        alpha = torch.where(r == 0, torch.zeros_like(r), r * (1.0 / top))  # NaN where r is
        return Emulated(torch.copysign(low + up * gap, x) * alpha, self.format)

    def details(self) -> str:
        return f"{self.levels} octaves"
