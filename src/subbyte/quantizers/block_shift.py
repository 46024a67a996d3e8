"""BlockShiftQuant: powers of two for short blocks, inside the codes, so that any integer product takes them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import ops
from ..numerics import clipped, rows_of_blocks
from ..qtensor import Inside, QTensor
from .base import Quantizer, and_clip, channel_ranges
from .token_shift import TokenShiftQuant, check_channel_groups, of_channels


@dataclass(frozen=True)
class BlockShiftQuant(Quantizer):
    """Blocks whose scales differ by powers of two: s_B = (R / Q) 2^-e(B), e(B) in 0..groups - 1, R = clip max |x|.

    A block is `block` elements that follow each other in row-major order (the last may be shorter): 8 of a
    convolution's weight are about the 3 x 3 pixels of a filter, 8 of a matrix neighbours in a row. e(B) is that of
    TokenShiftQuant, with blocks for tokens, and so is the QTensor: codes q 2^(groups - 1 - e(B)) in bits + groups - 1
    <= 8 bits with one scale. Where MXInt has a scale inside of a sum, which one GEMM cannot take, here it is inside of
    the codes. Packed, it takes `bits` a code and 2 bits (3 for more than 4 groups) a block, where the tensor is
    contiguous and a number of blocks.

    channel_groups > 1 makes groups of channels too, for weights whose output channels (indices k of axis 0) lie far
    apart: x 2^e(k) is what has blocks, e(k) the largest of 0..channel_groups - 1 with max |x_k| <= max |x| 2^-e(k).
    These exponents are the QTensor's shift. channels_apart as in TokenShiftQuant.

    Source: this project's, between ShiftQuant (Guo et al., arXiv 2411.10948) and the MX formats (arXiv 2310.10537).

    >>> import torch
    >>> q = BlockShiftQuant(4, groups=3, block=2)(torch.tensor([[8.0, 3.0, 0.5, 1.0]]))
    >>> q.codes.tolist(), str(q.format)
    ([[28, 12, 2, 4]], 's6')
    """

    groups: int = 3
    block: int = 8
    clip: float = 1.0
    channel_groups: int = 1
    channels_apart: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise ValueError(f"a block of BlockShiftQuant has 1 element or more, not {self.block}")
        _ = self._of_rows  # which checks groups and clip
        check_channel_groups(self, self.channel_groups, self.channels_apart)

    @property
    def top(self) -> int:
        """The largest exponent."""
        return self.groups - 1

    @property
    def _of_rows(self) -> TokenShiftQuant:
        """The quantizer of a matrix with a row for each block."""
        return TokenShiftQuant(self.bits, self.signed, self.rounding, self.groups, self.clip)

    @property
    def shifts(self) -> bool:
        return self.channel_groups > 1

    def _channels(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(max |x|, the exponents of the channels), if there are any."""
        if not self.shifts or not x.ndim or not x.shape[0]:
            return None, None
        r, shift = ops.shift_exponents(channel_ranges(x, 0), self.channel_groups - 1, self.channels_apart)
        return r.view(1, 1), shift

    def represent(self, x: Tensor, stream: Tensor | None) -> QTensor:
        r, shift = self._channels(x)
        r = clipped(ops.amax(x, ops.WHOLE) if r is None else r, self.clip)
        form = (self.bits, self.signed, self.top)
        codes = ops.quantize_blocks(ops.shifted(x, shift), r, stream, *form, self.block)
        scale, wide = self._of_rows.scale_and_format(r)
        most = 0 if shift is None else self.channel_groups - 1
        return QTensor(codes, scale.view([1] * x.ndim), wide, shift, most, self.inside_of(x))

    def inside_of(self, x: Tensor) -> Inside | None:
        """Of x's QTensor; None where x is not contiguous or no number of blocks, and for one group."""
        whole = x.is_contiguous() and x.numel() % self.block == 0
        return Inside(self.top, self.block) if self.top and whole else None

    def groups_used(self, x: Tensor, q: QTensor) -> int:
        return self._of_rows.groups_used(rows_of_blocks(ops.shifted(x, self._channels(x)[1]), self.block), q)

    def details(self) -> str:
        more = of_channels(self.channel_groups, self.channels_apart)
        return and_clip(f"{self.groups} groups of blocks of {self.block}{more}", self.clip)
