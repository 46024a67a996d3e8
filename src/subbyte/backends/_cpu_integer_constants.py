"""The small ops of ops/integer_constants.py on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat
from ._cpu_call import are, call, new
from ._native import INT, INT64, POINTER, function

_MAX_COUNT = 1 << 19  # codes of one statistic, as in integer.norm

_fit = function("sb_int_shift_to_fit", POINTER, INT64, INT, POINTER, INT)
_from_float = function("sb_int_from_float", POINTER, INT64, POINTER, POINTER, INT)
_to_float = function("sb_int_to_float", POINTER, INT, INT64, POINTER, POINTER, INT)
_table = function("sb_int_batch_table", *(POINTER,) * 4, INT64, INT64, INT, INT, *(POINTER,) * 4, INT)
_affine = function("sb_int_affine_table", POINTER, POINTER, INT64, *(POINTER,) * 6, INT)
_coefficients = function("sb_int_norm_coefficients", *(POINTER,) * 9, INT64, INT64, *(POINTER,) * 5, INT)
_running = function("sb_int_running_statistics", *(POINTER,) * 5, *(INT64,) * 3, POINTER, POINTER, INT)


def int_shift_to_fit(largest: Tensor, bits: int, signed: bool) -> Tensor:
    if not are(torch.int64, largest):
        return NotImplemented
    largest, shift = largest.contiguous(), new(largest.shape, torch.int32)
    top = IntFormat(bits, signed).qmax
    done = call("int_shift_to_fit", _fit, largest.data_ptr(), largest.numel(), top, shift.data_ptr())
    return shift if done else NotImplemented


def int_from_float(x: Tensor) -> tuple[Tensor, Tensor]:
    if not x.is_cpu or not x.is_floating_point():
        return NotImplemented
    x = x.to(torch.float32).contiguous()
    codes, exponent = new(x.shape, torch.int32), new((), torch.int32)
    done = call("int_from_float", _from_float, x.data_ptr(), x.numel(), codes.data_ptr(), exponent.data_ptr())
    return (codes, exponent) if done else NotImplemented


def int_to_float(v: Tensor, exponent: Tensor) -> Tensor:
    wide = v.dtype == torch.int64
    if not are(torch.int64 if wide else torch.int32, v) or not are(torch.int32, exponent):
        return NotImplemented
    if exponent.numel() != 1:
        return NotImplemented
    v, y = v.contiguous(), new(v.shape)
    done = call("int_to_float", _to_float, v.data_ptr(), wide, v.numel(), exponent.data_ptr(), y.data_ptr())
    return y if done else NotImplemented


def int_batch_table(total, spread, least, greatest, n: int, signed: bool, bits: int):
    sums = [t.contiguous() for t in (total, spread, least, greatest)]
    if not _channels(total.numel(), *sums, dtype=torch.int64) or n > _MAX_COUNT:  # the reference says what is wrong
        return NotImplemented
    k, inverse = new((total.numel(), 256), torch.int8), new(total.numel(), torch.int64)
    fraction, exponent = (new(total.numel(), torch.int32) for _ in range(2))
    out = (k, fraction, inverse, exponent)
    done = call("int_batch_table", _table, *_pointers(*sums), total.numel(), n, signed, bits, *_pointers(*out))
    return out if done else NotImplemented


def int_affine_table(k, fraction, gamma, gamma_e, beta, beta_e) -> tuple[Tensor, Tensor]:
    channels = fraction.numel()
    numbers, codes = [t.contiguous() for t in (fraction, beta)], [k.contiguous(), gamma.contiguous()]
    if not _channels(channels, *numbers, dtype=torch.int32) or not _channels(channels, codes[1], dtype=torch.int8):
        return NotImplemented
    if not are(torch.int8, k) or k.shape != (channels, 256):
        return NotImplemented
    if not _channels(1, gamma_e.view(-1), beta_e.view(-1), dtype=torch.int32):
        return NotImplemented
    y, e = new((channels, 256), torch.int32), new((), torch.int32)
    operands = _pointers(codes[0], numbers[0]), _pointers(codes[1], gamma_e, numbers[1], beta_e, y, e)
    done = call("int_affine_table", _affine, *operands[0], channels, *operands[1])
    return (y, e) if done else NotImplemented


def int_norm_coefficients(inverse, inverse_e, fraction, gamma, gamma_e, g_e, sum_g, sum_gk, sum_sign, n: int):
    channels = inverse.numel()
    sums = [t.contiguous() for t in (sum_g, sum_gk, sum_sign) if t is not None]
    inverse, inverse_e, fraction, gamma, g_e = (t.contiguous() for t in (inverse, inverse_e, fraction, gamma, g_e))
    if not _channels(channels, inverse, *sums, dtype=torch.int64) or not channels or len(sums) not in (0, 3):
        return NotImplemented
    if not _channels(channels, inverse_e, fraction, g_e, dtype=torch.int32):
        return NotImplemented
    if not _channels(channels, gamma, dtype=torch.int8) or not _channels(1, gamma_e.view(-1), dtype=torch.int32):
        return NotImplemented
    u, v = (new(channels, torch.int32) for _ in range(2))
    shift, exponent = (new((), torch.int32) for _ in range(2))
    out = (u, v, new(channels, torch.int64), shift, exponent)
    scales = _pointers(inverse, inverse_e, fraction, gamma, gamma_e, g_e)
    operands = (*scales, *(_pointers(*sums) or (None,) * 3), channels, n, *_pointers(*out))
    return out if call("int_norm_coefficients", _coefficients, *operands) else NotImplemented


def int_running_statistics(mean, var, total, spread, step, n: int, weight: int) -> tuple[Tensor, Tensor]:
    channels = total.numel()
    mean, var, total, spread, step = (t.contiguous() for t in (mean, var, total, spread, step))
    if not _channels(channels, mean, var, dtype=torch.float32) or not _channels(channels, step, dtype=torch.int32):
        return NotImplemented
    if not _channels(channels, total, spread, dtype=torch.int64):
        return NotImplemented
    blended = new(channels), new(channels)
    operands = (*_pointers(mean, var, total, spread, step), channels, n, weight, *_pointers(*blended))
    return blended if call("int_running_statistics", _running, *operands) else NotImplemented


def _channels(n: int, *tensors: Tensor, dtype: torch.dtype) -> bool:
    """Are these on the CPU, one number for each of n channels?"""
    return are(dtype, *tensors) and all(t.shape == (n,) for t in tensors)


def _pointers(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in tensors)


OPS = (
    *(int_shift_to_fit, int_from_float, int_to_float, int_batch_table, int_affine_table, int_norm_coefficients),
    *(int_running_statistics,),
)
