"""Matrix products on the C++ kernels (csrc/gemm*): what they take, and how it is passed.

A call is one array of 64-bit integers (an address is one too), in the order of the C++ struct that its kernel reads.
Sums beyond int32 are added in int64 there; only what the references refuse as well (OverflowError) is not covered.
"""

from __future__ import annotations

import functools
import math
import struct

import torch
from torch import Tensor

from ..numerics import IntFormat, accumulator_bits, packed_bytes, product_bound
from ._cpu_call import CPU, FLOATS, call, new
from ._native import INT, POINTER, function

MAX_LEADING = 8
"""Leading dimensions of a batched product (GemmCall in csrc/gemm_call.h)."""

_NO_SCALES = (0,) * 5
NO_LEADING = (0,) * (1 + 5 * MAX_LEADING)
GEMM_CALL = struct.Struct(f"{2 * 7 + 8 + len(_NO_SCALES) + len(NO_LEADING)}q")

_gemm = function("sb_gemm", POINTER, INT)


def codes_ok(*tensors: Tensor) -> bool:
    return all(t.is_cpu and t.dtype in (torch.int8, torch.uint8) for t in tensors)


def floats_ok(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.is_cpu and t.dtype == torch.float32) for t in tensors)


def address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def bias_of(bias: Tensor | None, length: int) -> Tensor | None:
    """A bias of `length` as dense float32. ValueError for another length or device."""
    if bias is None:
        return None
    if bias.shape != (length,) or not bias.is_cpu:
        raise ValueError
    return bias.to(torch.float32).contiguous()


def along(shift: Tensor | None, axis: int, length: int) -> Tensor | None:
    """The exponents along `axis`, one for each index, dense. ValueError where they differ along another axis."""
    if shift is None:
        return None
    count = shift.numel()
    if count != shift.shape[axis] or shift.dtype != torch.uint8 or not shift.is_cpu:
        raise ValueError
    if count == length and shift.is_contiguous():
        return shift
    return shift.reshape(-1).expand(length).contiguous()


@functools.lru_cache(maxsize=1024)
def sum_is(left: tuple[int, bool, int], right: tuple[int, bool, int], length: int) -> str:
    """int32, int64, or "too wide" for what the references refuse. left, right: (bits, signed, max_shift)."""
    (a_bits, a_signed, a_max), (b_bits, b_signed, b_max) = left, right
    a, b, shift = IntFormat(a_bits, a_signed), IntFormat(b_bits, b_signed), a_max + b_max
    if accumulator_bits(a, b, length, shift) <= 32:
        return "int32"
    refused = (
        product_bound(a.qmax, b.qmax, 1, shift) > 1 << 53 or product_bound(a.qmax, b.qmax, length, shift) >= 1 << 63
    )
    return "too wide" if refused else "int64"


@functools.lru_cache(maxsize=1024)
def _matrices(a: tuple[int, ...], b: tuple[int, ...], left: tuple[int, bool, int], right: tuple[int, bool, int]):
    """(leading dimensions, m, k, n, dtype of the sums) of a product of these shapes and formats; None: not covered."""
    (*lead, m, k), (*lead_b, inner, n) = a, b
    if len(lead) > MAX_LEADING or k != inner or lead != lead_b:
        return None
    width = sum_is(left, right, k)
    return None if width == "too wide" else (tuple(lead), m, k, n, getattr(torch, width))


