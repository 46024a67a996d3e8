"""Arguments for pack_tokens, unpack_tokens and quantize_blocks, for op_calls.py: matrices, images in both
layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte import ops
from subbyte.numerics import IntFormat
from subbyte.ops import registered

FORMS = ((4, False, 2), (4, True, 4), (6, True, 2), (2, False, 6), (3, True, 0), (7, False, 1))
"""Bits of a code, its sign, and the largest exponent of a token."""


def token_codes(shape: tuple[int, ...], bits: int, signed: bool, top: int) -> Tensor:
    """Codes with 0 to top places of zeros, by token, one token of zeros; extremes are among them."""
    g = torch.Generator().manual_seed(sum(shape) + bits)
    fmt = IntFormat(bits, signed)
    codes = torch.randint(fmt.qmin, fmt.qmax + 1, shape, generator=g)
    codes[..., -1] = fmt.qmax
    tokens = [1 if i == 1 else n for i, n in enumerate(shape)]
    codes[0, 0], codes[-1] = fmt.qmin, 0
    return (codes << torch.randint(top + 1, tokens, generator=g)).to(fmt.dtype)


def by_token(big: int) -> list[tuple[Tensor, int, bool, int]]:
    """(codes, bits, signed, top): channels of a token lie together; fewer than 8 codes, words, tiles, remainders."""
    found = []
    for form in FORMS:
        image = token_codes((2, 16 * big, 3, 5), *form)
        found += [
            (token_codes((5 * big, 3), *form), *form),
            (token_codes((150 * big, 67), *form), *form),
            (token_codes((203 * big, 8), *form), *form),  # the blocks of weights; 8 and 16 have loops of their own
            (token_codes((301 * big, 16), *form), *form),
            (image.contiguous(memory_format=torch.channels_last), *form),
        ]
    return found


def pack_tokens(big: int) -> list[tuple]:
    return [(codes, bits, top) for codes, bits, _, top in by_token(big)]


def unpack_tokens(big: int) -> list[tuple]:
    calls = []
    for codes, bits, signed, top in by_token(big):
        with ops.use_backend("reference"):
            packed, places = registered["pack_tokens"](codes, bits, top)
        calls.append((packed, places, list(codes.shape), list(codes.stride()), bits, signed, top))
    return calls


def quantize_blocks(big: int) -> list[tuple]:
    """Weights with channels last in memory: several tiles of a filter, the rest of one, no whole number of vectors."""
    g = torch.Generator().manual_seed(big)
    found = []
    for o, i, h, w in ((6 * big, 40, 3, 3), (5, 2000 * big, 3, 3), (3, 24, 2, 2 * big), (2, 144 * big, 5, 1)):
        size = torch.exp2(-4 * torch.rand(o, i, 1, 1, generator=g))
        x = (torch.randn(o, i, h, w, generator=g) * size).contiguous(memory_format=torch.channels_last)
        x[0, :9] = 0
        r = x.abs().amax().view(1, 1, 1, 1)
        forms = ((4, True, 2, 8), (6, True, 2, 12), (4, False, 4, 4), (8, True, 0, 1))
        found += [(x, r * clip, None, *form) for clip, form in zip((1.0, 0.7, 1.0, 0.9), forms, strict=True)]
    return [*found, (found[0][0], torch.full((1, 1, 1, 1), torch.nan), None, 4, True, 2, 72)]


CALLS = {f.__name__: f for f in (pack_tokens, unpack_tokens, quantize_blocks)}
