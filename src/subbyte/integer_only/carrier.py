"""What travels between the layers of an integer-only network: 32-bit integers with one power of two for the tensor.

IntTensor goes from node to node, forward and backward; operand.py has what it becomes on its way into a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import integer, ops

LIMIT = 1 << ops.SUM_BITS
"""|codes| of an IntTensor stay at or below this, so that rounding shifts and the sum of two stay in 32 bits."""


@dataclass(frozen=True)
class IntTensor:
    """real = codes 2^exponent.

    codes     int32, contiguous
    exponent  int32 (), on the same device: it depends on the data, and the host never reads it
    bound     |codes| <= bound <= LIMIT, known from widths alone
    """

    codes: Tensor
    exponent: Tensor
    bound: int

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def with_codes(self, codes: Tensor) -> IntTensor:
        """The same exponent and bound."""
        return IntTensor(codes.contiguous(), self.exponent, self.bound)


def from_float(x: Tensor) -> IntTensor:
    """A float tensor as 24-bit integers: the image that enters, the gradient of the loss, a Parameter."""
    codes, exponent = ops.int_from_float(x.detach())
    return IntTensor(codes, exponent, (1 << integer.MANTISSA_BITS) - 1)


def to_float(t: IntTensor) -> Tensor:
    """The tensor as float32, rounded to 24 bits below its largest element: the logits."""
    return ops.int_to_float(t.codes, t.exponent)


def carry(sums: Tensor, exponent: Tensor, bound: int) -> IntTensor:
    """Sums of a product, int32 or int64, as an IntTensor: those that may exceed LIMIT lose the bits that they must."""
    drop = max(0, (bound - 1).bit_length() - ops.SUM_BITS)
    if drop == 0:
        return IntTensor(sums.to(torch.int32), exponent, bound)
    codes = integer.right_nearest(sums.to(torch.int64), torch.full((), drop, device=sums.device)).to(torch.int32)
    return IntTensor(codes, exponent + drop, min(LIMIT, (bound >> drop) + 1))


def add(a: IntTensor, b: IntTensor) -> IntTensor:
    """a + b, broadcasting, on the finest power of two for which neither can exceed half of LIMIT."""
    half = LIMIT // 2
    room_a, room_b = _room(a.bound, half), _room(b.bound, half)
    e = torch.maximum(a.exponent - room_a, b.exponent - room_b)
    codes = ops.int_add(a.codes, e - a.exponent, room_a, b.codes, e - b.exponent, room_b)
    return IntTensor(codes, e, LIMIT)


def _room(bound: int, limit: int) -> int:
    """The largest r with bound 2^r <= limit; negative where bound exceeds it."""
    return limit.bit_length() - 1 - (bound - 1).bit_length() if bound > 1 else limit.bit_length() - 1


def unless_finite(source: Tensor, exponent: Tensor) -> Tensor:
    """exponent, or NOT_FINITE where the tensor that it comes from has it: where the source's own scale cancels."""
    lost = source > integer.NOT_FINITE >> 1
    return torch.where(lost, torch.full_like(exponent, integer.NOT_FINITE), exponent)


def scale(t: IntTensor, factor: int, bits: int) -> IntTensor:
    """t factor 2^-bits, 0 <= factor < 2^16: a mean is a sum times a reciprocal. One 47-bit product, rounded once."""
    product = t.codes.to(torch.int64) * factor
    return carry(product, t.exponent - bits, t.bound * max(factor, 1))


def reciprocal(n: int) -> tuple[int, int]:
    """(factor, bits) with factor 2^-bits = 1 / n to 15 bits, exactly where n is a power of two.

    >>> reciprocal(49), reciprocal(64)
    ((21400, 20), (16384, 20))
    """
    bits = 14 + (n - 1).bit_length()
    return ((1 << bits) + n // 2) // n, bits
