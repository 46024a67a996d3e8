"""SAWB and MSEClip: one scale for the tensor, from a range below its maximum. What lies beyond is clipped.

Clipping trades a large error of few values for a smaller step of all others. It biases stochastic rounding, so these
are for weights and activations. Their products are integer products as those of AbsMax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..numerics import RANGE_FLOOR, power_of_two
from .base import Quantizer

SAWB_COEFFICIENTS = {
    1: (2.539, 1.619),
    3: (6.924, 6.282),
    7: (11.792, 11.82),
    15: (16.942, 17.828),
    31: (22.18, 24.002),
    63: (27.533, 30.348),
    127: (33.035, 36.896),
    255: (38.578, 43.504),
}
"""Largest code Q -> (c1, c2), fitted on six densities as the paper does; tests/test_quantizers_clip.py fits them again.

The paper's own figures belong to a grid of 2^b levels without zero; this one is {-Q..Q}. From 6 bits on a line through
six densities is coarse, and no paper has used it: a uniform density is clipped at 0.8 of its maximum or below.
"""

MOMENT_BITS = 16
"""|x| enters the moments as an integer of this many bits: their sums are exact, in any order, on any device."""


@dataclass(frozen=True)
class SAWB(Quantizer):
    """s = alpha / Q with alpha = c1 sqrt(E[x^2]) - c2 E|x|, between E|x| and max |x|.

    The moments are those of the values that are not 0, which every grid represents. (c1, c2) make alpha the range of
    least squared error over Gaussian, Laplace, logistic, uniform, triangular and von Mises densities.

    Source: Choi et al., "Bridging the accuracy gap for 2-bit quantized neural networks", arXiv 1807.06964
    (statistics-aware weight binning).

    >>> import torch
    >>> x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    >>> SAWB(4).ranges(x)[0] < x.abs().max()
    tensor([True])
    """

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        top = ops.amax(x, ops.WHOLE)
        unit = _unit(top)
        m = torch.where(x < 0, 0, x) if not self.signed else x.abs()
        m = torch.round(m.float() / unit).nan_to_num(0.0, 0.0, 0.0).to(torch.int64)
        n = (m > 0).sum().clamp(min=1).double()
        mean, square = m.sum().double() / n, m.square().sum().double() / n
        c1, c2 = SAWB_COEFFICIENTS[self.format.qmax]
        alpha = (c1 * square.sqrt() - c2 * mean).maximum(mean) * unit.double()
        return _at_most(alpha.float(), top), None, 0


@dataclass(frozen=True)
class MSEClip(Quantizer):
    """s = r / Q with the r of least squared error of nearest rounding among i R / candidates, i = 1..candidates.

    The error is that of a histogram of |x| with BINS bins up to R, so its root is exact to sqrt(n) R / 2 BINS and the
    cost does not grow with the number of candidates.

    Source: the criterion is that of Sung, Shin, Hwang, "Resiliency of deep neural networks under quantization", arXiv
    1511.06488; searching it on a grid of candidates is usual.
    """

    candidates: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.candidates <= 1024:
            raise ValueError(f"MSEClip takes 1 to 1024 candidates, not {self.candidates}")

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        top = ops.amax(x, ops.WHOLE)
        safe = torch.where(top > 0, top, torch.ones_like(top))
        m = torch.where(x < 0, 0, x) if not self.signed else x.abs()
        at = (m.float() / safe * BINS).nan_to_num(0.0, 0.0, 0.0).clamp(max=BINS - 1).to(torch.int64)
        count = torch.bincount(at.flatten(), minlength=BINS).double()
        centre = (torch.arange(BINS, dtype=torch.float64, device=x.device) + 0.5) / BINS
        share = torch.arange(1, self.candidates + 1, dtype=torch.float64, device=x.device) / self.candidates
        q = self.format.qmax
        step = share.unsqueeze(1) / q
        code = torch.round(centre / step).clamp(max=q)
        cost = ((centre - code * step).square() * count).sum(1)
        best = self.candidates - 1 - cost.flip(0).argmin()  # the largest range where several tie
        return _at_most(top * share[best].float(), top), None, 0

    def details(self) -> str:
        return "" if self.candidates == 64 else f"{self.candidates} candidates"


BINS = 4096
"""Of MSEClip's histogram: 16 for each step of the finest format at full range."""


def _unit(top: Tensor) -> Tensor:
    """The power of two u with top / u < 2^MOMENT_BITS: |x| / u is exact. 1 where top is 0 or no number."""
    exponent = (torch.where(top > 0, top, torch.ones_like(top)).view(torch.int32) >> 23) - 127
    return power_of_two((exponent - (MOMENT_BITS - 1)).clamp(min=-126))


def _at_most(r: Tensor, top: Tensor) -> Tensor:
    """r between RANGE_FLOOR and top, shaped as top; 0 where top is, NaN where top is."""
    r = r.view(top.shape).clamp(min=RANGE_FLOOR).minimum(top)
    return torch.where(top > 0, r, top)
