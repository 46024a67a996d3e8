"""Arguments for the ops of ops/integer_tokens.py, and for the squared errors by which a scale is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte import integer, ops
from subbyte.numerics import IntFormat

FORMATS = ((4, True), (4, False), (2, True), (8, True))


def _sums(*shape: int) -> Tensor:
    """int32 up to 2^30, tokens up to 28 octaves apart, the extremes and a token of zeros among them."""
    g = torch.Generator().manual_seed(sum(shape))
    x = torch.randint(-(1 << 30), (1 << 30) + 1, shape, generator=g, dtype=torch.int64)
    x >>= torch.randint(0, 29, [1 if i == 1 else n for i, n in enumerate(shape)], generator=g)
    if x.numel():
        x[0, 0], x[-1, -1], x[-1, 0] = 0, 1 << 30, -(1 << 30)
    if shape[0] > 2:
        x[1] = 0
    return x.to(torch.int32)


def _tensors(big: int) -> list[Tensor]:
    image = _sums(3, 5, 3 * big, 7 * big)
    matrices = _sums(6 * big, 8), _sums(5 * big, 37), _sums(7 * big, 1)
    return [image, image.mT, *matrices, _sums(4, 3 * big).T, _sums(2, 3, 1100 * big), image[:, :1], image[:0]]


def _edges() -> Tensor:
    """A token each for 2^a - 2^b and what is next to it: the largest that a shift has room for, and one too many."""
    runs = torch.tensor([(1 << a) - (1 << b) for a in range(31) for b in range(a + 1)])
    return (runs.view(-1, 1) + torch.tensor([-1, 0, 1])).clamp(0, 1 << 30).view(-1, 1).to(torch.int32)


def int_token_shifts(big: int) -> list[tuple]:
    tensors = [*_tensors(big), _edges(), _edges().view(1, 1, -1)]
    return [(x, *f) for x in tensors for f in FORMATS] + [(_tensors(1)[0][:, :, :0], 4, True)]


def int_quantize_tokens(big: int) -> list[tuple]:
    calls = []
    for i, x in enumerate(_tensors(big)):
        for j, (bits, signed) in enumerate(FORMATS):
            needed, _ = ops.int_token_shifts(x, bits, signed)
            most = int(needed.max()) if needed.numel() else 0
            # nothing is clipped; some is; and a base below the exponents of the tokens
            for base, top in ((most, 8 - bits), (max(most - 2, 0), min(2, 8 - bits)), (1, min(3, 8 - bits))):
                stream = torch.tensor(i + j) if (i + j + base) % 2 else None
                at = torch.full([1] * x.ndim, base, dtype=torch.int32)
                calls.append((x, needed, at, stream, bits, signed, top))
    return calls


def int_squared_errors(big: int) -> list[tuple]:
    calls: list[tuple] = []
    for x in (*_tensors(big)[:-1], _sums(50 * big, 1) >> 21, torch.zeros(5, 1, dtype=torch.int32)):
        largest = x.abs().amax().to(torch.int64).view([1] * x.ndim)
        for bits, signed in FORMATS[:3]:
            base = integer.shift_to_fit(largest, IntFormat(bits, signed)).to(torch.int32)
            every = 1 if bits == 2 else 3
            calls.append((x, every, base, largest, None, 0, 4, bits, signed))
            calls.append((x, every, base, largest, ops.int_token_shifts(x, bits, signed)[0], 2, 4, bits, signed))
    return calls


CALLS = {f.__name__: f for f in (int_token_shifts, int_quantize_tokens, int_squared_errors)}
