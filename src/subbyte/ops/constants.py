"""Small ops between the passes: a few operations on one number for each channel or statistic, in one call.

Each is a sequence of IEEE operations that every backend does in the same order: float64 where nothing else is said.
They are ops for speed alone: thirty small tensors cost more than a pass over a small layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import numerics
from ..numerics import RANGE_FLOOR, IntFormat
from .dispatch import op, registered
from .exact import kept

L1_FACTOR = math.sqrt(math.pi / 2)
"""c: the ratio of a Gaussian's standard deviation to its mean absolute deviation."""


def _like(t: Tensor, *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape, dtype=d) for d in dtypes)


def _norm_constants_fake(s, total, spread, least, greatest, n, count, l2, eps, bits, over):
    mu, d, factor = _like(total, torch.float64, torch.float64, torch.float32)
    shape = [1 if i in over else size for i, size in enumerate(total.shape)]
    return mu, d, factor, total.new_empty(shape, dtype=torch.float32)


@op(
    "(Tensor s, Tensor total, Tensor spread, Tensor least, Tensor greatest, int n, int count, bool l2, float eps,"
    " int bits, int[] over) -> (Tensor, Tensor, Tensor, Tensor)",
    _norm_constants_fake,
)
def norm_constants(s, total, spread, least, greatest, n: int, count: int, l2: bool, eps: float, bits: int, over):
    """(mu, D, factor, scale of xhat) from what norm_stats gives of codes with scale s: norm_apply's operands.

    n (x - mu) = s (n q - S), mean|x - mu| = s A / n^2, var = s^2 (n sum q^2 - S^2) / n^2; count = n.
    Without centring x = s q, mean|x| = s sum|q| / n, mean x^2 = s^2 sum q^2 / n; count = 1, S = 0.

    over  axes along which xhat has one scale, since the gradients of gamma and beta sum along them
    """
    fmt = IntFormat(bits)
    s = s.double()
    mu = s * total.double() / n
    spread = spread.double() / (float(count) * n)
    d = numerics.square_root(s * s * spread + eps) if l2 else L1_FACTOR * (s * spread) + math.sqrt(eps)
    unit = s / (count * d)  # xhat = unit (count q - S)
    top = torch.maximum(count * greatest - total, total - count * least)
    reach = unit * top.double()
    reach = (reach.amax(over, keepdim=True) if over else reach).float()
    reach = torch.where(reach < RANGE_FLOOR, torch.zeros_like(reach), reach)
    factor = unit * numerics.inverse_step(reach, fmt).double()
    factor = factor.nan_to_num(nan=0.0, posinf=0.0).float()
    return mu, d, factor, numerics.step(reach, fmt)


def _grad_constants_fake(s_g, s_k, s_gamma, d, sum_h, sum_hk, sum_t, n, centred, l2):
    return _like(sum_h, *[torch.float32] * 4)


@op(
    "(Tensor s_g, Tensor s_k, Tensor s_gamma, Tensor d, Tensor sum_h, Tensor sum_hk, Tensor sum_t, int n,"
    " bool centred, bool l2) -> (Tensor, Tensor, Tensor, Tensor)",
    _grad_constants_fake,
)
def norm_grad_constants(s_g, s_k, s_gamma, d, sum_h, sum_hk, sum_t, n: int, centred: bool, l2: bool):
    """(a, u, v, t) of norm_grad_apply, float32, from the sums of norm_grad_stats and the scales of g, xhat and gamma.

    a = s_g s_gamma / D, u = mean h, v = c s_k mean(h k) (l2: s_k^2), t = mean sign(k) (l2: 0).
    Without centring u = t = 0.
    """
    sk = s_k.double()
    a = (s_g.double() * s_gamma.double() / d).float()
    u = (sum_h.double() / n).float()
    mean_hk = sk * sum_hk.double() / n
    v = (sk * mean_hk if l2 else L1_FACTOR * mean_hk).float()
    t = torch.zeros_like(u) if l2 else (sum_t.double() / n).float()
    if not centred:
        u, t = torch.zeros_like(u), torch.zeros_like(t)
    return tuple(x.expand_as(sum_h).contiguous() for x in (a, u, v, t))


@op(
    "(Tensor least, Tensor greatest, Tensor total, Tensor factor, int n, int bits, Tensor q_gamma, Tensor scale,"
    " Tensor beta, bool half=False) -> Tensor",
    lambda least, *_: least.new_empty(least.shape, dtype=torch.float32),
)
def norm_relu_range(
    least, greatest, total, factor, n: int, bits: int, q_gamma, scale, beta, half: bool = False
) -> Tensor:
    """max ReLU(y) of each channel (axis 1), y of norm_apply: at an extreme code, since y is monotone in them.

    half  y is rounded to bfloat16
    """
    ends = torch.cat((least, greatest)).to(torch.int8)
    y, _ = registered["norm_apply"](ends, total, factor, n, bits, q_gamma, scale, beta)
    return registered["amax"](torch.relu(kept(y, half)), 1)


@op(
    "(Tensor low, Tensor high, Tensor q_gamma, Tensor a, Tensor u, Tensor v, Tensor t, bool half=False) -> Tensor",
    lambda low, *_: low.new_empty(low.shape[1:], dtype=torch.float32),
)
def norm_grad_range(low, high, q_gamma, a, u, v, t, half: bool = False) -> Tensor:
    """max |dx| of each channel (axis 1), dx of norm_grad_apply (L1), from the extremes that norm_grad_sums gives.

    dx = a (float(q_gamma g) - (u + v (s - t))) is monotone in g where the sign s of xhat is the same.
    half: dx is rounded to bfloat16.
    """
    ends = torch.cat((low, high)).flatten(0, 1)
    there = torch.cat((low <= high, low <= high)).flatten(0, 1)
    signs = torch.tensor([-1, 0, 1] * 2, dtype=torch.int8, device=ends.device).view(-1, *[1] * (ends.ndim - 1))
    codes, signs = ends.clamp(-127, 127).to(torch.int8), signs.expand_as(ends).contiguous()
    dx = kept(registered["norm_grad_apply"](codes, signs, q_gamma, a, u, v, t, False), half)
    return registered["amax"](torch.where(there, dx, torch.zeros_like(dx)), 1)


@op(
    "(Tensor r_k, int top, int apart) -> (Tensor, Tensor)",
    lambda r_k, top, apart: (r_k.new_empty([1] * r_k.ndim), r_k.new_empty(r_k.shape, dtype=torch.uint8)),
)
def shift_exponents(r_k: Tensor, top: int, apart: int) -> tuple[Tensor, Tensor]:
    """(R, e): R = max r_k, e = largest_exponents(r_k, R, top), uint8. r_k: float32, at least one.

    apart > 0: every e is 0 unless, of those r_k that are above 0, at least a quarter have e >= apart.
    """
    r = r_k.amax(list(range(r_k.ndim)), keepdim=True)
    e = numerics.largest_exponents(r_k, r, top)
    if apart:
        alive = r_k > 0
        e = e * (4 * (alive & (e >= apart)).sum() >= alive.sum().clamp(min=1))
    return r, e.to(torch.uint8)
