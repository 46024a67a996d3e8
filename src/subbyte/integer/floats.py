"""Where floats and integers meet: float32 taken apart into mantissa and exponent, and put together, by its bits alone.

Nothing here multiplies, adds or rounds a float: a float32 is viewed as the integer of its bits. So the boundary of the
integer-only mode (an image that enters, logits that leave, a Parameter) costs no float arithmetic either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .shifts import right_nearest, shift_to_bits

MANTISSA_BITS = 24
"""Significant bits of a float32, and of every integer that is converted to one: so that the conversion is exact."""

NOT_FINITE = 1 << 20
"""The exponent of a tensor with NaN or Inf in it. Exponents add up and the larger one wins, so that it survives."""

_BIAS = 150  # a float32 is mantissa * 2^(exponent bits - 150), the mantissa a 24-bit integer


def mantissas(x: Tensor) -> tuple[Tensor, Tensor]:
    """(m, e) with x = m 2^e for each element, exactly: m int32 of 24 bits and a sign, e int32. x: any float dtype.

    Other dtypes become float32 first. NaN and Inf get e = NOT_FINITE.

    >>> m, e = mantissas(torch.tensor([1.0, -0.75, 0.0]))
    >>> (m.double() * 2.0 ** e).tolist()
    [1.0, -0.75, 0.0]
    """
    bits = x.detach().to(torch.float32).view(torch.int32)
    raw = (bits >> 23) & 0xFF
    m = torch.where(raw > 0, (bits & 0x7FFFFF) | (1 << 23), bits & 0x7FFFFF)
    e = torch.where(raw == 0xFF, torch.full_like(raw, NOT_FINITE), raw.clamp(min=1) - _BIAS)
    return torch.where(bits < 0, -m, m), e


def from_float(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, exponent): x = codes 2^exponent with one exponent for the tensor; int32, |codes| < 2^24, and int32 ().

    Exact for what lies on a grid of 24 bits below the largest |x| (a weight of IntegerSGD does); the rest is rounded
    half to even to that grid.

    >>> codes, exponent = from_float(torch.tensor([0.5, -3.0, 0.0]))
    >>> codes.tolist(), exponent.item()
    ([2097152, -12582912, 0], -22)
    """
    m, e = mantissas(x)
    if x.numel() == 0:
        return m, torch.full((), 1 - _BIAS, dtype=torch.int32, device=x.device)
    top = e.amax()
    return right_nearest(m, (top - e).clamp(max=31 - 1)), top


def to_float(codes: Tensor, exponent: Tensor) -> Tensor:
    """codes 2^exponent as float32, exact: |codes| <= 2^24, any integer dtype; exponent int32, broadcasts to codes.

    Below 2^-126 it is 0, above the largest float32 Inf, and NaN where the exponent says NOT_FINITE.

    >>> to_float(torch.tensor([3, -1, 0]), torch.tensor(-1, dtype=torch.int32)).tolist()
    [1.5, -0.5, 0.0]
    """
    bits = codes.to(torch.float32).view(torch.int32)  # an integer of 24 bits becomes a float without rounding
    raw = ((bits >> 23) & 0xFF) + exponent.clamp(-(1 << 10), 1 << 10)
    sign = bits & ~0x7FFFFFFF
    moved = sign | (raw << 23) | (bits & 0x7FFFFF)
    moved = torch.where(raw >= 0xFF, sign | (0xFF << 23), moved)
    moved = torch.where((bits == 0) | (raw <= 0), sign, moved)
    return torch.where(exponent > NOT_FINITE >> 1, torch.full_like(moved, 0x7FC00000), moved).view(torch.float32)


def round_to_float(v: Tensor, exponent: Tensor) -> Tensor:
    """v 2^exponent with v rounded half to even to 24 bits below the largest |v|, then exact. v int64, |v| < 2^61.

    What a sum becomes that leaves the integers: a gradient, or the logits.
    """
    if v.numel() == 0:
        return v.to(torch.float32)
    v = v.to(torch.int64)
    drop = shift_to_bits(v.abs().amax(), MANTISSA_BITS + 1)
    return to_float(right_nearest(v, drop), exponent + drop.to(torch.int32))
