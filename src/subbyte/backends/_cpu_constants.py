"""The small ops of ops/constants.py on the C++ kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._cpu_call import call, new
from ._native import DOUBLE, INT, INT64, POINTER, function

_EACH = (POINTER, INT64)  # values, how many
_L1_FACTOR = math.sqrt(math.pi / 2)  # as in ops.constants

_norm = function(
    "sb_norm_constants", *_EACH, *(POINTER,) * 4, *(INT64,) * 4, INT, DOUBLE, DOUBLE, INT, *(POINTER,) * 4, INT
)
_grad = function(
    "sb_norm_grad_constants", *_EACH * 3, *(POINTER,) * 4, INT64, INT64, INT, INT, DOUBLE, *(POINTER,) * 4, INT
)
_relu_range = function("sb_norm_relu_range", *(POINTER,) * 4, INT64, INT64, INT, *_EACH * 3, INT, POINTER, INT)
_grad_range = function("sb_norm_grad_range", POINTER, POINTER, INT64, *_EACH, *(POINTER,) * 4, INT, POINTER, INT)
_exponents = function("sb_shift_exponents", POINTER, INT64, INT, INT, POINTER, POINTER, INT)


def norm_constants(s, total, spread, least, greatest, n: int, count: int, l2: bool, eps: float, bits: int, over):
    wide = (total, spread, least, greatest)
    if not _each(total, s, torch.float32) or not _same(total, wide, torch.int64) or total.numel() == 0:
        return NotImplemented
    shape = [1 if i in over else size for i, size in enumerate(total.shape)]
    kept = [size for size in shape if size > 1]
    if [size for size in total.shape if size > 1][-len(kept) :] != kept and kept:  # the axes of `over` come first
        return NotImplemented
    mu, d = (new(total.shape, torch.float64) for _ in range(2))
    factor = new(total.shape)
    scale = new(shape)
    out = (t.data_ptr() for t in (mu, d, factor, scale))
    sizes = (total.numel(), scale.numel(), n, count, l2, eps, _L1_FACTOR, bits)
    done = call("norm_constants", _norm, s.data_ptr(), s.numel(), *(t.data_ptr() for t in wide), *sizes, *out)
    return (mu, d, factor, scale) if done else NotImplemented


def norm_grad_constants(s_g, s_k, s_gamma, d, sum_h, sum_hk, sum_t, n: int, centred: bool, l2: bool):
    scales, sums = (s_g, s_k, s_gamma), (sum_h, sum_hk, sum_t)
    if not all(_each(sum_h, s, torch.float32) for s in scales) or not _same(sum_h, sums, torch.int64):
        return NotImplemented
    if not _same(sum_h, (d,), torch.float64):
        return NotImplemented
    out = [new(sum_h.shape) for _ in range(4)]
    operands = (*_pairs(scales), d.data_ptr(), *(t.data_ptr() for t in sums))
    sizes = (sum_h.numel(), n, centred, l2, _L1_FACTOR)
    done = call("norm_grad_constants", _grad, *operands, *sizes, *(t.data_ptr() for t in out))
    return tuple(out) if done else NotImplemented


def norm_relu_range(
    least, greatest, total, factor, n: int, bits: int, q_gamma, scale, beta, half: bool = False
) -> Tensor:
    fits = _same(least, (least, greatest, total), torch.int64) and _same(least, (factor,), torch.float32)
    if not fits or not _each(least, q_gamma, torch.int8) or not _per_channel(least):
        return NotImplemented
    if not _each(least, scale, torch.float32) or not _each(least, beta, torch.float32):
        return NotImplemented
    r = new(least.shape)
    operands = (t.data_ptr() for t in (least, greatest, total, factor))
    given = (least.numel(), n, bits, *_pairs((q_gamma, scale, beta)), half)
    done = call("norm_relu_range", _relu_range, *operands, *given, r.data_ptr())
    return r if done else NotImplemented


def norm_grad_range(low, high, q_gamma, a, u, v, t, half: bool = False) -> Tensor:
    like = low[0]
    if not _same(low, (low, high), torch.int64) or not _same(like, (a, u, v, t), torch.float32):
        return NotImplemented
    if not _each(like, q_gamma, torch.int8) or not _per_channel(like):
        return NotImplemented
    r = new(like.shape)
    operands = (low.data_ptr(), high.data_ptr(), like.numel(), *_pairs((q_gamma,)))
    done = call("norm_grad_range", _grad_range, *operands, *(x.data_ptr() for x in (a, u, v, t)), half, r.data_ptr())
    return r if done else NotImplemented


def shift_exponents(r_k: Tensor, top: int, apart: int) -> tuple[Tensor, Tensor]:
    if not _same(r_k, (r_k,), torch.float32) or r_k.numel() == 0:
        return NotImplemented
    r, shift = new([1] * r_k.ndim), new(r_k.shape, torch.uint8)
    done = call("shift_exponents", _exponents, r_k.data_ptr(), r_k.numel(), top, apart, r.data_ptr(), shift.data_ptr())
    return (r, shift) if done else NotImplemented


def _same(like: Tensor, tensors: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
    return all(t.dtype == dtype and t.shape == like.shape and t.is_cpu and t.is_contiguous() for t in tensors)


def _each(like: Tensor, t: Tensor, dtype: torch.dtype) -> bool:
    """Is t one number, or one for each of `like`?"""
    fits = t.numel() == 1 or (t.shape == like.shape and t.is_contiguous())
    return fits and t.dtype == dtype and t.is_cpu


def _per_channel(t: Tensor) -> bool:
    return t.ndim > 1 and t.numel() == t.shape[1]


def _pairs(tensors: tuple[Tensor, ...]) -> list[int]:
    return [v for t in tensors for v in (t.data_ptr(), t.numel())]


OPS = (norm_constants, norm_grad_constants, norm_relu_range, norm_grad_range, shift_exponents)