def _steps(scale: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a scale as it broadcasts to `shape`."""
    if scale.numel() == 1 and scale.ndim == len(shape):  # expand takes as long as a small product
        return (0,) * len(shape)
    return scale.expand(shape).stride()


def narrowed(shift: Tensor | None, top: int, *scales: Tensor) -> tuple[Tensor | None, int, Tensor]:
    """(shift, top, the first scale): the same product with the largest exponent that is there for top.

    Its sums have fewer bits, and none of them are exponents where all are 0. What 2^top loses the scale gains, unless
    it or the product of the scales would be rounded.
    """
    first = scales[0]
    largest = top if shift is None or not top or not shift.numel() else int(shift.max())
    if largest >= top or not all(s.numel() for s in scales):
        return shift, top, first
    least, most = (math.prod(s.aminmax()[i].item() for s in scales) for i in (0, 1))
    if not (least >= torch.finfo(torch.float32).tiny and max(most, first.max().item()) < 2.0 ** (127 - top)):
        return shift, top, first
    return shift if largest else None, largest, first * 2.0 ** (top - largest)


def _product(op: str, a, ea, a_bits, a_signed, a_max, right: tuple, scales, bias, half=False) -> Tensor:
    """int_matmul where scales is None, else scaled_matmul, in bfloat16 if half.

    right   b as (codes, shape, strides, shift, bits, signed, max_shift, are the codes packed?)
    """
    codes, size, strides, eb, b_bits, b_signed, b_max, packed = right
    if scales and floats_ok(*scales):
        sa, sb = scales
        ea, a_max, sa = narrowed(ea, a_max, sa, sb)
        eb, b_max, sa = narrowed(eb, b_max, sa, sb)
        scales = sa, sb
    found = _matrices(a.shape, tuple(size), (a_bits, a_signed, a_max), (b_bits, b_signed, b_max))
    if found is None or not codes_ok(a, codes) or not (scales is None or floats_ok(*scales)):
        return NotImplemented
    lead, m, k, n, sums = found
    try:
        ea, eb, bias = along(ea, -1, k), along(eb, -2, k), bias_of(bias, n)
    except ValueError:
        return NotImplemented
    out = new((*lead, m, n), FLOATS[half] if scales else sums)
    (*steps_a, a_row, a_column), (*steps_b, b_row, b_column) = a.stride(), strides
    if scales:
        sa, sb = scales
        (*steps_sa, a_step, _), (*steps_sb, _, b_step) = _steps(sa, (*lead, m, 1)), _steps(sb, (*lead, 1, n))
        scale_part = (sa.data_ptr(), a_step, sb.data_ptr(), b_step, address(bias))
    else:
        steps_sa, steps_sb, scale_part = lead, lead, _NO_SCALES
    leading = NO_LEADING
    if lead:
        steps = (step for dimension in zip(steps_a, steps_b, steps_sa, steps_sb) for step in dimension)
        rest = MAX_LEADING - len(lead)
        leading = (len(lead), *lead, *[0] * rest, *steps, *[0] * (4 * rest))
    fields = GEMM_CALL.pack(
        *(a.data_ptr(), a_row, a_column, address(ea), a_bits, a_signed, a_max),
        *(codes.data_ptr(), b_column, b_row, address(eb), b_bits, b_signed, b_max),
        *(packed, m, n, k, sums is torch.int64, out.data_ptr(), scales is not None, half, *scale_part, *leading),
    )
    return out if call(op, _gemm, fields) else NotImplemented


def int_matmul(a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift) -> Tensor:
    right = (b, b.shape, b.stride(), b_shift, b_bits, b_signed, b_max_shift, False)
    return _product("int_matmul", a, a_shift, a_bits, a_signed, a_max_shift, right, None, None)


def scaled_matmul(
    a,
    a_shift,
    a_bits,
    a_signed,
    a_max_shift,
    b,
    b_shift,
    b_bits,
    b_signed,
    b_max_shift,
    a_scale,
    b_scale,
    bias,
    half=False,
) -> Tensor:
    right = (b, b.shape, b.stride(), b_shift, b_bits, b_signed, b_max_shift, False)
    return _product("scaled_matmul", a, a_shift, a_bits, a_signed, a_max_shift, right, (a_scale, b_scale), bias, half)


def scaled_matmul_packed(a, a_shift, a_bits, a_signed, a_max_shift, packed, size, stride, *rest) -> Tensor:
    right, (a_scale, b_scale, bias, *half) = rest[:4], rest[4:]
    bits = right[1]
    if packed.numel() != packed_bytes(math.prod(size), bits) or not packed.is_contiguous() or 1 not in stride[-2:]:
        return NotImplemented
    left = (a, a_shift, a_bits, a_signed, a_max_shift)
    # Codes of 8 bits are bytes as they are.
    found = (packed, size, stride, *right, bits < 8)
    return _product("scaled_matmul_packed", *left, found, (a_scale, b_scale), bias, *half)


def channel_sums(codes: Tensor, bits: int, signed: bool) -> Tensor:
    if not codes_ok(codes) or codes.ndim < 2:
        return NotImplemented
    fmt, rows = (None, bits, signed, 0), codes.movedim(1, -1)
    if rows.is_contiguous():  # channels lie together: ones times pixels of channels
        pixels = rows.view(math.prod(rows.shape[:-1]), rows.shape[-1])
        right = (pixels, pixels.shape, pixels.stride(), *fmt, False)
        ones = torch.ones(1, len(pixels), dtype=torch.int8, device=CPU)
        sums = _product("channel_sums", ones, None, 2, True, 0, right, None, None)
    else:  # planes of each image times ones
        planes = codes.reshape(*codes.shape[:2], math.prod(codes.shape[2:]))
        ones = torch.ones(1, planes.shape[2], 1, dtype=torch.int8, device=CPU).expand(len(planes), -1, 1)
        right = (ones, ones.shape, ones.stride(), None, 2, True, 0, False)
        sums = _product("channel_sums", planes, *fmt, right, None, None)
    return sums if sums is NotImplemented else sums.flatten(1).sum(0, dtype=torch.int64)


OPS = (int_matmul, scaled_matmul, scaled_matmul_packed, channel_sums)
