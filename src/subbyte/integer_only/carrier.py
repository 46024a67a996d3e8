"""What travels between the layers of an integer-only network: 32-bit integers with one power of two for the tensor.

IntTensor goes from node to node, forward and backward; Operand is what it becomes on its way into a product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import integer, ops
from ..numerics import IntFormat
from ..ops.quantize import pack_codes, unpack_codes
from ..qtensor import QTensor

LIMIT = 1 << ops.SUM_BITS
"""|codes| of an IntTensor stay at or below this, so that rounding shifts and the sum of two stay in 32 bits."""

CLIPPED_BITS = 4
"""Weights and activations of so few bits may be clipped where that makes the smaller error; gradients never are."""

_SAMPLE = 1 << 16  # elements that decide
_CANDIDATES = 4  # scales to choose from: the range, a half, a quarter, an eighth of it
_WORSE = (3, 2)  # a remembered scale stays while its error is at most 3/2 of the smallest


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


@dataclass(frozen=True)
class Operand:
    """An operand of an integer product: real = codes 2^(exponent - shift); shift as in QTensor, along one axis."""

    codes: Tensor
    exponent: Tensor
    format: IntFormat
    shift: Tensor | None = None
    max_shift: int = 0

    def flat(self) -> tuple:
        """The five arguments of an op."""
        return self.codes, self.shift, self.format.bits, self.format.signed, self.max_shift

    def pack(self) -> Operand:
        """With dense codes in their place (1-D, uint8): what is kept for backward."""
        return self._replaced(pack_codes(self.codes.flatten(), self.format.bits))

    def unpack(self, shape: torch.Size) -> Operand:
        """The inverse of pack."""
        flat = unpack_codes(self.codes, shape.numel(), self.format.bits, self.format.signed)
        return self._replaced(flat.view(shape))

    def as_qtensor(self) -> QTensor:
        """With a float scale: for the statistics of an observed layer, and for nothing that is computed with."""
        one = torch.ones([1] * self.codes.ndim, dtype=torch.int32, device=self.codes.device)
        scale = integer.to_float(one, self.exponent)
        return QTensor(self.codes, scale, self.format, self.shift, self.max_shift)

    def _replaced(self, codes: Tensor) -> Operand:
        return Operand(codes, self.exponent, self.format, self.shift, self.max_shift)


@dataclass(frozen=True)
class Memory:
    """The exponent with which a layer quantizes its input: learned in training, used in eval mode.

    Were it chosen anew for each batch, two batches might be clipped in different places. The gain behind the layer
    differs then; batch statistics take that out, but the running averages of both fit neither.

    exponent   int32 (), a buffer of the layer, NOTHING at first; replaced in training where it is no longer good
    training   is the layer in train mode?
    """

    NOTHING: ClassVar[int] = -integer.NOT_FINITE
    exponent: Tensor
    training: bool

    @staticmethod
    def empty(device: torch.device | None = None) -> Tensor:
        """A buffer that remembers nothing."""
        return torch.full((), Memory.NOTHING, dtype=torch.int32, device=device)


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


def quantize(
    t: IntTensor,
    fmt: IntFormat,
    stream: Tensor | None = None,
    groups: int = 1,
    memory: Memory | None = None,
    halvings: int = 0,
) -> Operand:
    """Codes of the format with the base scale 2^ceil(log2(R / Q)); stream: round stochastically by it.

    Where rounding is to nearest and bits are few (CLIPPED_BITS) it is that or the 2nd, 4th or 8th part of it, whichever
    has the smallest squared error: of the few codes of a bell-shaped tensor many would otherwise wait for its outliers.
    With a memory, that of an earlier batch stays while it serves, see `remembered`.
    groups > 1: ShiftQuant. Channel k of axis 1 has the scale 2^(base - e(k)), e(k) the largest exponent below `groups`
    for which nothing in the channel is clipped: a comparison of integers. halvings: R 2^-halvings is taken for R, in
    every channel; what lies beyond is clipped.
    """
    largest = ops.int_amax(t.codes, 1 if groups > 1 else ops.WHOLE)
    needed = (ops.int_shift_to_fit(largest, fmt.bits, fmt.signed) - halvings).clamp(min=0)
    base = needed.amax().view([1] * needed.ndim) if needed.numel() else needed.new_zeros([1] * needed.ndim)
    if stream is None and fmt.bits <= CLIPPED_BITS and needed.numel() == 1:
        every = _every(t.codes.numel())
        errors = ops.int_squared_errors(t.codes, every, needed, largest, _CANDIDATES, fmt.bits, fmt.signed)
        if memory is None:
            base = (needed - errors.argmin().to(torch.int32)).clamp(min=0)
        else:
            base = remembered(memory, errors, needed, largest, t.exponent)
        needed = base
    e = (base - needed).clamp(max=groups - 1)
    codes = ops.int_quantize(t.codes, base - e, stream, fmt.bits, fmt.signed)
    shift = e.to(torch.uint8) if groups > 1 else None
    return Operand(codes, t.exponent + base.view(()), fmt, shift, groups - 1)


def _every(n: int) -> int:
    """k: of n elements every k-th decides."""
    k = max(1, -(-n // _SAMPLE))
    while math.gcd(k, n) > 1:  # or it would see the same few pixels of every plane
        k += 1
    return k


def remembered(memory: Memory, errors: Tensor, top: Tensor, largest: Tensor, exponent: Tensor) -> Tensor:
    """The shift that takes codes to the remembered exponent, as top; of several as good ones the largest.

    In training the exponent of least error takes its place where there is none yet, where it is not among the four
    candidates of this batch, or where its error is more than 3/2 of the smallest. In eval mode it stays.
    """
    best = errors.argmin().to(torch.int32)
    known = memory.exponent > Memory.NOTHING
    kept = memory.exponent - exponent.view_as(top)  # as a shift of these codes
    if not memory.training:
        return torch.where(known, kept.clamp(0, ops.SUM_BITS), (top - best).clamp(min=0))
    below = top - kept
    fits = (below >= 0) & (below < _CANDIDATES) & (kept >= 0)
    error = errors[below.flatten().clamp(0, _CANDIDATES - 1)]
    stays = known & fits & (_WORSE[1] * error <= _WORSE[0] * errors.amin()).view_as(top)
    shift = torch.where(stays, kept, (top - best).clamp(min=0))
    says = (largest > 0) & (exponent < integer.NOT_FINITE >> 1)  # zeros and NaN have no scale
    memory.exponent.copy_(torch.where(says, exponent + shift, memory.exponent).view(()))
    return shift


def quantize_channels(t: IntTensor, fmt: IntFormat, stream: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(codes, exponents (C,)): each channel of axis 1 has a scale of its own, where no sum mixes channels."""
    shift = ops.int_shift_to_fit(ops.int_amax(t.codes, 1), fmt.bits, fmt.signed)
    codes = ops.int_quantize(t.codes, shift, stream, fmt.bits, fmt.signed)
    return codes, t.exponent + shift.flatten()


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
