"""The passes of the integer-only mode that give each token a scale of its own: tokens.py in integers alone.

A token is an index of all axes but 1. The scales of tokens differ by powers of two, and a shift inside of the codes
brings them to one, so that every product takes them: real = codes 2^(base - top), whatever the token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..integer import right_nearest, right_stochastic, shift_to_fit
from ..numerics import IntFormat, random_bits16, token_shape
from .dispatch import op, registered
from .quantize import WHOLE


def _shifts_fake(x, bits, signed):
    return x.new_empty(token_shape(x), dtype=torch.uint8), x.new_empty([1] * x.ndim, dtype=torch.int64)


@op("(Tensor x, int bits, bool signed) -> (Tensor, Tensor)", _shifts_fake)
def int_token_shifts(x: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """(n, max |x|): n(t) is the smallest of 0, 1, .. with |x| <= Q 2^n in all of token t.

    x: int32, |x| <= 2^30, two axes or more. n: uint8, in x's shape with 1 for axis 1; max |x|: int64, one element.
    """
    size = x.abs().amax(1, keepdim=True) if x.numel() else x.new_zeros(token_shape(x))
    return shift_to_fit(size, IntFormat(bits, signed)).to(torch.uint8).contiguous(), registered["int_amax"](x, WHOLE)


def token_shift(needed: Tensor, base: Tensor, top: int) -> Tensor:
    """The shift of each token, int32: needed where that is in base - top .. base, and otherwise the end it lies behind.

    A token may go further than `needed`, down to base - top, and what goes no further than base may be clipped.
    """
    base = base.to(torch.int32)
    return torch.minimum(torch.maximum(needed.to(torch.int32), base - top), base)


def _quantize_fake(x, needed, base, stream, bits, signed, top):
    return x.new_empty(x.shape, dtype=IntFormat(bits, signed).dtype)


@op(
    "(Tensor x, Tensor needed, Tensor base, Tensor? stream, int bits, bool signed, int top) -> Tensor",
    _quantize_fake,
)
def int_quantize_tokens(
    x: Tensor, needed: Tensor, base: Tensor, stream: Tensor | None, bits: int, signed: bool, top: int
) -> Tensor:
    """codes = clamp(x / 2^s, qmin, qmax) 2^(s - base + top), s = token_shift(needed, base, top) of x's token.

    Rounded as by int_quantize: half to even, or stochastic by bits of (stream, row-major index). -> int8 or uint8,
    contiguous; bits + top <= 8.
    needed: int_token_shifts(x), uint8; base: int32, 0..30, one element.
    """
    fmt = IntFormat(bits, signed)
    shift = token_shift(needed, base, top)
    if stream is None:
        v = right_nearest(x, shift)
    else:
        v = right_stochastic(x, shift, random_bits16(stream, x.numel()).view(x.shape))
    return (v.clamp(fmt.qmin, fmt.qmax) << (shift - base + top)).to(fmt.dtype).contiguous()
