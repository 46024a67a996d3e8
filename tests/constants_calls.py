"""Arguments for the ops of ops/constants.py and ops/codes.py, for op_calls.py."""

from __future__ import annotations

import torch
from torch import Tensor

import chain_calls
from chain_calls import _codes, _floats


def _statistics(*shape: int) -> tuple[Tensor, ...]:
    """(scale of codes, S, A, least, greatest) of 100 codes each; one statistic is of nothing but zeros."""
    n = 100
    q = _codes(n, *shape).long()
    q[:, 0] = 0
    total = q.sum(0)
    return _floats(*shape).abs() + 0.1, total, (n * q - total).abs().sum(0), q.amin(0), q.amax(0)


def norm_constants(big: int) -> list[tuple]:
    shapes = (((1, 5 * big, 1, 1), [0, 2, 3]), ((7 * big, 1), [0]), ((3, 4 * big, 1, 1), [0, 3]), ((2, 3), []))
    calls = []
    for shape, over in shapes:
        s, *sums = _statistics(*shape)
        one = torch.full([1] * len(shape), 0.25)
        for scale in (s, one, one * 0):
            calls += [(scale, *sums, 100, count, l2, 1e-5, 6, over) for count in (100, 1) for l2 in (False, True)]
    return calls


def norm_grad_constants(big: int) -> list[tuple]:
    s, h, hk, _, t = _statistics(1, 6 * big, 1, 1)
    one, d = torch.full((1, 1, 1, 1), 0.5), s.double() + 0.3
    flags = [(centred, l2) for centred in (False, True) for l2 in (False, True)]
    return [(g, k, one, d, h, hk, t, 100, *f) for g, k in ((s, s), (one, s)) for f in flags]


def norm_relu_range(big: int) -> list[tuple]:
    calls = []
    for q in chain_calls._inputs(big):
        total, factor, n, bits, gamma, scale, beta = chain_calls._norm(q)
        dims = [i for i in range(q.ndim) if i != 1]
        least, greatest = (f(q.long(), dims, keepdim=True) for f in (torch.amin, torch.amax))
        for b in (beta, torch.zeros([1] * q.ndim)):
            calls.append((least, greatest, total, factor, n, bits, gamma, scale, b))
    return calls


def norm_grad_range(big: int) -> list[tuple]:
    low = _codes(3, 1, 6 * big, 1, 1).long()
    high, c = (low + 20).clamp(max=127), _floats(1, 6 * big, 1, 1)
    low[1], high[1], low[2, 0, 0], high[2, 0, 0] = 128, -128, 128, -128
    gamma = (c * 50).clamp(-127, 127).to(torch.int8)
    return [(low, high, g, a, c * 3, c * 20, c / 9) for g in (gamma, gamma[:, :1]) for a in (c / 500, c * 0)]


def shift_exponents(big: int) -> list[tuple]:
    r = torch.exp2(-torch.arange(9.0 * big) / 2).view(1, -1, 1, 1)
    inputs = (r, r * (r < 0.2), r.clamp(min=0.3), r * 2.0**-76, r[:, :1] * 0)
    return [(t, *form) for t in inputs for form in ((0, 0), (3, 0), (8, 0), (8, 4), (3, 1))]


def absmax_codes(big: int) -> list[tuple]:
    x, stream = _floats(4, 3, 5 * big, 4), torch.tensor(-7)
    inputs = (x, x.mT, x.contiguous(memory_format=torch.channels_last), x[:0], x * 0, x * 2.0**-78)
    forms = ((1.0, None, 4, True), (0.3, stream, 4, True), (0.5, None, 8, False))
    return [(t, *form) for t in inputs for form in forms]


def shift_codes(big: int) -> list[tuple]:
    x, stream = _floats(4, 3, 5 * big, 4), torch.tensor(-7)
    x *= torch.exp2(-torch.arange(3.0)).view(-1, 1, 1)
    inputs = (x, x.mT, x.contiguous(memory_format=torch.channels_last), x[:0], x * 0, x * 2.0**-78)
    forms = ((8, 1.0, None, 4, True), (0, 0.5, stream, 8, False), (3, 0.3, stream, 6, True))
    return [(t, axis, *form) for t in inputs for axis in (0, 1) if t.shape[axis] for form in forms]


CALLS = {
    f.__name__: f
    for f in (
        *(norm_constants, norm_grad_constants, norm_relu_range, norm_grad_range),
        *(shift_exponents, absmax_codes, shift_codes),
    )
}
