"""A whole quantized norm, forward and backward, in one call each on the C++ kernels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics import packed_bytes
from ._cpu_call import axes, call, dense_floats, floats, geometry, new, transposition
from ._cpu_norm import MAX_COUNT, gradient_kind, kept_axes
from ._native import DOUBLE, INT, INT64, POINTER, function

_OPERAND = (POINTER, INT64, INT64)  # values, channels, inner
_L1_FACTOR = math.sqrt(math.pi / 2)  # as in ops.constants

_forward = function(
    "sb_norm_forward",
    *(POINTER, INT, INT64, *_OPERAND * 3, *(INT64,) * 5, DOUBLE, DOUBLE, *(INT,) * 6),
    *(*(POINTER,) * 7, INT),
)
_backward = function(
    "sb_norm_backward",
    *(
        POINTER,
        INT,
        INT64,
        *_OPERAND,
        POINTER,
        *(INT64,) * 3,
        POINTER,
        INT,
        POINTER,
        INT64,
        *_OPERAND,
        POINTER,
        POINTER,
    ),
    *(*(INT64,) * 3, INT, INT64, INT64, DOUBLE, INT, INT, INT, *(POINTER,) * 3, INT),
)


class _Axes(NamedTuple):
    """Where the statistics of a dense tensor lie, and the scale of xhat, each (channels, inner); their shapes; of how
    many elements a statistic is."""

    statistic: tuple[int, int]
    scale: tuple[int, int]
    statistic_shape: list[int]
    scale_shape: list[int]
    elements: int


def norm_forward(
    x, r, gamma, beta, dims, over, eps: float, input_bits, bits, saved_bits, weight_bits, l2: bool, centred: bool
):
    dense_x = dense_floats(x)
    found = None if dense_x is None else _axes(dense_x, dims, over)
    if dense_x is None or found is None:
        return NotImplemented
    ranges, weights, offsets = _along(dense_x, r), _along(dense_x, gamma), _along(dense_x, beta)
    if ranges is None or weights is None or offsets is None:
        return NotImplemented
    r, *r_axis = ranges
    if r_axis[0] != 1 and tuple(r_axis) != found.statistic:
        return NotImplemented
    y = torch.empty_like(dense_x)
    saved = new(packed_bytes(dense_x.numel(), saved_bits), torch.uint8)
    scale, s_gamma = new(found.scale_shape), new([1] * x.ndim)
    q_gamma = new([1] * x.ndim if gamma is None else gamma.shape, torch.int8)
    mu, d = (new(found.statistic_shape, torch.float64) for _ in range(2))
    results = (y, saved, scale, q_gamma, s_gamma, mu, d)
    done = call(
        "norm_forward",
        _forward,
        *(*floats(dense_x), dense_x.numel(), r.data_ptr(), *r_axis, *_operand(weights), *_operand(offsets)),
        *(*found.statistic, *found.scale, found.elements, eps, _L1_FACTOR),
        *(input_bits, bits, saved_bits, weight_bits, l2, centred, *(t.data_ptr() for t in results)),
    )
    return results if done else NotImplemented


def norm_backward(
    g, r, stream, saved, s_k, q_gamma, s_gamma, d, dims, over, bits: int, saved_bits: int, l2: bool, centred: bool
):
    dense_g = dense_floats(g)
    found = None if dense_g is None else _axes(dense_g, dims, over)
    if dense_g is None or found is None or saved.numel() != packed_bytes(dense_g.numel(), saved_bits):
        return NotImplemented
    kind, order, ranges = gradient_kind(dense_g, dims, over), transposition(dense_g), _along(dense_g, r)
    weight_axis = geometry(dense_g, q_gamma)
    if kind is None or order is None or ranges is None or weight_axis is None:
        return NotImplemented
    r, *r_axis = ranges
    if r_axis[0] not in (1, found.scale[0]) or s_k.numel() != found.scale[0]:
        return NotImplemented
    if d.numel() != found.statistic[0] or s_gamma.numel() != 1:
        return NotImplemented
    if q_gamma.numel() != 1 and weight_axis != (kind.params, kind.run):
        return NotImplemented
    q_gamma, s_k, saved, d = (t.contiguous() for t in (q_gamma, s_k, saved, d))
    dx = torch.empty_like(dense_g)
    dgamma, dbeta = (new(kind.shape) for _ in range(2))
    done = call(
        "norm_backward",
        _backward,
        *(
            *floats(dense_g),
            dense_g.numel(),
            r.data_ptr(),
            *r_axis,
            stream.data_ptr(),
            *order,
            saved.data_ptr(),
            saved_bits,
        ),
        *(s_k.data_ptr(), s_k.numel(), q_gamma.data_ptr(), *weight_axis, s_gamma.data_ptr(), d.data_ptr()),
        *(*found.statistic, kind.params, kind.code, kind.run, found.elements, _L1_FACTOR, bits, l2, centred),
        *(dx.data_ptr(), dgamma.data_ptr(), dbeta.data_ptr()),
    )
    return (dx, dgamma, dbeta) if done else NotImplemented


def _axes(x: Tensor, dims, over) -> _Axes | None:
    """None where memory order, or the order of the axes, is not what the kernels take."""
    n = x.numel()
    kept, shape = kept_axes(x, dims)
    kept_scale, scale_shape = kept_axes(x, [*dims, *over])
    statistic, scale = axes(x, kept), axes(x, kept_scale)
    if n == 0 or statistic is None or scale is None or n // statistic[0] > MAX_COUNT:
        return None
    sizes, last = ([x.shape[i] for i in which if x.shape[i] > 1] for which in (kept, kept_scale))
    if last and sizes[-len(last) :] != last:  # the axes along which xhat's scale is one come first
        return None
    return _Axes(statistic, scale, shape, scale_shape, n // statistic[0])


def _along(x: Tensor, v: Tensor | None) -> tuple | None:
    """(values as contiguous float32 or None, channels, inner); None where v's axes are apart in x's memory."""
    if v is None:
        return None, 1, x.numel()
    axis = geometry(x, v) if v.is_cpu and v.dtype.is_floating_point else None
    return None if axis is None else (v.to(torch.float32).contiguous(), *axis)


def _operand(found: tuple) -> tuple:
    v, *axis = found
    return (None if v is None else v.data_ptr(), *axis)


OPS = (norm_forward, norm_backward)
