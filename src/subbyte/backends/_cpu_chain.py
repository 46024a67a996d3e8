"""The passes of a fused chain (ops/chain.py) on the C++ kernels: one pass over memory each.

What lies between is never in memory but for one tile in the L1 cache. Channels may be apart in memory (N, C, P),
together (N, P, C) or the columns of a matrix (N, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat, packed_bytes
from ..qtensor import is_dense
from ._cpu_call import FLOATS, axes, call, floats, new, transposition
from ._native import INT, INT64, POINTER, function

MAX_COUNT = 1 << 24  # codes of one statistic, as in ops.norm
_SHAPE = (INT64, INT64, INT64)  # outer, channels, inner; or batch, channels, pixels
_VALUES = (POINTER, INT64)  # one value, or one for each channel
NORM = (*_VALUES * 5, INT64, INT, INT)
"""Operands, how many codes are in a statistic, bits of xhat, bits of it that are saved."""

_norm_relu = function("sb_norm_relu", POINTER, *_SHAPE, *NORM, POINTER, POINTER, INT, *(POINTER,) * 3, INT)
_norm_relu_codes = function("sb_norm_relu_codes", POINTER, *_SHAPE, *NORM, *_VALUES, *(INT,) * 3, *(POINTER,) * 4, INT)
_relu_grad = function("sb_relu_grad", POINTER, INT, *_SHAPE, *(POINTER,) * 3, INT)
_relu_grad_quantize = function(
    "sb_relu_grad_quantize", POINTER, INT, *_SHAPE, POINTER, *_VALUES, POINTER, *_SHAPE, INT, POINTER, INT
)
_grad_sums = function("sb_norm_grad_sums", POINTER, *_SHAPE, POINTER, INT, *(POINTER,) * 3, INT)
_grad_amax = function("sb_norm_grad_amax", POINTER, *_SHAPE, POINTER, INT, *_VALUES * 5, INT64, INT, POINTER, INT)
_grad_codes = function(
    "sb_norm_grad_codes", POINTER, *_SHAPE, POINTER, INT, *_VALUES * 8, POINTER, *_SHAPE, INT, INT, POINTER, INT
)


def norm_relu(q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, other, relu, half=False):
    shape, norm = shape_of(q, torch.int8), norm_operands(q, total, factor, q_gamma, scale, beta)
    if shape is None or norm is None or (other is not None and shape_of(other, *FLOATS) is None):
        return NotImplemented
    z = torch.empty_like(q, dtype=FLOATS[half])
    if other is not None and (other.shape != q.shape or other.stride() != z.stride() or other.dtype != z.dtype):
        other = torch.empty_like(z).copy_(other)
    r = new([1] * q.ndim)
    saved, mask = _packed(q, saved_bits), _packed(q, 1) if relu else new(0, torch.uint8)
    arguments = (q.data_ptr(), *shape, *pointers(norm), n, bits, saved_bits)
    outputs = (z.data_ptr(), half, r.data_ptr(), saved.data_ptr(), mask.data_ptr() if relu else None)
    return (
        (z, r, saved, mask) if call("norm_relu", _norm_relu, *arguments, _pointer(other), *outputs) else NotImplemented
    )


def norm_relu_codes(q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, r, next_bits, next_signed, half=False):
    shape, norm = shape_of(q, torch.int8), norm_operands(q, total, factor, q_gamma, scale, beta)
    ranges, fmt = values_of(q, (r, torch.float32)), IntFormat(next_bits, next_signed)
    if shape is None or norm is None or ranges is None:
        return NotImplemented
    codes = torch.empty_like(q, dtype=fmt.dtype)
    packed, saved, mask = (_packed(q, b) for b in (next_bits, saved_bits, 1))
    arguments = (q.data_ptr(), *shape, *pointers(norm), n, bits, saved_bits, *pointers(ranges), next_bits, fmt.qmax)
    outputs = (half, codes.data_ptr(), packed.data_ptr(), saved.data_ptr(), mask.data_ptr())
    done = call("norm_relu_codes", _norm_relu_codes, *arguments, *outputs)
    return (codes, packed, saved, mask) if done else NotImplemented


def relu_grad(g: Tensor, mask: Tensor, keep: bool):
    shape = shape_of(g, *FLOATS)
    if shape is None or not has_bits(mask, g, 1, or_none=True):
        return NotImplemented
    r = new([size if i == 1 else 1 for i, size in enumerate(g.shape)])
    h = torch.empty_like(g) if keep else new(0, g.dtype)
    results = (r.data_ptr(), h.data_ptr() if keep else None)
    done = call("relu_grad", _relu_grad, *floats(g), *shape, bits_of(mask), *results)
    return (r, h) if done else NotImplemented


def relu_grad_quantize(g: Tensor, mask: Tensor, r: Tensor, stream: Tensor, bits: int):
    shape = shape_of(g, *FLOATS)
    if shape is None or not has_bits(mask, g, 1, or_none=True):
        return NotImplemented
    order, ranges = transposition(g), values_of(g, (r, torch.float32))
    if order is None or ranges is None:
        return NotImplemented
    codes = torch.empty_like(g, dtype=torch.int8)
    arguments = (bits_of(mask), *pointers(ranges), stream.data_ptr(), *order, IntFormat(bits).qmax, codes.data_ptr())
    done = call("relu_grad_quantize", _relu_grad_quantize, *floats(g), *shape, *arguments)
    return codes if done else NotImplemented


def norm_grad_sums(q_g: Tensor, saved: Tensor, saved_bits: int):
    shape = shape_of(q_g, torch.int8)
    if shape is None or not has_bits(saved, q_g, saved_bits) or q_g.numel() > MAX_COUNT * q_g.shape[1]:
        return NotImplemented
    size = [3, *(n if i == 1 else 1 for i, n in enumerate(q_g.shape))]
    sums, low, high = (new(size, torch.int64) for _ in range(3))
    results = (sums.data_ptr(), low.data_ptr(), high.data_ptr())
    done = call("norm_grad_sums", _grad_sums, q_g.data_ptr(), *shape, saved.data_ptr(), saved_bits, *results)
    return (sums, low, high) if done else NotImplemented


def norm_grad_amax(q_g, saved, saved_bits, q_gamma, a, u, v, t, half=False):
    found = norm_gradient(q_g, saved, saved_bits, q_gamma, a, u, v, t)
    if found is None or not _outermost(q_g):
        return NotImplemented
    (shape, operands), samples = found, len(q_g)
    r = new([samples, *[1] * (q_g.ndim - 1)])
    arguments = (q_g.data_ptr(), *shape, saved.data_ptr(), saved_bits, *pointers(operands))
    done = call("norm_grad_amax", _grad_amax, *arguments, samples, half, r.data_ptr())
    return r if done else NotImplemented


def norm_grad_codes(q_g, saved, saved_bits, q_gamma, a, u, v, t, r, shift, stream, bits, half=False):
    found = norm_gradient(q_g, saved, saved_bits, q_gamma, a, u, v, t, r)
    order = (1, q_g.numel(), 1) if stream is None or found is None else transposition(q_g)
    by_sample = shift is not None and 1 < shift.numel() == len(q_g) == len(shift) and shift.ndim == q_g.ndim
    shifts = [] if shift is None else [shift.contiguous()] if by_sample else values_of(q_g, (shift, torch.uint8))
    if order is None or found is None or shifts is None or (by_sample and not _outermost(q_g)):
        return NotImplemented
    (shape, operands), codes = found, torch.empty_like(q_g)
    arguments = (q_g.data_ptr(), *shape, saved.data_ptr(), saved_bits, *pointers(operands))
    given, none = pointers(shifts) if shifts else (None, 0), (None, 0)
    shifting = (*none, *given) if by_sample else (*given, *none)
    rounding = (_pointer(stream), *order, IntFormat(bits).qmax, half)
    done = call("norm_grad_codes", _grad_codes, *arguments, *shifting, *rounding, codes.data_ptr())
    return codes if done else NotImplemented


def norm_gradient(q_g, saved, saved_bits: int, q_gamma, *floats) -> tuple[tuple[int, int, int], list[Tensor]] | None:
    """(shape, operands) of a norm's gradient from codes q_g and packed xhat; None where no kernel covers them."""
    shape = shape_of(q_g, torch.int8)
    if shape is None or not has_bits(saved, q_g, saved_bits):
        return None
    operands = values_of(q_g, (q_gamma, torch.int8), *((x, torch.float32) for x in floats))
    return None if operands is None else (shape, operands)


