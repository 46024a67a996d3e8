"""MXInt: a power-of-two scale for each block of 32 neighbours along an axis, as in OCP microscaling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics import RANGE_FLOOR, power_of_two, range_bits, range_from_bits
from ..wording import closest
from .base import Quantizer

SCALES = ("floor", "ceil")


@dataclass(frozen=True)
class MXInt(Quantizer):
    """Codes times s_B = 2^n for each block B of `block` consecutive indices of `axis` (at every other index).

    scale = "floor"  n = floor(log2 R_B) - m, m = floor(log2 Q): the standard's; up to a step beyond Q s_B is clipped
    scale = "ceil"   the least n with R_B <= Q 2^n: nothing is clipped, so stochastic rounding is unbiased
    The last block may be shorter. A scale that changes within the axis that a product reduces has no integer product
    there that is one GEMM: those products are emulated.

    Source: OCP Microscaling Formats (MX) Specification 1.0; Rouhani et al., "Microscaling data
    formats for deep learning", arXiv 2310.10537. MXINT8 is MXInt(8) but for its code -128, which no format here has.

    >>> import torch
    >>> q = MXInt(4, block=2)(torch.tensor([[1.0, 0.3, 0.01, 0.06]]))
    >>> q.codes.tolist(), q.scale.tolist()
    ([[4, 1, 1, 7]], [[0.25, 0.25, 0.0078125, 0.0078125]])
    """

    block: int = 32
    axis: int = 1
    scale: str = "floor"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise ValueError(f"a block of MXInt has 1 index or more, not {self.block}")
        if self.scale not in SCALES:
            raise ValueError(f"scale is one of {', '.join(SCALES)}, not {self.scale!r}{closest(self.scale, SCALES)}")

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        if not 0 <= self.axis < x.ndim:
            raise ValueError(f"blocks along axis {self.axis} need a tensor that has it, not {tuple(x.shape)}")
        n = x.shape[self.axis]
        bits = range_bits(x).movedim(self.axis, -1)
        bits = torch.nn.functional.pad(bits, (0, -n % self.block)).unflatten(-1, (-1, self.block))
        if bits.numel() == 0:
            return x.new_zeros([1] * x.ndim, dtype=torch.float32), None, 0
        top = range_from_bits(bits.amax(-1))
        q = self.format.qmax
        exponent = (torch.where(top > 0, top, torch.ones_like(top)).view(torch.int32) >> 23) - 127
        exponent = exponent - (q.bit_length() - 1)
        r = power_of_two(exponent) * q
        if self.scale == "ceil":
            more = power_of_two(exponent + 1) * q  # Inf at the very top of float32: there the floor's stays
            r = torch.where((top > r) & more.isfinite(), more, r)
        r = torch.where(top > 0, r, top).repeat_interleave(self.block, -1)[..., :n]
        return torch.where(r < RANGE_FLOOR, torch.zeros_like(r), r).movedim(-1, self.axis), None, 0

    def details(self) -> str:
        axis = "" if self.axis == 1 else f", axis {self.axis}"
        return f"blocks of {self.block}{axis}" + ("" if self.scale == "floor" else f", {self.scale}")
