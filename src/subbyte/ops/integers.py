"""The passes of the integer-only mode over sums of products: ranges, codes, tables, and the gradient of a norm.

x      int32 sums with |x| <= 2^30, so that rounding a shift of up to 30 stays in 32 bits
axis   the channels, 1, or WHOLE
Each body is integer arithmetic throughout: there is no float in any of them, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import numerics
from ..integer import right_nearest, right_stochastic
from ..numerics import IntFormat
from .dispatch import op

SUM_BITS = 30
"""|x| <= 2^SUM_BITS."""

_CODES = 256  # entries of a table: one for each pattern of a byte


def _amax_fake(x, axis):
    return x.new_empty([n if i == axis else 1 for i, n in enumerate(x.shape)], dtype=torch.int64)


@op("(Tensor x, int axis) -> Tensor", _amax_fake)
def int_amax(x: Tensor, axis: int) -> Tensor:
    """max |x| along all axes but `axis` (WHOLE: along all), int64, keeping dimensions of size 1; 0 for no elements."""
    if x.numel() == 0:
        return x.new_zeros([n if i == axis else 1 for i, n in enumerate(x.shape)], dtype=torch.int64)
    rest = [i for i in range(x.ndim) if i != axis]
    size = x.abs()
    return (size.amax(rest, keepdim=True) if rest else size.clone()).to(torch.int64)


def _quantize_fake(x, shift, stream, bits, signed):
    return x.new_empty(x.shape, dtype=IntFormat(bits, signed).dtype)


@op("(Tensor x, Tensor shift, Tensor? stream, int bits, bool signed) -> Tensor", _quantize_fake)
def int_quantize(x: Tensor, shift: Tensor, stream: Tensor | None, bits: int, signed: bool) -> Tensor:
    """codes = clamp(x / 2^shift, qmin, qmax): half to even, or stochastic by bits of (stream, row-major index).

    shift: int32, 0..30, broadcasts to x; -> contiguous int8 or uint8.
    """
    fmt = IntFormat(bits, signed)
    if stream is None:
        v = right_nearest(x, shift)
    else:
        v = right_stochastic(x, shift, numerics.random_bits16(stream, x.numel()).view(x.shape))
    return v.clamp(fmt.qmin, fmt.qmax).to(fmt.dtype).contiguous()


def _lookup_fake(codes, table):
    return codes.new_empty(codes.shape, dtype=table.dtype)


@op("(Tensor codes, Tensor table) -> Tensor", _lookup_fake)
def int_lookup(codes: Tensor, table: Tensor) -> Tensor:
    """out[n, c, ...] = table[c, code + 128] (table[c, code] for uint8). codes (N, C, ...), table (C, 256); contiguous.

    Whatever is a function of a code and its channel is a table: a norm with its gamma and beta.
    """
    index = codes.to(torch.int64) + (_CODES // 2 if codes.dtype == torch.int8 else 0)
    first = torch.arange(codes.shape[1], device=codes.device).view(1, -1, *[1] * (codes.ndim - 2)) * _CODES
    return table.flatten()[index + first].contiguous()


def _norm_grad_fake(g, k, u, v, a, shift, fraction):
    return g.new_empty(g.shape, dtype=torch.int32)


@op(
    "(Tensor g, Tensor k, Tensor u, Tensor v, Tensor a, Tensor shift, int fraction) -> Tensor",
    _norm_grad_fake,
)
def int_norm_grad(g: Tensor, k: Tensor, u: Tensor, v: Tensor, a: Tensor, shift: Tensor, fraction: int) -> Tensor:
    """dx = ((g 2^fraction - u - v sign(k)) a) / 2^shift, half to even, int32 (N, C, ...).

    g, k: int8 codes of the output's gradient and of xhat; u, v (int32) and a (int64): (C,); shift: int32 (). The
    factor in brackets has 32 bits at most, its product with a 62, the result 31.
    """
    u, v, a = (t.view(1, -1, *[1] * (g.ndim - 2)) for t in (u, v, a))
    bracket = (g.to(torch.int32) << fraction) - u - v * k.sign().to(torch.int32)
    return right_nearest(bracket.to(torch.int64) * a, shift).to(torch.int32).contiguous()
