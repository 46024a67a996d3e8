"""A fused chain's norm but for its last pass (ops/chain_norm.py) in one call each of the C++ library."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._cpu_call import FLOATS, call, floats, new, transposition
from ._cpu_chain import MAX_COUNT, bits_of, has_bits, pointers, shape_of, values_of
from ._native import DOUBLE, INT, INT64, POINTER, function

_L1_FACTOR = math.sqrt(math.pi / 2)  # as in ops.constants
_SHAPE = (INT64, INT64, INT64)
_VALUES = (POINTER, INT64)

_norm = function(
    "sb_chain_norm", POINTER, INT, *_SHAPE, POINTER, *_VALUES * 2, *(INT,) * 5, DOUBLE, DOUBLE, *(POINTER,) * 10, INT
)
_grad = function(
    "sb_chain_norm_grad",
    *(POINTER, INT, *_SHAPE, POINTER, POINTER, *_SHAPE, INT, INT, POINTER, INT, *_VALUES * 2, POINTER, POINTER, DOUBLE),
    *(*(POINTER,) * 9, INT),
)


def chain_norm(y, r_k, gamma, beta, whole, input_bits, bits, saved_bits, weight_bits, eps):
    shape = shape_of(y, *FLOATS)
    if shape is None or shape[0] * shape[2] > MAX_COUNT or r_k.numel() != shape[1]:
        return NotImplemented
    given = [(t, torch.float32) for t in (r_k, gamma, beta) if t is not None]
    operands = values_of(y, *given)
    if operands is None:
        return NotImplemented
    weight, offset = (None if t is None else t.contiguous() for t in (gamma, beta))
    each, one = [size if i == 1 else 1 for i, size in enumerate(y.shape)], [1] * y.ndim
    q, total = torch.empty_like(y, dtype=torch.int8), new(each, torch.int64)
    factor, scale, saved_scale, r = (new(each) for _ in range(4))
    q_gamma = new(one if gamma is None else gamma.shape, torch.int8)
    s_gamma = new(one)
    mu, d = (new(each, torch.float64) for _ in range(2))
    results = (q, total, factor, q_gamma, s_gamma, scale, saved_scale, mu, d, r)
    done = call(
        "chain_norm",
        _norm,
        *(*floats(y), *shape, operands[0].data_ptr(), *_optional(weight), *_optional(offset)),
        *(whole, input_bits, bits, saved_bits, weight_bits, eps, _L1_FACTOR, *(t.data_ptr() for t in results)),
    )
    return results if done else NotImplemented


def chain_norm_grad(g, mask, keep, whole, bits, stream, saved, saved_bits, s_k, q_gamma, s_gamma, d):
    shape = shape_of(g, *FLOATS)
    order = None if shape is None else transposition(g)
    if shape is None or order is None or shape[0] * shape[2] > MAX_COUNT or d.numel() != shape[1]:
        return NotImplemented
    if not has_bits(mask, g, 1, or_none=True) or not has_bits(saved, g, saved_bits):
        return NotImplemented
    operands = values_of(g, (s_k, torch.float32), (q_gamma, torch.int8), (d, torch.float64), (s_gamma, torch.float32))
    if operands is None or s_gamma.numel() != 1:
        return NotImplemented
    scales, weight, deviation, s_weight = operands
    each = [size if i == 1 else 1 for i, size in enumerate(g.shape)]
    q_g, h = torch.empty_like(g, dtype=torch.int8), torch.empty_like(g) if keep else new(0, g.dtype)
    numbers = tuple(new(each) for _ in range(7))
    results = (q_g.data_ptr(), h.data_ptr() if keep else None, *(t.data_ptr() for t in numbers))
    done = call(
        "chain_norm_grad",
        _grad,
        *(*floats(g), *shape, bits_of(mask), stream.data_ptr(), *order, whole, bits, saved.data_ptr(), saved_bits),
        *(*pointers([scales, weight]), s_weight.data_ptr(), deviation.data_ptr(), _L1_FACTOR, *results),
    )
    return (q_g, h, *numbers) if done else NotImplemented


def _optional(t: Tensor | None) -> tuple[int | None, int]:
    return (None, 1) if t is None else (t.data_ptr(), t.numel())


OPS = (chain_norm, chain_norm_grad)
