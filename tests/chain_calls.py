"""Arguments for the ops of ops/chain.py, for op_calls.py: batch norms in both layouts, and a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from subbyte import ops
from subbyte.ops import chain

LAST = torch.channels_last


def _codes(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-127, 128, shape, generator=g).to(torch.int8)


def _floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def _inputs(big: int) -> Iterator[Tensor]:
    """Codes whose channel is axis 1: pixels a multiple of 4 and not, channels that fill a vector and not."""
    image = _codes(2 * big, 3, 4, 5 * big)
    yield image
    yield image.contiguous(memory_format=LAST)
    yield _codes(2, 16 * big, 3, 3).contiguous(memory_format=LAST)
    yield _codes(2, 5, 3, 3 * big)
    yield _codes(5 * big, 8 * big)


def _channels(q: Tensor) -> Tensor:
    return _floats(*[n if i == 1 else 1 for i, n in enumerate(q.shape)])


def _norm(q: Tensor) -> tuple:
    """(total, factor, n, bits, q_gamma, scale, beta) with gammas of both signs."""
    dims = [i for i in range(q.ndim) if i != 1]
    n, c = math.prod(q.shape[d] for d in dims), _channels(q)
    total = q.long().sum(dims, keepdim=True)
    return total, c.abs() * 4e4 / n, n, 8, (c * 50).clamp(-127, 127).to(torch.int8), c.abs() / 99, c


def norm_relu(big: int) -> list[tuple]:
    return [
        (q, *_norm(q), saved, torch.empty_like(q, dtype=torch.float32).copy_(_floats(*q.shape)) if add else None, relu)
        for q in _inputs(big)
        for saved, add, relu in ((6, True, True), (4, False, True), (8, True, False), (5, False, False))
    ]


def norm_relu_codes(big: int) -> list[tuple]:
    wide = torch.full((), 2.0)
    return [
        (q, *_norm(q), saved, r.view([-1 if r.numel() > 1 and i == 1 else 1 for i in range(q.ndim)]), bits, signed)
        for q in _inputs(big)
        for saved, bits, signed, r in (
            *((6, 4, False, wide), (4, 4, True, wide), (8, 8, False, wide)),
            (6, 6, True, _channels(q).abs().flatten()),
        )
    ]


def norm_relu_tokens(big: int) -> list[tuple]:
    return [
        (q, *_norm(q), saved, torch.full([1] * q.ndim, r), *form)
        for q in _inputs(big)
        if q.stride(1) == 1  # elsewhere it is ReLU(y) in floats, and quantize_tokens
        for saved, r, form in ((6, 4.0, (4, False, 2)), (4, 9.0, (4, True, 4)), (8, 2.0, (8, False, 0)))
    ]


def _gradients(big: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(g, mask) with a mask of each kind."""
    for q in _inputs(big):
        g = torch.empty_like(q, dtype=torch.float32).copy_(_floats(*q.shape))
        passes = torch.empty_like(q, dtype=torch.bool).copy_(q > 0)
        yield g, chain._packed(passes, chain.MASK_BITS)
        yield g, torch.empty(0, dtype=torch.uint8)


def relu_grad(big: int) -> list[tuple]:
    return [(g, mask, keep) for g, mask in _gradients(big) for keep in (False, True)]


def relu_grad_quantize(big: int) -> list[tuple]:
    return [
        (g, mask, r, torch.tensor(11), bits)
        for g, mask in _gradients(big)
        for bits, r in ((8, _channels(g).abs() + 1), (4, torch.full([1] * g.ndim, 3.0)))
    ]


