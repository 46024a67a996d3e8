"""Batch normalization of 8-bit codes as tables and coefficients, forward and backward, in integers alone. NORMATIVE.

What a norm does to a code depends on the code and its channel alone, so the forward pass is a table of 256 entries for
each channel. x has codes q of its own scale 2^exponent in each channel; n codes in a channel, C channels.

    xhat = (q - mean q) / D          as   raw = deviation * reciprocal,   xhat = raw 2^scale       Statistics
    k = round(xhat 2^f) in 8 bits    f = the finest of -2..6 that the channel's largest |xhat| allows      Normalized
    y = gamma k 2^-f + beta          gamma in 8 bits, beta in 24                                         affine_table
    dx = (gamma / D) [g - mean g - c (t - mean t) mean(g xhat)],  t = sign k                             coefficients

Widths in bits, signs included, k = ceil(log2 n) <= 19; those of integer.norm come first:
    raw of the batch       d reciprocal                      53
    raw of the buffers     (q 2^16 - mean) reciprocal        42 + 18 = 60
    k gamma 2^(6 - f)      8 + 8 - 1 + 8                     23
    y                                                        25
    c sum(g k) 2^(8 - f)   15 + 15 + k + 10                  59
    bracket of dx          8 + 8, u and v                    27
    a = gamma / D          31, so that dx before its shift has 58
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics import IntFormat
from .floats import MANTISSA_BITS, mantissas, to_float
from .norm import L1_FACTOR_BITS, L1_FACTOR_FIXED, RECIPROCAL_BITS, l1_reciprocal
from .shifts import right_nearest, shift_by, shift_to_fit

FINEST, COARSEST = 6, -2
"""The range of f: 2^6 for a channel whose |xhat| stays below 2, 2^-2 where it exceeds 63 (beyond 508 it is clipped)."""

GRADIENT_FRACTION = 8
"""Fractional bits of the bracket of dx: the means are kept to 2^-8 of a code of g."""

AFFINE_BITS = 24
"""|y| < 2^24: beta has 23 of them, the product fewer."""

_BUFFER_FRACTION = 16  # of a mean in steps of q, where it comes from the buffers
_RECIPROCAL = 40  # 2^40 over a D of 24 bits has 17
_FACTOR = 30  # bits of the largest gamma / D


@dataclass(frozen=True)
class Statistics:
    """What turns a code into xhat = (factor q - offset) reciprocal 2^scale. All (C,); int64, scale int32.

    largest     an upper bound of |raw|
    inverse, inverse_exponent    1 / D = inverse 2^inverse_exponent in steps of q, 17 bits
    """

    factor: int
    offset: Tensor
    reciprocal: Tensor
    scale: Tensor
    largest: Tensor
    inverse: Tensor
    inverse_exponent: Tensor


def batch_statistics(total: Tensor, spread: Tensor, largest: Tensor, n: int) -> Statistics:
    """Of S = sum q, A = sum |n q - S| and M = max |n q - S|, each (C,) int64. ValueError for n > MAX_COUNT."""
    k = (n - 1).bit_length()
    reciprocal = l1_reciprocal(spread, n)  # 2^(P + k) n / (c A)
    scale = torch.full_like(total, -(RECIPROCAL_BITS + k), dtype=torch.int32)
    # 1 / D = n (n / (c A)): n times the reciprocal, brought to 18 bits, of which 1 / D of a full channel uses few
    inverse, drop = to_bits(reciprocal * n, 17)
    return Statistics(n, total, reciprocal, scale, largest * reciprocal, inverse, scale + drop)


def buffer_statistics(mean: Tensor, mean_e: Tensor, var: Tensor, var_e: Tensor, eps: tuple[int, int], step: Tensor):
    """The same of running_mean and running_var, given as mantissas (24 bits) and exponents; q has steps 2^step (C,).

    eps: its mantissa and exponent. D = sqrt(var + eps) as an integer root of 46 bits.
    """
    offset = shift_by(mean.to(torch.int64), step - mean_e - _BUFFER_FRACTION).clamp(-(1 << 41), 1 << 41)
    d, d_e = root_of_sum(var.to(torch.int64), var_e, *eps)
    reciprocal = (1 << _RECIPROCAL) // d
    largest = (((127 << _BUFFER_FRACTION) + offset.abs()) * reciprocal).abs()
    scale = step - _BUFFER_FRACTION - _RECIPROCAL - d_e
    return Statistics(1 << _BUFFER_FRACTION, offset, reciprocal, scale, largest, reciprocal, step - _RECIPROCAL - d_e)


def root_of_sum(v: Tensor, v_e: Tensor, w: int, w_e: int) -> tuple[Tensor, Tensor]:
    """(m, e) with m 2^e = sqrt(v 2^v_e + w 2^w_e), 2^23 <= m <= 2^24, or 1 for a sum of 0; v has 24 bits."""
    e = torch.maximum(v_e, torch.full_like(v_e, w_e)) - 24
    total = shift_by(v, e - v_e) + shift_by(torch.full_like(v, w), e - w_e)
    up = 48 - _bit_length(total)  # brought to 47 or 48 bits below an even exponent
    up = up - ((e - up) & 1)
    root = integer_sqrt(shift_by(total, -up))
    return root.clamp(min=1), (e - up) >> 1


def integer_sqrt(v: Tensor) -> Tensor:
    """floor(sqrt(v)) for int64 0 <= v < 2^50, bit by bit.

    >>> integer_sqrt(torch.tensor([0, 15, 16, (1 << 50) - 1])).tolist()
    [0, 3, 4, 33554431]
    """
    root = torch.zeros_like(v)
    for bit in range(24, -1, -1):
        tried = root + (1 << bit)
        root = torch.where(tried * tried <= v, tried, root)
    return root


@dataclass(frozen=True)
class Normalized:
    """xhat = k 2^-fraction for every code that q may have: k (C, 256) int8, fraction (C,) int32."""

    k: Tensor
    fraction: Tensor


def normalized_table(stats: Statistics, input_format: IntFormat, fmt: IntFormat) -> Normalized:
    """Every code of input_format -> xhat in fmt, half to even, with as many fractional bits as its channel admits."""
    fits = shift_to_fit(stats.largest, fmt).to(torch.int32)  # raw 2^-fits is a code: xhat 2^f with f = -scale - fits
    fraction = (-stats.scale - fits).clamp(COARSEST, FINEST)
    codes = torch.arange(256, device=stats.offset.device) - (128 if input_format.signed else 0)
    raw = (stats.factor * codes - stats.offset.unsqueeze(1)) * stats.reciprocal.unsqueeze(1)
    k = shift_by(raw, (-stats.scale - fraction).unsqueeze(1))
    return Normalized(k.clamp(fmt.qmin, fmt.qmax).to(torch.int8), fraction)


def affine_table(
    xhat: Normalized, gamma: Tensor, gamma_e: Tensor, beta: Tensor, beta_e: Tensor
) -> tuple[Tensor, Tensor]:
    """(y (C, 256) int32, exponent ()) of y = gamma xhat + beta. gamma: (C,) 8-bit codes; beta: (C,) of 24 bits."""
    product = (xhat.k.to(torch.int64) * gamma.unsqueeze(1).to(torch.int64)) << (FINEST - xhat.fraction).unsqueeze(1)
    e = torch.maximum(gamma_e - FINEST, beta_e + 1)  # beta loses a bit, so that the sum has 24
    y = shift_by(product, e - gamma_e + FINEST) + shift_by(beta.to(torch.int64), e - beta_e).unsqueeze(1)
    return y.to(torch.int32), e


@dataclass(frozen=True)
class Coefficients:
    """dx = ((g 2^8 - u - v sign(k)) a / 2^shift) 2^exponent, what ops.int_norm_grad takes. (C,); shift, exponent ()."""

    u: Tensor
    v: Tensor
    a: Tensor
    shift: Tensor
    exponent: Tensor


def coefficients(
    inverse: Tensor,
    inverse_exponent: Tensor,
    fraction: Tensor,
    gamma: Tensor,
    gamma_e: Tensor,
    g_e: Tensor,
    sums: tuple | None,
    n: int,
) -> Coefficients:
    """The coefficients of dx for g = q_g 2^g_e, g_e (C,). One integer division for each mean.

    inverse, inverse_exponent    of Statistics; fraction: of Normalized
    sums    (sum q_g, sum q_g k, sum sign(k)), (C,) int64; None where the statistics are constants (buffers)
    """
    if sums is None:
        u = v = torch.zeros_like(inverse)
    else:
        sum_g, sum_gk, sum_sign = sums
        # v = c mean(q_g xhat), u = mean q_g - v mean t; 2^(8 - f) >= 4
        v = divide(L1_FACTOR_FIXED * (sum_gk << (GRADIENT_FRACTION - fraction)), n << L1_FACTOR_BITS)
        u = divide((sum_g << GRADIENT_FRACTION) - v * sum_sign, n)
    factor = gamma.to(torch.int64) * inverse  # 25 bits
    e = inverse_exponent + gamma_e + g_e
    top = e.amax() + 25 - _FACTOR
    a = shift_by(factor, top - e)
    bound = ((127 << GRADIENT_FRACTION) + u.abs() + v.abs()) * a.abs()
    shift = shift_to_fit(bound.amax() >> 23, _BYTE).to(torch.int32)  # 7 bits above 23: |dx| <= 2^30
    return Coefficients(u.to(torch.int32), v.to(torch.int32), a, shift, top - GRADIENT_FRACTION + shift)


_BYTE = IntFormat(8)


def divide(v: Tensor, n: int) -> Tensor:
    """v / n rounded half up, int64.

    >>> divide(torch.tensor([7, 6, -7]), 4).tolist()
    [2, 2, -2]
    """
    return (v + (n >> 1)) // n


def blend(old: Tensor, old_e: Tensor, new: Tensor, new_e: Tensor, weight: int) -> tuple[Tensor, Tensor]:
    """(1 - w) old + w new, w = weight 2^-16; each element has an exponent of its own; 24 bits -> 24 bits.

    What a running mean or variance becomes; widths: 24 + 18 for alignment, 17 for the weight: 59.
    """
    e = torch.maximum(old_e, new_e) - 18
    total = shift_by(old.to(torch.int64), e - old_e) * ((1 << 16) - weight) + shift_by(new, e - new_e) * weight
    m, drop = to_bits(total, 24)
    return m, e - 16 + drop


def running_statistics(
    mean: Tensor, var: Tensor, total: Tensor, spread: Tensor, step: Tensor, n: int, weight: int
) -> tuple[Tensor, Tensor]:
    """(running_mean, running_var), float32, after a batch of n codes with S, A and steps 2^step; weight 2^-16 of it.

    mean <- S / n,  var <- D^2 with D = c A / n^2: each blended with what it was.
    """
    new = divide(total << GRADIENT_FRACTION, n)
    d = divide(L1_FACTOR_FIXED * spread, n * n)  # in 2^-14 steps
    return (
        _blended(mean, new, step - GRADIENT_FRACTION, weight),
        _blended(var, d * d, 2 * (step - L1_FACTOR_BITS), weight),
    )


def _blended(buffer: Tensor, value: Tensor, exponent: Tensor, weight: int) -> Tensor:
    v, drop = to_bits(value, MANTISSA_BITS)
    return to_float(*blend(*mantissas(buffer), v, exponent + drop, weight))


def to_bits(v: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(v 2^-n, n) with the smallest n >= 0 for which |v| < 2^bits; elementwise, half to even; n int32."""
    drop = (_bit_length(v.abs()) - bits).clamp(min=0)
    return right_nearest(v, drop), drop


def _bit_length(v: Tensor) -> Tensor:
    """The number of bits of int64 v >= 0, int32."""
    powers = torch.ones(62, dtype=torch.int64, device=v.device) << torch.arange(62, device=v.device)
    return (v.unsqueeze(-1) >= powers).sum(-1).to(torch.int32)
