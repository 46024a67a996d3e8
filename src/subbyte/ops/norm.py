"""The integer sums and the two element-wise passes of quantized normalization, L1 or L2.

q      codes of the input, one scale for each statistic or for the tensor
dims   the axes that a statistic reduces: (0, 2, 3) for BatchNorm2d, the trailing ones for LayerNorm
n      how many codes a statistic reduces; in norm_apply 1 (and S = 0) for a norm without a mean

Between the sums and the passes lie a few float64 operations on one number for each statistic; they are written once, in
autograd.py, and are the same on every backend. Sums of integers do not depend on their order: nor on threads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat
from .dispatch import op

MAX_COUNT = 1 << 24
"""The largest n: n sum q^2 <= n^2 2^14 stays in an int64."""


def count(shape: torch.Size, dims) -> int:
    """n, or ValueError beyond MAX_COUNT."""
    n = math.prod([shape[d] for d in dims])  # a list: torch.compile traces no generator here
    if n > MAX_COUNT:
        raise ValueError(
            f"a statistic over {n} elements exceeds the {MAX_COUNT} whose sums an int64 holds: {tuple(shape)}"
        )
    return n


def _keepdim(q: Tensor, dims) -> list[int]:
    axes = {d % q.ndim for d in dims}
    return [1 if i in axes else s for i, s in enumerate(q.shape)]


def _stats_fake(q, dims, l2):
    return tuple(q.new_empty(_keepdim(q, dims), dtype=torch.int64) for _ in range(4))


@op("(Tensor q, int[] dims, bool l2) -> (Tensor, Tensor, Tensor, Tensor)", _stats_fake)
def norm_stats(q: Tensor, dims: list[int], l2: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(S, A, least, greatest): S = sum q, A = sum |n q - S| (l2: n sum q^2 - S^2), the extremes of q; int64."""
    n = count(q.shape, dims)
    wide = q.to(torch.int64)
    total = wide.sum(dims, keepdim=True)
    if l2:
        spread = n * (wide * wide).sum(dims, keepdim=True) - total * total
    else:
        spread = (n * wide - total).abs().sum(dims, keepdim=True)
    return total, spread, wide.amin(dims, keepdim=True), wide.amax(dims, keepdim=True)


def _uncentred_fake(q, dims, l2):
    return tuple(q.new_empty(_keepdim(q, dims), dtype=torch.int64) for _ in range(2))


@op("(Tensor q, int[] dims, bool l2) -> (Tensor, Tensor)", _uncentred_fake)
def norm_stats_uncentred(q: Tensor, dims: list[int], l2: bool) -> tuple[Tensor, Tensor]:
    """(A, M) of a norm without a mean (RMSNorm): A = sum |q| (l2: sum q^2), M = max |q|; int64."""
    count(q.shape, dims)
    size = q.to(torch.int64).abs()
    return (size * size if l2 else size).sum(dims, keepdim=True), size.amax(dims, keepdim=True)


def _apply_fake(q, total, factor, n, bits, q_gamma, scale, beta):
    return torch.empty_like(q, dtype=torch.float32), torch.empty_like(q, dtype=torch.int8)


@op(
    "(Tensor q, Tensor total, Tensor factor, int n, int bits, Tensor q_gamma, Tensor scale, Tensor beta)"
    " -> (Tensor, Tensor)",
    _apply_fake,
)
def norm_apply(q, total, factor, n: int, bits: int, q_gamma, scale, beta) -> tuple[Tensor, Tensor]:
    """k = round(rint(float32(n q - S) * factor) / 2^16), y = float32(k q_gamma) * scale + beta -> (y float32, k int8).

    total = S; factor (float32, one for each statistic) turns deviations into fixed point; k has `bits` bits.
    """
    fmt = IntFormat(bits)
    k = numerics.round_nearest(numerics.to_fixed(n * q.to(torch.int64) - total, factor, fmt))
    y = (k * q_gamma.to(torch.int32)).to(torch.float32) * scale + beta
    return torch.empty_like(q, dtype=torch.float32).copy_(y), torch.empty_like(q, dtype=torch.int8).copy_(k)


def _grad_stats_fake(q_g, k, q_gamma, dims, param_dims):
    stat, param = _keepdim(q_g, dims), _keepdim(q_g, param_dims)
    return tuple(q_g.new_empty(s, dtype=torch.int64) for s in (stat, stat, stat, param, param))


@op(
    "(Tensor q_g, Tensor k, Tensor q_gamma, int[] dims, int[] param_dims) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _grad_stats_fake,
)
def norm_grad_stats(q_g, k, q_gamma, dims, param_dims) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """With h = q_gamma q_g: sum h, sum h k, sum sign(k) over dims; sum q_g, sum q_g k over param_dims. All int64."""
    g, k = q_g.to(torch.int64), k.to(torch.int64)
    h = g * q_gamma.to(torch.int64)
    over = [t.sum(dims, keepdim=True) for t in (h, h * k, k.sign())]
    return (*over, g.sum(param_dims, keepdim=True), (g * k).sum(param_dims, keepdim=True))


def _grad_apply_fake(q_g, k, q_gamma, a, u, v, t, l2):
    return torch.empty_like(q_g, dtype=torch.float32)


@op(
    "(Tensor q_g, Tensor k, Tensor q_gamma, Tensor a, Tensor u, Tensor v, Tensor t, bool l2) -> Tensor",
    _grad_apply_fake,
)
def norm_grad_apply(q_g, k, q_gamma, a, u, v, t, l2: bool) -> Tensor:
    """dx = a * (float32(h) - (u + v * (s - t))) with h = q_gamma q_g, s = sign(k) (l2: s = k), in float32.

    a, u, v, t: float32, one for each statistic. Each operation rounds by itself: no fused multiply-add. -> float32
    """
    h = (q_g.to(torch.int32) * q_gamma.to(torch.int32)).to(torch.float32)
    s = k.to(torch.float32) if l2 else k.sign().to(torch.float32)
    return torch.empty_like(q_g, dtype=torch.float32).copy_(a * (h - (u + v * (s - t))))
