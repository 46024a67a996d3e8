"""The sums and passes of quantized normalization on the C++ kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._cpu_call import are, axes, call, dense, geometry, new
from ._native import INT, INT64, POINTER, function

_OPERAND = (POINTER, INT64, INT64)  # values, channels, inner
MAX_COUNT = 1 << 24  # codes of one statistic, as in ops.norm

_stats = function("sb_norm_stats", POINTER, INT, INT64, INT64, INT64, INT, *(POINTER,) * 4, INT)
_grad_stats = function(
    "sb_norm_grad_stats", POINTER, POINTER, INT64, INT64, INT64, POINTER, INT64, *(POINTER,) * 5, INT
)
_grad_stats_rows = function(
    "sb_norm_grad_stats_rows", POINTER, POINTER, INT64, INT64, POINTER, INT64, *(POINTER,) * 5, INT
)
_grad_stats_groups = function(
    "sb_norm_grad_stats_groups", POINTER, POINTER, *(INT64,) * 4, POINTER, INT64, *(POINTER,) * 5, INT
)
_uncentred = function("sb_norm_stats_uncentred", POINTER, INT, INT64, INT64, INT64, INT, POINTER, POINTER, INT)
_apply = function(
    "sb_norm_apply",
    *(POINTER, INT, INT64, POINTER, *_OPERAND),
    *(*_OPERAND, *_OPERAND, *_OPERAND),
    *(INT64, INT, POINTER, POINTER, INT),
)
_grad_apply = function("sb_norm_grad_apply", POINTER, POINTER, INT64, *_OPERAND * 5, INT, POINTER, INT, INT)


def norm_stats(q: Tensor, dims: list[int], l2: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not are((torch.int8, torch.uint8), q) or q.numel() == 0:
        return NotImplemented
    q = dense(q)
    kept, shape = kept_axes(q, dims)
    axis = axes(q, kept)
    if axis is None or q.numel() // axis[0] > MAX_COUNT:
        return NotImplemented
    out = [new(shape, torch.int64) for _ in range(4)]
    signed = q.dtype == torch.int8
    done = call("norm_stats", _stats, q.data_ptr(), signed, *_whole(q, axis), l2, *(t.data_ptr() for t in out))
    return (out[0], out[1], out[2], out[3]) if done else NotImplemented


def norm_apply(
    q: Tensor, total: Tensor, factor: Tensor, n: int, bits: int, q_gamma: Tensor, scale: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    floats = are(torch.float32, factor, scale, beta)
    if not floats or not are((torch.int8, torch.uint8), q) or not are(torch.int8, q_gamma):
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


def norm_stats_uncentred(q: Tensor, dims: list[int], l2: bool) -> tuple[Tensor, Tensor]:
    if not are(torch.int8, q) or q.numel() == 0:
        return NotImplemented
    q = dense(q)
    kept, shape = kept_axes(q, dims)
    axis = axes(q, kept)
    if axis is None or q.numel() // axis[0] > MAX_COUNT:
        return NotImplemented
    spread, most = (new(shape, torch.int64) for _ in range(2))
    pointers = (spread.data_ptr(), most.data_ptr())
    done = call("norm_stats_uncentred", _uncentred, q.data_ptr(), True, *_whole(q, axis), l2, *pointers)
    return (spread, most) if done else NotImplemented


class GradientKind(NamedTuple):
    """How the sums of a norm's gradient lie in memory.

    code    0: statistics are the parameters' channels; 1: statistics are rows, parameters columns; 2: a statistic is
            `group` neighbouring channels of a sample
    params  how many sums the gradients of gamma and beta are, each over runs of `run` elements; shape: theirs
    """

    code: int
    params: int
    run: int
    group: int
    shape: list[int]


def gradient_kind(g: Tensor, dims: list[int], param_dims: list[int]) -> GradientKind | None:
    (kept, _), (kept_param, shape) = kept_axes(g, dims), kept_axes(g, param_dims)
    axis, param = axes(g, kept), axes(g, kept_param)
    n = g.numel()
    if axis is None or param is None or n // min(axis[0], param[0]) > MAX_COUNT:
        return None
    if axis == param:
        return GradientKind(0, *param, 1, shape)
    if axis[0] * axis[1] != n:
        return None
    if param == ((axis[1], 1) if axis[1] > 1 else (1, n)):
        return GradientKind(1, *param, 1, shape)
    group, rest = divmod(axis[1], param[1])
    if rest or param[0] % group or (n // (param[0] * param[1])) * param[0] // group != axis[0]:
        return None
    return GradientKind(2, *param, group, shape)


def norm_grad_stats(
    q_g: Tensor, k: Tensor, q_gamma: Tensor, dims: list[int], param_dims: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not are(torch.int8, q_g, k, q_gamma) or q_g.numel() == 0:
        return NotImplemented
    g = dense(q_g)
    same, n = _like(g, k), g.numel()
    (kept, stat_shape), kind = kept_axes(g, dims), gradient_kind(g, dims, param_dims)
    gamma = q_gamma.contiguous()
    if same is None or kind is None or (gamma.numel() != 1 and geometry(g, gamma) != (kind.params, kind.run)):
        return NotImplemented
    axis = axes(g, kept)
    assert axis is not None, "or there were no kind"
    out = [new(s, torch.int64) for s in (*(stat_shape,) * 3, *(kind.shape,) * 2)]
    pointers = (gamma.data_ptr(), gamma.numel(), *(t.data_ptr() for t in out))
    function, sizes = {
        0: (_grad_stats, _whole(g, axis)),
        1: (_grad_stats_rows, axis),
        2: (_grad_stats_groups, (n // (kind.params * kind.run), kind.params, kind.run, kind.group)),
    }[kind.code]
    done = call("norm_grad_stats", function, g.data_ptr(), same.data_ptr(), *sizes, *pointers)
    return (out[0], out[1], out[2], out[3], out[4]) if done else NotImplemented


def norm_grad_apply(
    q_g: Tensor, k: Tensor, q_gamma: Tensor, a: Tensor, u: Tensor, v: Tensor, t: Tensor, l2: bool
) -> Tensor:
    if not are(torch.int8, q_g, k, q_gamma) or not are(torch.float32, a, u, v, t):
        return NotImplemented
    g = dense(q_g)
    same = _like(g, k)
    operands = _operands(g, q_gamma, a, u, v, t)
    if same is None or operands is None:
        return NotImplemented
    dx = torch.empty_like(g, dtype=torch.float32)
    pointers = (g.data_ptr(), same.data_ptr(), g.numel(), *_pointers(operands), l2, dx.data_ptr(), False)
    return dx if call("norm_grad_apply", _grad_apply, *pointers) else NotImplemented


def kept_axes(q: Tensor, dims: list[int]) -> tuple[list[int], list[int]]:
    """(the axes that dims leave, the shape of a statistic)."""
    reduced = {d % q.ndim for d in dims}
    return [i for i in range(q.ndim) if i not in reduced], [1 if i in reduced else s for i, s in enumerate(q.shape)]


def _whole(q: Tensor, axis: tuple[int, int]) -> tuple[int, int, int]:
    """(outer, channels, inner)."""
    return q.numel() // (axis[0] * axis[1]), *axis


def _like(g: Tensor, k: Tensor) -> Tensor | None:
    """k with the strides of g; None where it has another shape."""
    if k.shape != g.shape:
        return None
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


OPS = (norm_stats, norm_stats_uncentred, norm_apply, norm_grad_stats, norm_grad_apply)
