"""BlockShiftQuant: powers of two for short blocks, inside the codes, so that any integer product takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..qtensor import Inside, QTensor
from .base import Quantizer, and_clip
from .token_shift import TokenShiftQuant


@dataclass(frozen=True)
class BlockShiftQuant(Quantizer):
    """Blocks whose scales differ by powers of two: s_B = (R / Q) 2^-e(B), e(B) in 0..groups - 1, R = clip max |x|.

    A block is `block` elements that follow each other in row-major order (the last may be shorter): 8 of a
    convolution's weight are about the 3 x 3 pixels of a filter, 8 of a matrix neighbours in a row. e(B) is that of
    TokenShiftQuant, with blocks for tokens, and so is the QTensor: codes q 2^(groups - 1 - e(B)) in bits + groups - 1
    <= 8 bits with one scale. Where MXInt has a scale inside of a sum, which one GEMM cannot take, here it is inside of
    the codes. Packed, it takes `bits` a code and 2 bits (3 for more than 4 groups) a block, where the tensor is
    contiguous and a number of blocks.

    Source: this project's, between ShiftQuant (Guo et al., arXiv 2411.10948) and the MX formats (arXiv 2310.10537).

    >>> import torch
    >>> q = BlockShiftQuant(4, groups=3, block=2)(torch.tensor([[8.0, 3.0, 0.5, 1.0]]))
    >>> q.codes.tolist(), str(q.format)
    ([[28, 12, 2, 4]], 's6')
    """

    groups: int = 3
    block: int = 8
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise ValueError(f"a block of BlockShiftQuant has 1 element or more, not {self.block}")
        _ = self._of_rows  # which checks groups and clip

    @property
    def top(self) -> int:
        """The largest exponent."""
        return self.groups - 1

    @property
    def _of_rows(self) -> TokenShiftQuant:
        """The quantizer of a matrix with a row for each block."""
        return TokenShiftQuant(self.bits, self.signed, self.rounding, self.groups, self.clip)

    def _rows(self, x: Tensor) -> Tensor:
        flat = x.contiguous().flatten()
        return pad(flat, (0, -flat.numel() % self.block)).view(-1, self.block)

    def represent(self, x: Tensor, stream: Tensor | None) -> QTensor:
        q = self._of_rows.represent(self._rows(x), stream)
        codes = q.codes.flatten()[: x.numel()].view(x.shape)
        if not x.is_contiguous():
            codes = torch.empty_like(x, dtype=codes.dtype).copy_(codes)  # in x's memory order
        return QTensor(codes, q.scale.view([1] * x.ndim), q.format, inside=self.inside_of(x))

    def inside_of(self, x: Tensor) -> Inside | None:
        """Of x's QTensor; None where x is not contiguous or no number of blocks, and for one group."""
        whole = x.is_contiguous() and x.numel() % self.block == 0
        return Inside(self.top, self.block) if self.top and whole else None

    def groups_used(self, x: Tensor, q: QTensor) -> int:
        return self._of_rows.groups_used(self._rows(x), q)

    def details(self) -> str:
        return and_clip(f"{self.groups} groups of blocks of {self.block}", self.clip)
