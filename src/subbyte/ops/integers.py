"""The passes of the integer-only mode over sums of products: ranges, codes, tables, and the gradient of a norm.

x      int32 sums with |x| <= 2^30, so that rounding a shift of up to 30 stays in 32 bits
axis   the channels, 1, or WHOLE
Each body is integer arithmetic throughout: there is no float in any of them, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import numerics
from ..integer import right_nearest, right_stochastic, shift_to_bits
from ..numerics import IntFormat, packed_bytes
from .chain import masked, pack_mask
from .dispatch import op
from .integer_tokens import token_shift

SUM_BITS = 30
"""|x| <= 2^SUM_BITS."""

_SAMPLE_BITS = 17  # of an element in int_squared_errors: a squared error has 34 bits at most, the sum of 2^16 50
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


@op(
    "(Tensor x) -> (Tensor, Tensor)",
    lambda x: (x.new_empty(x.shape), x.new_empty(packed_bytes(x.numel(), 1), dtype=torch.uint8)),
)
def int_relu(x: Tensor) -> tuple[Tensor, Tensor]:
    """(max(x, 0), mask): x int32; mask: one bit an element in row-major order, set where x > 0, uint8."""
    x = x.contiguous()
    return x.clamp(min=0), pack_mask((x > 0).flatten())


@op("(Tensor g, Tensor mask) -> Tensor", lambda g, mask: g.new_empty(g.shape))
def int_relu_grad(g: Tensor, mask: Tensor) -> Tensor:
    """g, int32, where int_relu's mask is set, and 0 elsewhere."""
    return masked(g.contiguous(), mask) if g.numel() else g.clone()


def _add_fake(a, a_right, a_room, b, b_right, b_room):
    return a.new_empty(torch.broadcast_shapes(a.shape, b.shape))


@op("(Tensor a, Tensor a_right, int a_room, Tensor b, Tensor b_right, int b_room) -> Tensor", _add_fake)
def int_add(a: Tensor, a_right: Tensor, a_room: int, b: Tensor, b_right: Tensor, b_room: int) -> Tensor:
    """a / 2^a_right + b / 2^b_right, each half to even, int32.

    a, b: int32, of one shape or broadcasting; a_right, b_right: int32 (), no lower than -a_room and -b_room, where the
    codes have so many bits to spare. A shift by more than SUM_BITS is one by SUM_BITS.
    """
    return (_aligned(a, a_right, a_room) + _aligned(b, b_right, b_room)).contiguous()


def _aligned(codes: Tensor, right: Tensor, room: int) -> Tensor:
    """codes / 2^right, right >= -room, in 32 bits."""
    if room > 0:
        codes = codes << (-right).clamp(0, room)
    return right_nearest(codes, right.clamp(0, SUM_BITS))


@op(
    "(Tensor x, int every, Tensor base, Tensor largest, Tensor? needed, int top, int candidates, int bits, bool signed)"
    " -> Tensor",
    lambda x, every, base, largest, needed, top, candidates, bits, signed: largest.new_empty(candidates),
)
def int_squared_errors(
    x: Tensor,
    every: int,
    base: Tensor,
    largest: Tensor,
    needed: Tensor | None,
    top: int,
    candidates: int,
    bits: int,
    signed: bool,
) -> Tensor:
    """sum of (x - code 2^shift)^2 for the bases base, base - 1, .. -> int64 (candidates,)

    The shift is the base, none below 0, or token_shift(needed, base, top) where there is `needed`, for each token.
    Of every `every`-th element, each rounded to 17 bits below the largest; int64 throughout.
    x int32; base int32, largest = max |x| int64, of one element each; needed as for int_quantize_tokens.
    """
    fmt = IntFormat(bits, signed)
    drop = shift_to_bits(largest.flatten(), _SAMPLE_BITS)
    sample = right_nearest(x.flatten()[::every].to(torch.int64), drop)
    of_token = None if needed is None else needed.expand(x.shape).flatten()[::every]
    errors = []
    for below in range(candidates):
        shift = base.flatten() - below
        if of_token is not None:
            shift = token_shift(of_token, shift, top)
        shift = (shift - drop).clamp(min=0)
        codes = right_nearest(sample, shift).clamp(fmt.qmin, fmt.qmax)
        errors.append((sample - (codes << shift)).square().sum())
    return torch.stack(errors)
