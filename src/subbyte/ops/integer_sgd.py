"""One update of a Parameter by IntegerSGD (optim.py), without a float operation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import integer
from ..numerics import random_bits16
from .dispatch import op

WEIGHT_BITS = 16
MOMENTUM_BITS = 16
FACTOR_BITS = 8
"""Fractional bits of the momentum factor."""

SUM_BITS = 50
EMPTY = -(1 << 8)
"""The exponent of a momentum that is 0."""


def _sgd_fake(w, g, momentum, momentum_e, stream, rate, factor, decay, nesterov):
    return (
        w.new_empty(w.shape),
        momentum.new_empty(w.shape),
        momentum_e.new_empty(()),
    )


@op(
    "(Tensor w, Tensor g, Tensor momentum, Tensor momentum_e, Tensor stream, int? rate, int factor, int? decay, "
    "bool nesterov) -> (Tensor, Tensor, Tensor)",
    _sgd_fake,
)
def int_sgd(w, g, momentum, momentum_e, stream, rate, factor, decay, nesterov) -> tuple[Tensor, Tensor, Tensor]:
    """(w, momentum, its exponent) after one step of

    d = g + 2^-decay w;  v = factor 2^-FACTOR_BITS momentum + d;  u = nesterov ? factor 2^-FACTOR_BITS v + d : v
    w - 2^-rate u

    w, g             float32 of one shape, 1 element or more
    momentum         int16 of that shape, times 2^momentum_e, int32 ()
    stream           int64 (): random numbers, the first w.numel() for v, as many for w
    rate, decay      None for 0
    v and w are rounded to MOMENTUM_BITS and WEIGHT_BITS; sums have SUM_BITS. All contiguous.
    """
    r16 = random_bits16(stream, 2 * w.numel()).view(2, *w.shape)
    wide_w, d = _Number.of(w), _Number.of(g)
    if decay is not None:
        d = d + wide_w.times_power(-decay)
    v = (d + _Number(momentum.to(torch.int64), momentum_e, MOMENTUM_BITS).times(factor)).rounded(MOMENTUM_BITS, r16[0])
    u = d + v.times(factor) if nesterov else v
    if rate is not None:
        wide_w = wide_w + _Number(-u.codes, u.exponent, u.bits).times_power(-rate)
    new = wide_w.rounded(WEIGHT_BITS, r16[1])
    return integer.to_float(new.codes, new.exponent).contiguous(), v.codes.to(torch.int16).contiguous(), v.exponent


@dataclass(frozen=True)
class _Number:
    """codes 2^exponent, int64 and int32 (); bits: signed width that holds every code."""

    codes: Tensor
    exponent: Tensor
    bits: int

    @staticmethod
    def of(x: Tensor) -> _Number:
        codes, e = integer.from_float(x)
        return _Number(codes.to(torch.int64), e, integer.MANTISSA_BITS + 1)

    def times_power(self, exponent: int) -> _Number:
        return _Number(self.codes, self.exponent + exponent, self.bits)

    def times(self, factor: int) -> _Number:
        """factor 2^-FACTOR_BITS times this."""
        return _Number(self.codes * factor, self.exponent - FACTOR_BITS, self.bits + FACTOR_BITS)

    def __add__(self, other: _Number) -> _Number:
        """The sum in SUM_BITS: what lies below the lowest of them is rounded off."""
        top = torch.maximum(self.exponent + self.bits, other.exponent + other.bits)
        e = top - (SUM_BITS - 1)
        codes = integer.shift_by(self.codes, e - self.exponent) + integer.shift_by(other.codes, e - other.exponent)
        return _Number(codes, e, SUM_BITS)

    def rounded(self, bits: int, r16: Tensor) -> _Number:
        """Integers of `bits` bits with the finest exponent that holds the largest one, stochastically."""
        largest = self.codes.abs().amax()
        drop = integer.shift_to_bits(largest, bits)
        top = (1 << (bits - 1)) - 1
        codes = integer.right_stochastic(self.codes, drop, r16).clamp(-top, top)
        e = self.exponent + drop.to(torch.int32)
        # Zeros have no size: without this the next small number would vanish beside them.
        empty = (largest == 0) & (e < integer.NOT_FINITE >> 1)
        return _Number(codes, torch.where(empty, torch.full_like(e, EMPTY), e), bits)
