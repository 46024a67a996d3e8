"""The passes of the integer-only mode on the C++ kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..numerics import IntFormat, packed_bytes, token_shape
from ._cpu_call import CPU, are, call, new
from ._native import INT, INT64, POINTER, function

_SHAPE = (INT64, INT64, INT64)  # outer, channels, inner

_amax = function("sb_int_amax", POINTER, *_SHAPE, POINTER, INT)
_quantize = function("sb_int_quantize", POINTER, *_SHAPE, POINTER, POINTER, INT, INT, POINTER, INT)
_lookup = function("sb_int_lookup", POINTER, INT, *_SHAPE, POINTER, INT, POINTER, INT)
_norm_grad = function("sb_int_norm_grad", POINTER, POINTER, *_SHAPE, INT, POINTER, POINTER, POINTER, INT, POINTER, INT)
_add = function("sb_int_add", POINTER, POINTER, INT, POINTER, POINTER, INT, *_SHAPE, INT, POINTER, INT)
_errors = function("sb_int_squared_errors", POINTER, *_SHAPE, INT64, *(POINTER,) * 3, *(INT,) * 4, POINTER, INT)
_relu = function("sb_int_relu", POINTER, INT64, POINTER, POINTER, INT)
_relu_grad = function("sb_int_relu_grad", POINTER, POINTER, INT64, POINTER, INT)
_sgd = function("sb_int_sgd", *(POINTER,) * 4, INT64, POINTER, *(INT,) * 6, INT)


def int_amax(x: Tensor, axis: int) -> Tensor:
    if not are(torch.int32, x) or axis not in (-1, 1):
        return NotImplemented
    x = x.contiguous()
    largest = torch.zeros([n if i == axis else 1 for i, n in enumerate(x.shape)], dtype=torch.int64, device=CPU)
    done = call("int_amax", _amax, x.data_ptr(), *shape_of(x, axis == 1), largest.data_ptr())
    return largest if done else NotImplemented


def int_quantize(x: Tensor, shift: Tensor, stream: Tensor | None, bits: int, signed: bool) -> Tensor:
    by_channel = shift.numel() != 1
    on_cpu = stream is None or stream.is_cpu
    if not are(torch.int32, x, shift) or not on_cpu or not shift.numel() or (by_channel and not _is_channels(shift, x)):
        return NotImplemented
    x, shift, fmt = x.contiguous(), shift.contiguous(), IntFormat(bits, signed)
    codes = new(x.shape, fmt.dtype)
    source = None if stream is None else stream.data_ptr()
    operands = (x.data_ptr(), *shape_of(x, by_channel), shift.data_ptr(), source)
    return codes if call("int_quantize", _quantize, *operands, fmt.qmin, fmt.qmax, codes.data_ptr()) else NotImplemented


def int_lookup(codes: Tensor, table: Tensor) -> Tensor:
    signed = codes.dtype == torch.int8
    if not (signed or codes.dtype == torch.uint8) or table.dtype not in (torch.int8, torch.int32):
        return NotImplemented
    if not are(codes.dtype, codes) or not are(table.dtype, table) or table.shape != (codes.shape[1], 256):
        return NotImplemented
    codes, table = codes.contiguous(), table.contiguous()
    out = new(codes.shape, table.dtype)
    operands = (codes.data_ptr(), signed, *shape_of(codes, True), table.data_ptr(), table.dtype == torch.int8)
    return out if call("int_lookup", _lookup, *operands, out.data_ptr()) else NotImplemented


def int_norm_grad(g: Tensor, k: Tensor, u: Tensor, v: Tensor, a: Tensor, shift: Tensor, fraction: int) -> Tensor:
    each = (g.shape[1],)
    if not are(torch.int8, g, k) or not are(torch.int32, u, v) or not are(torch.int64, a) or g.shape != k.shape:
        return NotImplemented
    if not u.shape == v.shape == a.shape == each:
        return NotImplemented
    g, k, u, v, a = (t.contiguous() for t in (g, k, u, v, a))
    dx = new(g.shape, torch.int32)
    coefficients = (u.data_ptr(), v.data_ptr(), a.data_ptr(), int(shift))
    operands = (g.data_ptr(), k.data_ptr(), *shape_of(g, True), fraction, *coefficients)
    return dx if call("int_norm_grad", _norm_grad, *operands, dx.data_ptr()) else NotImplemented


def int_add(a: Tensor, a_right: Tensor, a_room: int, b: Tensor, b_right: Tensor, b_room: int) -> Tensor:
    by_channel = a.shape != b.shape
    if not are(torch.int32, a, a_right, b, b_right) or not a_right.numel() == b_right.numel() == 1:
        return NotImplemented
    if by_channel and not _is_channels(b, a):
        return NotImplemented
    a, b = a.contiguous(), b.contiguous()
    total = torch.empty_like(a)
    operands = (a.data_ptr(), a_right.data_ptr(), a_room, b.data_ptr(), b_right.data_ptr(), b_room)
    done = call("int_add", _add, *operands, *shape_of(a, by_channel), by_channel, total.data_ptr())
    return total if done else NotImplemented


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
    if not are(torch.int32, x, base) or not are(torch.int64, largest) or not base.numel() == largest.numel() == 1:
        return NotImplemented
    if needed is not None and (not are(torch.uint8, needed) or needed.shape != token_shape(x)):
        return NotImplemented
    x, fmt, errors = x.contiguous(), IntFormat(bits, signed), new(candidates, torch.int64)
    needed = None if needed is None else needed.contiguous()
    of_tokens = None if needed is None else needed.data_ptr()
    operands = (x.data_ptr(), *shape_of(x, needed is not None), every, base.data_ptr(), largest.data_ptr(), of_tokens)
    settings = (top, candidates, fmt.qmin, fmt.qmax)
    return errors if call("int_squared_errors", _errors, *operands, *settings, errors.data_ptr()) else NotImplemented


def int_relu(x: Tensor):
    if not are(torch.int32, x):
        return NotImplemented
    x = x.contiguous()
    y, mask = torch.empty_like(x), new(packed_bytes(x.numel(), 1), torch.uint8)
    done = call("int_relu", _relu, x.data_ptr(), x.numel(), y.data_ptr(), mask.data_ptr())
    return (y, mask) if done else NotImplemented


def int_relu_grad(g: Tensor, mask: Tensor) -> Tensor:
    if not are(torch.int32, g) or not are(torch.uint8, mask) or mask.numel() != packed_bytes(g.numel(), 1):
        return NotImplemented
    g, mask = g.contiguous(), mask.contiguous()
    h = torch.empty_like(g)
    done = call("int_relu_grad", _relu_grad, g.data_ptr(), mask.data_ptr(), g.numel(), h.data_ptr())
    return h if done else NotImplemented


def int_sgd(w, g, momentum, momentum_e, stream, rate, factor, decay, nesterov):
    if not (are(torch.float32, w, g) and are(torch.int16, momentum) and are(torch.int32, momentum_e)):
        return NotImplemented
    if not (are(torch.int64, stream) and w.shape == g.shape == momentum.shape and w.numel()):
        return NotImplemented
    w, momentum, momentum_e = (t.clone(memory_format=torch.contiguous_format) for t in (w, momentum, momentum_e))
    g = g.contiguous()
    pointers = (w.data_ptr(), g.data_ptr(), momentum.data_ptr(), momentum_e.data_ptr(), w.numel(), stream.data_ptr())
    settings = (rate is not None, rate or 0, factor, decay is not None, decay or 0, nesterov)
    return (w, momentum, momentum_e) if call("int_sgd", _sgd, *pointers, *settings) else NotImplemented


def _is_channels(v: Tensor, x: Tensor) -> bool:
    """Does v (1, C, 1, ...) hold a number for each channel of x?"""
    return v.ndim == x.ndim > 1 and v.numel() == v.shape[1] == x.shape[1]


def shape_of(x: Tensor, by_channel: bool) -> tuple[int, int, int]:
    """(outer, channels, inner) of a contiguous x."""
    if not by_channel:
        return 1, 1, x.numel()
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


OPS = (int_amax, int_quantize, int_lookup, int_norm_grad, int_add, int_squared_errors, int_relu, int_relu_grad, int_sgd)
