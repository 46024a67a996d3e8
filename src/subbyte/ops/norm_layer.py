"""A whole quantized norm, forward and backward, as one op each: the passes of ops/norm.py and what lies between.

They are ops for speed alone. Of a layer with few elements, calls are what costs; of one with many, the codes between
the passes stay in memory that is used again. Each equals, bit for bit, the ops that its body names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat, packed_bytes
from .dispatch import op, registered
from .exact import float_dtype, is_half, kept
from .norm import _keepdim, count


def _reference(name: str, *args):
    return registered[name](*args)


def _kept_axes(x: Tensor, dims: list[int], over: list[int]) -> list[int]:
    """The shape of xhat's scale: one number where the gradients of gamma and beta sum over its statistics."""
    reduced = {d % x.ndim for d in (*dims, *over)}
    return [1 if i in reduced else n for i, n in enumerate(x.shape)]


def _forward_fake(x, r, gamma, beta, dims, over, eps, input_bits, bits, saved_bits, weight_bits, l2, centred):
    statistic, one = _keepdim(x, dims), [1] * x.ndim
    return (
        torch.empty_like(x, dtype=float_dtype(is_half(x))),
        x.new_empty(packed_bytes(x.numel(), saved_bits), dtype=torch.uint8),
        x.new_empty(_kept_axes(x, dims, over), dtype=torch.float32),
        x.new_empty(one if gamma is None else gamma.shape, dtype=torch.int8),
        x.new_empty(one, dtype=torch.float32),
        x.new_empty(statistic, dtype=torch.float64),
        x.new_empty(statistic, dtype=torch.float64),
    )


@op(
    "(Tensor x, Tensor r, Tensor? gamma, Tensor? beta, int[] dims, int[] over, float eps, int input_bits, int bits,"
    " int saved_bits, int weight_bits, bool l2, bool centred)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_fake,
)
def norm_forward(
    x, r, gamma, beta, dims, over, eps: float, input_bits, bits, saved_bits, weight_bits, l2: bool, centred: bool
):
    """(y, saved, its scale, q_gamma, s_gamma, mu, D) of a norm by the statistics of x itself.

    x      dense; y is bfloat16 where x is, otherwise float32
    r      float32, the range of x as one number or one for each statistic
    gamma  and beta: broadcast to x, or None. gamma is quantized by its own maximum; None: the code 1 with scale 1
    dims   reduced by a statistic; over: by the gradients of gamma and beta
    saved  xhat, narrowed to saved_bits, packed in x's memory order
    = quantize(x), norm_stats (without centring norm_stats_uncentred), norm_constants, norm_apply, narrow_codes, packing
    """
    n, fmt = count(x.shape, dims), IntFormat(input_bits)
    q, s = _reference("quantize", x, r, None, None, input_bits, True), numerics.step(r, fmt)
    one = torch.ones([1] * x.ndim, dtype=torch.float32, device=x.device)
    q_gamma, s_gamma = (
        (one.to(torch.int8), one) if gamma is None else _reference("absmax_codes", gamma, 1.0, None, weight_bits, True)
    )
    if centred:
        total, spread, least, greatest = _reference("norm_stats", q, dims, l2)
    else:
        spread, greatest = _reference("norm_stats_uncentred", q, dims, l2)
        total, least = torch.zeros_like(spread), -greatest
    each = n if centred else 1
    axes = [d % x.ndim for d in over]
    mu, d, factor, scale = _reference("norm_constants", s, total, spread, least, greatest, n, each, l2, eps, bits, axes)
    mu, d, scale = (t.contiguous() for t in (mu, d, scale))  # whatever the layout of r
    beta = torch.zeros_like(one) if beta is None else beta.float()
    y, k = _reference("norm_apply", q, total, factor, each, bits, q_gamma, scale * s_gamma, beta)
    drop = max(bits - saved_bits, 0)
    if drop:
        k = _reference("narrow_codes", k, drop, saved_bits, True)
    saved = _reference("pack_codes", k.as_strided((k.numel(),), (1,)), saved_bits)
    return kept(y, is_half(x)), saved, scale * float(1 << drop), q_gamma.contiguous(), s_gamma, mu, d


def _backward_fake(g, r, stream, saved, s_k, q_gamma, s_gamma, d, dims, over, bits, saved_bits, l2, centred):
    param = [torch.empty(_keepdim(g, over), dtype=torch.float32, device=g.device) for _ in range(2)]
    return torch.empty_like(g, dtype=float_dtype(is_half(g))), *param


@op(
    "(Tensor g, Tensor r, Tensor stream, Tensor saved, Tensor s_k, Tensor q_gamma, Tensor s_gamma, Tensor d,"
    " int[] dims, int[] over, int bits, int saved_bits, bool l2, bool centred) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
def norm_backward(
    g, r, stream, saved, s_k, q_gamma, s_gamma, d, dims, over, bits: int, saved_bits: int, l2: bool, centred: bool
):
    """(dx, dgamma, dbeta), float32, of norm_forward's y. g: dense, in the memory order of norm_forward's x.

    dx is bfloat16 where g is.

    r: float32, the range of g, broadcastable to g and constant over dims and over; s_k: the scale of saved.
    = quantize(g, stochastic), norm_grad_stats, norm_grad_constants, norm_grad_apply
    """
    q, s = _reference("quantize", g, r, None, stream, bits, True), numerics.step(r, IntFormat(bits))
    kept_forward = (saved, s_k, q_gamma, s_gamma, d)
    dx, *params = norm_gradients(registered, q, s, *kept_forward, dims, over, saved_bits, l2, centred)
    return kept(dx, is_half(g)), *params


def norm_gradients(
    ops: Mapping[str, Callable], q, s, saved, s_k, q_gamma, s_gamma, d, dims, over, saved_bits, l2: bool, centred: bool
):
    """What norm_backward gives, of codes q of g with the scale s, by these ops (`registered`, or `dispatched`)."""
    k = ops["unpack_codes"](saved, q.numel(), saved_bits, True).as_strided(q.shape, q.stride())
    sum_h, sum_hk, sum_t, sum_g, sum_gk = ops["norm_grad_stats"](q, k, q_gamma, dims, over)
    n = count(q.shape, dims)
    auvt = ops["norm_grad_constants"](s, s_k, s_gamma, d, sum_h, sum_hk, sum_t, n, centred, l2)
    dx = ops["norm_grad_apply"](q, k, q_gamma, *auvt, l2)
    return dx, sum_gk.float() * (s * s_k), sum_g.float() * s
