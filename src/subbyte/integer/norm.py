"""L1 statistics of codes and what they divide by, in integers alone. NORMATIVE; the RTL computes it.

Widths in bits, signs included, for codes of b <= 8 bits and a statistic over n <= MAX_COUNT elements, k = ceil(log2 n):

    S = sum q         b + k
    d = n q - S       b + k + 1
    A = sum |d|       b + 2 k + 1
    c A               b + 2 k + 16                          <= 63
    reciprocal        RECIPROCAL_BITS + 8                   (A >= n^2 / 2^7, 1 / c < 1)
    d reciprocal      b + k + 9 + RECIPROCAL_BITS           <= 53
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat
from .shifts import requantize

L1_FACTOR_BITS = 14
L1_FACTOR_FIXED = 20533
"""c = sqrt(pi / 2) in fixed point: round(1.2533141 * 2^14)."""

MAX_COUNT = 1 << 19
"""The largest n: c A <= 2^15 2^8 n^2 stays within 63 bits."""

RECIPROCAL_BITS = 16
"""Significant bits of the reciprocal of a deviation: twice those of an 8-bit code."""


def l1_statistics(q: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, int]:
    """(S, A, n): sum q, sum |n q - S| and how many codes each statistic covers; int64, dimensions kept."""
    n = 1
    for d in dims:
        n *= q.shape[d]
    wide = q.to(torch.int64)
    total = wide.sum(dims, keepdim=True)
    return total, (n * wide - total).abs().sum(dims, keepdim=True), n


def l1_reciprocal(spread: Tensor, n: int) -> Tensor:
    """floor((n << P + 14 - k) / (c A >> k)) ~ 2^P n / (c A), k = ceil(log2 n), P = RECIPROCAL_BITS + k; int64.

    One integer division for each statistic, 55 bits by 63. The floor of n^2 / 2^7 under A plays eps: only a channel
    whose mean deviation is below 2^-7 of a step, a constant one, is divided by that. ValueError for n > MAX_COUNT.
    """
    if n > MAX_COUNT:
        raise ValueError(f"an integer statistic covers at most {MAX_COUNT} elements, not {n}: c A must fit 63 bits")
    k = (n - 1).bit_length()
    divisor = (L1_FACTOR_FIXED * spread.clamp(min=max(n * n >> 7, 1))) >> k
    return (n << (RECIPROCAL_BITS + L1_FACTOR_BITS)) // divisor


def l1_normalize(q: Tensor, dims: list[int], fmt: IntFormat, fraction: int) -> Tensor:
    """xhat = (q - mean q) / (c mean |q - mean q|) as codes of 2^-fraction, rounded half to even, clamped to fmt.

    code = rshift(d floor(2^P n / (c A)), P - fraction): the scale of q cancels, so no exponent enters.

    q: integer codes, any shape; dims: the axes of a statistic.

    >>> l1_normalize(torch.tensor([[-2, 0, 2, 0]], dtype=torch.int8), [1], IntFormat(8), fraction=4).tolist()
    [[-26, 0, 26, 0]]
    """
    total, spread, n = l1_statistics(q, dims)
    p = RECIPROCAL_BITS + (n - 1).bit_length()
    scaled = (n * q.to(torch.int64) - total) * l1_reciprocal(spread, n)
    return requantize(scaled, p - fraction, fmt)