def _outermost(x: Tensor) -> bool:
    """Is each index of axis 0 one run of memory?"""
    return x.shape[0] == 1 or x.stride(0) * x.shape[0] == x.numel()


def shape_of(x: Tensor, *dtypes: torch.dtype) -> tuple[int, int, int] | None:
    """(outer, channels, inner) of a dense tensor of one of these types that holds something."""
    if not x.is_cpu or x.dtype not in dtypes or x.ndim < 2 or x.numel() == 0 or not is_dense(x):
        return None
    axis = axes(x, [1])
    assert axis is not None, "one axis is always one run"
    return x.numel() // (axis[0] * axis[1]), *axis


def norm_operands(q, total, factor, q_gamma, scale, beta) -> list[Tensor] | None:
    floats = ((t, torch.float32) for t in (scale, beta))
    return values_of(q, (total, torch.int64), (factor, torch.float32), (q_gamma, torch.int8), *floats)


def values_of(x: Tensor, *operands: tuple[Tensor, torch.dtype]) -> list[Tensor] | None:
    """The operands, contiguous, if each is one value or one for each channel of x."""
    for t, dtype in operands:
        n = t.numel()
        if t.dtype != dtype or not t.is_cpu or x.ndim < 2:
            return None
        if n != 1 and (n != x.shape[1] or t.ndim != x.ndim or t.shape[1] != n):
            return None
    return [t.contiguous() for t, _ in operands]


def pointers(operands: list[Tensor]) -> list[int]:
    """Pointer and number of each operand's values."""
    return [item for t in operands for item in (t.data_ptr(), t.numel())]


def _packed(x: Tensor, bits: int) -> Tensor:
    return new(packed_bytes(x.numel(), bits), torch.uint8)


def has_bits(packed: Tensor, x: Tensor, bits: int, or_none: bool = False) -> bool:
    if not packed.is_cpu or packed.dtype != torch.uint8 or not packed.is_contiguous():
        return False
    return packed.numel() == packed_bytes(x.numel(), bits) or (or_none and packed.numel() == 0)


def bits_of(mask: Tensor) -> int | None:
    return mask.data_ptr() if mask.numel() else None


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


OPS = (norm_relu, norm_relu_codes, relu_grad, relu_grad_quantize, norm_grad_sums, norm_grad_amax, norm_grad_codes)
