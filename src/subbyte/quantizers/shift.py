"""ShiftQuant: groups of channels whose scales differ by powers of two, which an integer product can take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..numerics import MAX_EXPONENT, clipped
from ..qtensor import Emulated, QTensor
from ..wording import closest
from .base import Quantizer, and_clip, axis_of_ranges, channel_ranges, check_clip
from .groups import split


@dataclass(frozen=True)
class ShiftQuant(Quantizer):
    """Groups of channels whose scales differ by powers of two: s_k = clip (R / Q) 2^-e(k).

    e(k) is the largest exponent of the set with r_k <= R 2^-e(k), by exact comparison. With clip = 1 nothing is ever
    clipped, so stochastic rounding is unbiased. With clip < 1 (this project's) what lies beyond clip R 2^-e(k) ends
    there: the few largest values are biased, and the variance of all others, which grows with the step, falls. The
    set holds `groups` exponents, the first of them 0:
      exponents = "consecutive"   0, 1, ..., groups - 1
      exponents = "chosen"        for each tensor the subset of 0..max_exponent that minimises the bound
                                  sum_k s_k^2 on the variance, by dynamic programming over octaves
    Channels whose exponents add up to at most 8 - bits of this operand and 8 - bits of the other fold into int8
    (ops.shiftmm): 9 consecutive groups at 4 bits, 5 at 6 bits, cost an integer product nothing.

    Source: Guo et al., "Towards Accurate and Efficient Sub-8-Bit Integer Training", arXiv 2411.10948; the choice of
    exponents is this project's.

    >>> q = ShiftQuant(4, groups=3, rounding="nearest")(torch.tensor([[8.0, 3.0, 0.5]]))
    >>> q.shift.tolist(), q.codes.tolist()
    ([[0, 1, 2]], [[7, 5, 2]])
    """

    groups: int = 4
    exponents: str = "consecutive"
    max_exponent: int | None = None
    axis: int = 1
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.clip)
        kinds = ("consecutive", "chosen")
        if self.exponents not in kinds:
            raise ValueError(
                f"exponents is one of {', '.join(kinds)}, not {self.exponents!r}{closest(self.exponents, kinds)}"
            )
        if not 1 <= self.groups <= MAX_EXPONENT + 1:
            raise ValueError(f"ShiftQuant takes 1 to {MAX_EXPONENT + 1} groups, not {self.groups}")
        if self.exponents == "consecutive" and self.max_exponent is not None:
            raise ValueError("max_exponent belongs to chosen exponents; consecutive ones end at groups - 1")
        if self.exponents == "chosen" and not self.groups - 1 <= self.max_shift <= MAX_EXPONENT:
            raise ValueError(
                f"max_exponent must be {self.groups - 1}..{MAX_EXPONENT} for {self.groups} groups, not {self.max_shift}"
            )

    @property
    def max_shift(self) -> int:
        """The largest exponent that may occur: a setting, so that widths and bounds are known before any data is."""
        if self.exponents == "consecutive":
            return self.groups - 1
        return self.max_exponent if self.max_exponent is not None else 2 * (8 - self.bits)

    def ranges(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        return self.ranges_of(channel_ranges(x, self.axis))

    @property
    def range_axis(self) -> int | None:
        return axis_of_ranges(self.axis)

    def represent(self, x: Tensor, stream: Tensor | None) -> QTensor | Emulated:
        if self.exponents == "chosen" or not 0 <= self.axis < x.ndim or not x.shape[self.axis]:
            return super().represent(x, stream)
        form = (self.max_shift, self.clip, stream, self.bits, self.signed)
        codes, scale, shift = ops.shift_codes(x, self.axis, *form)  # the same in one call
        return QTensor(codes, scale, self.format, shift, self.max_shift)

    @property
    def shifts(self) -> bool:
        return True

    def ranges_of(self, r_k: Tensor) -> tuple[Tensor, Tensor, int]:
        if not r_k.numel():
            return r_k.new_zeros([1] * r_k.ndim), r_k.to(torch.uint8), self.max_shift
        r, shift = ops.shift_exponents(r_k, self.max_shift, 0)
        if self.exponents == "chosen":
            shift = chosen_exponents(shift, r_k > 0, self.groups, self.max_shift).to(torch.uint8)
        return clipped(r, self.clip), shift, self.max_shift

    def details(self) -> str:
        chosen = "" if self.exponents == "consecutive" else f" chosen up to {self.max_shift}"
        axis = "" if self.axis == 1 else f", axis {self.axis}"
        return and_clip(f"{self.groups} groups{chosen}{axis}", self.clip)


def chosen_exponents(octave: Tensor, counted: Tensor, groups: int, top: int) -> Tensor:
    """Each channel's exponent from the best set {0 = e_0 < e_1 < ...} of `groups` exponents in 0..top.

    Minimises sum over counted channels of 4^-e(k), e(k) the largest exponent of the set that is <= octave(k): dynamic
    programming where f_g(b) = min_a f_(g-1)(a) + cost(a, b), and cost(a, b) = 4^-a #{k: a <= octave(k) < b}.
    """
    levels = torch.arange(top + 1, device=octave.device)
    histogram = (
        (octave.flatten().unsqueeze(0) == levels.unsqueeze(1)).logical_and(counted.flatten().unsqueeze(0)).sum(1)
    )
    below = torch.cat((histogram.new_zeros(1), histogram.cumsum(0))).double()  # channels with octave < b, b = 0..top+1
    cost = (below.unsqueeze(0) - below[:-1].unsqueeze(1)) * 4.0 ** -levels.double().unsqueeze(1)  # (a, b)
    ends = torch.arange(top + 2, device=octave.device)
    cost = torch.where(ends.unsqueeze(0) > levels.unsqueeze(1), cost, torch.inf)
    return split(cost, octave, groups)
