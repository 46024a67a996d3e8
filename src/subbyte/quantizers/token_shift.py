"""TokenShiftQuant: ShiftQuant along the axis that a weight's gradient reduces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import ops
from ..numerics import MAX_EXPONENT, IntFormat, clipped, step
from ..qtensor import Inside, QTensor
from .base import Quantizer, and_clip, channel_ranges, check_clip

OPERAND_BITS = 8
"""Of what an integer product takes."""


@dataclass(frozen=True)
class TokenShiftQuant(Quantizer):
    """Groups of tokens whose scales differ by powers of two: s_t = (R / Q) 2^-e(t), e(t) in 0..groups - 1.

    R = clip max |x|. A token t is an index of all axes but 1: a row of a matrix, a pixel of a sample. e(t) is the
    largest exponent with r_t <= R 2^-e(t), where r_t = max |x| of the token. Of tokens that reach beyond R it is 0, and
    what lies beyond R gets the last code; with clip = 1 there are none, so stochastic rounding is unbiased.
    grad_weight reduces over tokens, so these are the groups that ShiftQuant makes for that product. Tokens lie further
    apart than channels, and most of a gradient's are silent: the variance falls accordingly (recipes/theory.py).
    Activations may be grouped so as well; those behind a ReLU have unsigned codes, Q = 2^bits - 1.

    The QTensor holds q 2^(groups - 1 - e(t)) and one scale: the shift is folded into int8, and each element still is
    one of 2^bits - 1 codes (2^bits, unsigned). So bits + groups - 1 <= 8, and any product takes it, whatever axis that
    reduces. Packed, it takes `bits` a code and 2 bits (3 for more than 4 groups) a token.

    channel_groups > 1 makes groups of channels too, by ShiftQuant's rule: x 2^e(k) is what is grouped by tokens, where
    e(k) is the largest of 0..channel_groups - 1 with r_k <= max |x| 2^-e(k). These exponents are the QTensor's shift,
    since int8 has no room for both. For gradients whose channels lie far apart: grad_input, which reduces over
    channels, multiplies by them inside of its sums, and x takes another pass. channels_apart > 0 leaves all e(k) at 0,
    and products as fast as without, unless a quarter of the channels (those of zeros aside) lie that many octaves or
    more below the loudest.

    Source: this project's, after ShiftQuant (Guo et al., arXiv 2411.10948).

    >>> import torch
    >>> q = TokenShiftQuant(4, groups=3)(torch.tensor([[8.0, 3.0], [0.5, 1.0]]))
    >>> q.codes.tolist(), round(q.scale.item() * 7 * 4, 4)
    ([[28, 12], [2, 4]], 8.0)
    """

    groups: int = 5
    clip: float = 1.0
    channel_groups: int = 1
    channels_apart: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.clip)
        most = OPERAND_BITS - self.bits + 1
        if not 1 <= self.groups <= most:
            raise ValueError(f"{self.bits} bits leave room in {OPERAND_BITS} for 1 to {most} groups, not {self.groups}")
        check_channel_groups(self, self.channel_groups, self.channels_apart)

    @property
    def top(self) -> int:
        """The largest exponent."""
        return self.groups - 1

    @property
    def inside(self) -> Inside | None:
        """Of the QTensor; None for one group."""
        return Inside(self.top) if self.top else None

    @property
    def shifts(self) -> bool:
        return self.channel_groups > 1

    def represent(self, x: Tensor, stream: Tensor | None, r: Tensor | None = None) -> QTensor:
        """r: max |x|, if it is known."""
        r, shift = self._range(x, r)
        return self.of_codes(ops.quantize_tokens(x, r, shift, stream, self.bits, self.signed, self.top), r, shift)

    def _range(self, x: Tensor, r: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(R, the exponents of the channels or None)."""
        if x.ndim < 2:
            raise ValueError(f"TokenShiftQuant needs an axis 1 beside that of the tokens, not {tuple(x.shape)}")
        if not self.shifts or not x.shape[1]:
            return self.range_of(ops.amax(x, ops.WHOLE) if r is None else r), None
        return self.ranges_of(channel_ranges(x, 1))[:2]

    def range_of(self, r: Tensor) -> Tensor:
        """R of r = max |x|."""
        return clipped(r, self.clip)

    def ranges_of(self, r_k: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """(R, e(k) or None, the largest there may be) from r_k = amax(x, 1), at least one."""
        if not self.shifts:
            return self.range_of(r_k.amax(list(range(r_k.ndim)), keepdim=True)), None, 0
        r, shift = ops.shift_exponents(r_k, self.channel_groups - 1, self.channels_apart)
        return self.range_of(r), shift, self.channel_groups - 1

    def scale_and_format(self, r: Tensor) -> tuple[Tensor, IntFormat]:
        """Of codes with these exponents inside of them."""
        return step(r, self.format) * 2.0**-self.top, IntFormat(self.bits + self.top, self.signed)

    def of_codes(self, codes: Tensor, r: Tensor, shift: Tensor | None = None) -> QTensor:
        """The QTensor of codes that ops.quantize_tokens, or a pass that ends in it, made with the range r."""
        return QTensor(
            codes, *self.scale_and_format(r), shift, 0 if shift is None else self.channel_groups - 1, self.inside
        )

    def groups_used(self, x: Tensor, q: QTensor) -> int:
        r, shift = self._range(x)
        return len(ops.token_exponents(ops.shifted(x, shift), r, self.top).unique())

    def details(self) -> str:
        more = of_channels(self.channel_groups, self.channels_apart)
        return and_clip(f"{self.groups} groups of tokens{more}", self.clip)


def check_channel_groups(q: Quantizer, groups: int, apart: int) -> None:
    """ValueError unless a channel may have these exponents beside those inside of its codes."""
    if not 1 <= groups <= MAX_EXPONENT + 1:
        raise ValueError(f"{type(q).__name__} takes 1 to {MAX_EXPONENT + 1} channel_groups, not {groups}")
    if not 0 <= apart < groups:
        raise ValueError(
            f"channels_apart is an exponent of one of the {groups} channel_groups, 0 to {groups - 1}, not {apart}"
        )


def of_channels(groups: int, apart: int) -> str:
    """For details(): the groups of channels beside the others; nothing for one."""
    return f", {groups} of channels" * (groups > 1) + f" from {apart} octaves" * (apart > 0)
