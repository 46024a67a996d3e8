"""The sums and passes of quantized normalization on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ._cpu_call import axes, call, dense, geometry
from ._native import INT, INT64, POINTER, function

_OPERAND = (POINTER, INT64, INT64)  # values, channels, inner
_MAX_COUNT = 1 << 24  # codes of one statistic, as in ops.norm

_stats = function("sb_norm_stats", POINTER, INT, INT64, INT64, INT64, INT, *(POINTER,) * 4, INT)
_grad_stats = function(
    "sb_norm_grad_stats", POINTER, POINTER, INT64, INT64, INT64, POINTER, INT64, *(POINTER,) * 5, INT
)
_grad_stats_rows = function(
    "sb_norm_grad_stats_rows", POINTER, POINTER, INT64, INT64, POINTER, INT64, *(POINTER,) * 5, INT
)
_apply = function(
    "sb_norm_apply",
    *(POINTER, INT, INT64, POINTER, *_OPERAND),
    *(*_OPERAND, *_OPERAND, *_OPERAND),
    *(INT64, INT, POINTER, POINTER, INT),
)
_grad_apply = function("sb_norm_grad_apply", POINTER, POINTER, INT64, *_OPERAND * 5, INT, POINTER, INT)


def norm_stats(q: Tensor, dims: list[int], l2: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not _are(q, dtypes=(torch.int8, torch.uint8)) or q.numel() == 0:
        return NotImplemented
    q = dense(q)
    kept, shape = _kept(q, dims)
    axis = axes(q, kept)
    if axis is None or q.numel() // axis[0] > _MAX_COUNT:
        return NotImplemented
    out = [torch.empty(shape, dtype=torch.int64) for _ in range(4)]
    signed = q.dtype == torch.int8
    done = call("norm_stats", _stats, q.data_ptr(), signed, *_whole(q, axis), l2, *(t.data_ptr() for t in out))
    return (out[0], out[1], out[2], out[3]) if done else NotImplemented


def norm_apply(
    q: Tensor, total: Tensor, factor: Tensor, n: int, bits: int, q_gamma: Tensor, scale: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    floats = _are(factor, scale, beta, dtypes=(torch.float32,))
    if not floats or not _are(q, dtypes=(torch.int8, torch.uint8)) or not _are(q_gamma, dtypes=(torch.int8,)):
        return NotImplemented
    q = dense(q)
    total, factor = (t.contiguous() for t in torch.broadcast_tensors(total.to(torch.int64), factor))
    operands = _operands(q, factor, q_gamma, scale, beta)
    if operands is None:
        return NotImplemented
    (f, fc, fi), *others = operands
    y, k = torch.empty_like(q, dtype=torch.float32), torch.empty_like(q, dtype=torch.int8)
    done = call(
        "norm_apply",
        _apply,
        *(q.data_ptr(), q.dtype == torch.int8, q.numel()),
        *(total.data_ptr(), f.data_ptr(), fc, fi),
        *(_pointers(others)),
        *(n, bits, y.data_ptr(), k.data_ptr()),
    )
    return (y, k) if done else NotImplemented


def norm_grad_stats(
    q_g: Tensor, k: Tensor, q_gamma: Tensor, dims: list[int], param_dims: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not _are(q_g, k, q_gamma, dtypes=(torch.int8,)) or q_g.numel() == 0:
        return NotImplemented
    g = dense(q_g)
    k, n = _like(g, k), g.numel()
    (kept, stat_shape), (kept_param, param_shape) = _kept(g, dims), _kept(g, param_dims)
    axis, param = axes(g, kept), axes(g, kept_param)
    if axis is None or param is None or n // min(axis[0], param[0]) > _MAX_COUNT:
        return NotImplemented
    gamma = q_gamma.contiguous()
    if gamma.numel() != 1 and (gamma.numel() != param[0] or geometry(g, gamma) != param):
        return NotImplemented
    out = [torch.empty(s, dtype=torch.int64) for s in (*(stat_shape,) * 3, *(param_shape,) * 2)]
    pointers = (gamma.data_ptr(), gamma.numel(), *(t.data_ptr() for t in out))
    rows, columns = axis
    if axis == param:
        done = call("norm_grad_stats", _grad_stats, g.data_ptr(), k.data_ptr(), *_whole(g, axis), *pointers)
    elif rows * columns == n and param == ((columns, 1) if columns > 1 else (1, n)):
        done = call("norm_grad_stats", _grad_stats_rows, g.data_ptr(), k.data_ptr(), rows, columns, *pointers)
    else:
        return NotImplemented
    return (out[0], out[1], out[2], out[3], out[4]) if done else NotImplemented


def norm_grad_apply(
    q_g: Tensor, k: Tensor, q_gamma: Tensor, a: Tensor, u: Tensor, v: Tensor, t: Tensor, l2: bool
) -> Tensor:
    if not _are(q_g, k, q_gamma, dtypes=(torch.int8,)) or not _are(a, u, v, t, dtypes=(torch.float32,)):
        return NotImplemented
    g = dense(q_g)
    k = _like(g, k)
    operands = _operands(g, q_gamma, a, u, v, t)
    if operands is None:
        return NotImplemented
    dx = torch.empty_like(g, dtype=torch.float32)
    pointers = (g.data_ptr(), k.data_ptr(), g.numel(), *_pointers(operands), l2, dx.data_ptr())
    return dx if call("norm_grad_apply", _grad_apply, *pointers) else NotImplemented


def _are(*tensors: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    return all(t.device.type == "cpu" and t.dtype in dtypes for t in tensors)


def _kept(q: Tensor, dims: list[int]) -> tuple[list[int], list[int]]:
    """(the axes that dims leave, the shape of a statistic)."""
    reduced = {d % q.ndim for d in dims}
    return [i for i in range(q.ndim) if i not in reduced], [1 if i in reduced else s for i, s in enumerate(q.shape)]


def _whole(q: Tensor, axis: tuple[int, int]) -> tuple[int, int, int]:
    """(outer, channels, inner)."""
    return q.numel() // (axis[0] * axis[1]), *axis


def _like(g: Tensor, k: Tensor) -> Tensor:
    """k with the strides of g."""
    return k if k.stride() == g.stride() else torch.empty_like(g, dtype=k.dtype).copy_(k)


def _operands(x: Tensor, *values: Tensor) -> list[tuple[Tensor, int, int]] | None:
    """(contiguous values, channels, inner) of each; None where one varies along axes that are apart in x's memory."""
    found = []
    for v in values:
        axis = geometry(x, v)
        if axis is None:
            return None
        found.append((v.contiguous(), *axis))
    return found


def _pointers(operands: list[tuple[Tensor, int, int]]) -> list[int]:
    return [item for v, channels, inner in operands for item in (v.data_ptr(), channels, inner)]


OPS = (norm_stats, norm_apply, norm_grad_stats, norm_grad_apply)