def norm_grad_sums(big: int) -> list[tuple]:
    return [(q, chain._saved_form(-q // 2, 8, b), b) for q in _inputs(big) for b in (8, 6, 4)]


def norm_grad_amax(big: int) -> list[tuple]:
    return [call[:8] for call in norm_grad_codes(big)[:: len(norm_grad_codes(1)) // len(list(_inputs(1)))]]


def norm_grad_codes(big: int) -> list[tuple]:
    calls = []
    for q in _inputs(big):
        c = _channels(q)
        gamma, shift = (c * 50).clamp(-127, 127).to(torch.int8), (torch.arange(c.numel()) % 3).to(torch.uint8)
        operands = (gamma, c / 500, c * 3, c * 20, c / 9)
        saved = chain._saved_form(-q // 2, 8, 6)
        whole, each = torch.full([1] * q.ndim, 9.0), c.abs() * 9 + 1
        sample_shift = (torch.arange(len(q)) % 4).to(torch.uint8).view(-1, *[1] * (q.ndim - 1))
        calls += [
            (q, saved, 6, *operands, whole, shift.view(c.shape), torch.tensor(3), 4),
            (q, saved, 6, *operands, each, None, torch.tensor(4), 8),
            (q, saved, 6, *operands, whole, None, None, 6),
            (q, saved, 6, *operands, whole, sample_shift, torch.tensor(5), 4),
        ]
    return calls


def norm_grad_tokens(big: int) -> list[tuple]:
    return [
        (*call, torch.full([1] * call[0].ndim, r), stream, bits, top)
        for call in norm_grad_amax(big)
        if call[0].stride(1) == 1  # elsewhere it is dx in floats, and quantize_tokens
        for r, stream, bits, top in ((9.0, torch.tensor(3), 4, 4), (90.0, None, 6, 2), (4.0, torch.tensor(4), 8, 0))
    ]


def quantize_tokens(big: int) -> list[tuple]:
    def octaves(g: Tensor, below: int) -> Tensor:
        return (torch.arange(g.shape[1]) % below).to(torch.uint8).view([-1 if i == 1 else 1 for i in range(g.ndim)])

    return [
        (g, torch.full([1] * g.ndim, 5.0), below and octaves(g, below), stream, *form)
        for g, _ in _gradients(big)
        for below, stream, *form in (
            (None, torch.tensor(3), 4, True, 4),
            (None, None, 6, True, 2),
            (1, torch.tensor(4), 2, True, 6),
            (5, torch.tensor(4), 4, True, 4),
            (None, None, 4, False, 2),
            (3, torch.tensor(5), 8, False, 0),
        )
    ]


def _of_a_norm(big: int) -> Iterator[Tensor]:
    """Floats with a channel of zeros."""
    for q in _inputs(big):
        y = torch.empty_like(q, dtype=torch.float32).copy_(_floats(*q.shape))
        y[:, 0] = 0
        yield y


def chain_norm(big: int) -> list[tuple]:
    calls = []
    for y in _of_a_norm(big):
        with ops.use_backend("reference"):
            r_k = ops.amax(y, 1)
        gamma, beta = _channels(y), _channels(y) / 3
        calls += [
            (y, r_k, gamma, beta, False, 8, 8, 6, 7, 1e-5),
            (y, r_k, None, beta, True, 6, 8, 8, 8, 1e-3),
            (y, r_k, gamma, None, True, 8, 7, 4, 4, 1e-5),
        ]
    return calls


def chain_norm_grad(big: int) -> list[tuple]:
    calls = []
    for (g, mask), y in zip(_gradients(big), (y for y in _of_a_norm(big) for _ in range(2)), strict=True):
        saved = chain._saved_form(torch.empty_like(g, dtype=torch.int8).copy_(_codes(*g.shape)), 8, 6)
        c = _channels(g)
        norm = (saved, 6, c.abs() / 99, (c * 50).clamp(-127, 127).to(torch.int8), torch.full([1] * g.ndim, 0.3))
        d = c.abs().double() + 0.1
        calls += [
            (g, mask, False, False, 8, torch.tensor(5), *norm, d),
            (y, mask, True, True, 4, torch.tensor(6), *norm, d),
            (y, mask, False, False, 6, torch.tensor(7), *norm, d),
        ]
    return calls


CALLS = {
    f.__name__: f
    for f in (
        *(
            norm_relu,
            norm_relu_codes,
            norm_relu_tokens,
            relu_grad,
            relu_grad_quantize,
            norm_grad_sums,
            norm_grad_amax,
            norm_grad_codes,
        ),
        *(norm_grad_tokens, quantize_tokens),
        *(chain_norm, chain_norm_grad),
    )
}
assert set(CALLS) <= set(ops.registered)
