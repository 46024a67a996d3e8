"""quantize_tokens: codes with a step of their own for each token, brought to one scale by a shift.

A token is an index of all axes but 1: a row of a matrix, a pixel of a sample. The shift is inside the codes (it folds
into int8), so what comes out has one scale, and every product takes it as it is, whatever axis it reduces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat
from .dispatch import op, registered


def token_exponents(x: Tensor, r: Tensor, top: int) -> Tensor:
    """largest_exponents of each token's range, max |x| along axis 1."""
    bits = numerics.range_bits(x)
    most = numerics.range_from_bits(bits.amax(1, keepdim=True) if x.numel() else bits[:, :1])
    return numerics.largest_exponents(most, r, top)


@op(
    "(Tensor x, Tensor r, Tensor? stream, int bits, bool signed, int top) -> Tensor",
    lambda x, r, stream, bits, signed, top: torch.empty_like(x, dtype=IntFormat(bits, signed).dtype),
)
def quantize_tokens(x: Tensor, r: Tensor, stream: Tensor | None, bits: int, signed: bool, top: int) -> Tensor:
    """codes = quantize(x, r, e, stream, bits, signed) 2^(top - e), e = token_exponents(x, r, top).

    x  any float, 2 axes or more; r: float32 of one element, max |x|; bits + top <= 8
    """
    e = token_exponents(x, r, top)
    codes = registered["quantize"](x, r, e.to(torch.uint8), stream, bits, signed)
    return torch.empty_like(x, dtype=codes.dtype).copy_(codes * (1 << (top - e)).to(codes.dtype))
