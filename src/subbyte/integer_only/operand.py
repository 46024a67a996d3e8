"""What an IntTensor becomes on its way into a product, or into a norm: few bits, with scales that are powers of two."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .. import integer, ops
from ..numerics import IntFormat, rows_of_blocks
from ..ops.quantize import pack_codes, unpack_codes
from ..qtensor import Inside, QTensor
from ..quantizers import AbsMax, BlockShiftQuant, Quantizer, ShiftQuant, TokenShiftQuant
from .carrier import IntTensor

CLIPPED_BITS = 4
"""Weights and activations of so few bits may be clipped where that makes the smaller error; gradients never are."""

_SAMPLE = 1 << 16  # elements that decide
_CANDIDATES = 4  # scales to choose from: the range, a half, a quarter, an eighth of it
_WORSE = (3, 2)  # a remembered scale stays while its error is at most 3/2 of the smallest


@dataclass(frozen=True)
class Form:
    """How the scales of an operand lie: what integer-only takes of a Quantizer.

    format    of its codes
    channels  exponents 0..channels - 1 of the channels of axis 1, beside the codes: ShiftQuant
    tokens    exponents 0..tokens - 1 of the tokens, inside of the codes: TokenShiftQuant
    block     > 0: a token is so many elements in row-major order: BlockShiftQuant; 0: an index of all axes but 1
    halvings  R 2^-halvings is taken for R: a clip
    """

    format: IntFormat
    channels: int = 1
    tokens: int = 1
    block: int = 0
    halvings: int = 0

    @staticmethod
    def of(quantizer: Quantizer) -> Form:
        """ValueError with what is in the way, where integer-only has no such form."""
        form = Form(quantizer.format)
        if isinstance(quantizer, ShiftQuant):
            if quantizer.axis != 1 or quantizer.exponents != "consecutive":
                raise ValueError("its groups are not those of consecutive exponents along axis 1")
            form = replace(form, channels=quantizer.groups)
        elif isinstance(quantizer, (TokenShiftQuant, BlockShiftQuant)):
            if quantizer.channel_groups > 1:
                raise ValueError("it has groups of channels, too")
            form = replace(form, tokens=quantizer.groups, block=getattr(quantizer, "block", 0))
        elif not isinstance(quantizer, AbsMax):
            raise ValueError("it is none of AbsMax, ShiftQuant, TokenShiftQuant and BlockShiftQuant")
        fraction, exponent = math.frexp(quantizer.clip)
        if fraction != 0.5:
            raise ValueError("it clips at no power of two")
        return replace(form, halvings=1 - exponent)

    @property
    def top(self) -> int:
        """The largest exponent inside of the codes."""
        return self.tokens - 1


@dataclass(frozen=True)
class Operand:
    """An operand of an integer product: real = codes 2^(exponent - shift); shift and inside are those of a QTensor.

    Blocks need not fill the last row: `inside` says how the codes are packed, and nothing of how they are multiplied.
    """

    codes: Tensor
    exponent: Tensor
    format: IntFormat
    shift: Tensor | None = None
    max_shift: int = 0
    inside: Inside | None = None

    def flat(self) -> tuple:
        """The five arguments of an op."""
        return self.codes, self.shift, self.format.bits, self.format.signed, self.max_shift

    def pack(self) -> tuple[Tensor, ...]:
        """Dense codes and, where tokens have exponents, dense exponents (1-D, uint8): what is kept for backward."""
        if self.inside is None:
            return (pack_codes(self.codes.flatten(), self.format.bits),)
        top = self.inside.top
        return ops.pack_tokens(_rows(self.codes, self.inside.block), self.format.bits - top, top)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size) -> Operand:
        """This operand with the codes of this shape that pack made `packed` of; its own may be missing."""
        bits, signed = self.format.bits, self.format.signed
        if self.inside is None:
            return replace(self, codes=unpack_codes(*packed, shape.numel(), bits, signed).view(shape))
        block, top = self.inside.block, self.inside.top
        size = [-(-shape.numel() // block), block] if block else list(shape)
        stride = [math.prod(size[i + 1 :]) for i in range(len(size))]
        codes = ops.unpack_tokens(*packed, size, stride, bits - top, signed, top)
        return replace(self, codes=codes.flatten()[: shape.numel()].view(shape))

    def as_qtensor(self) -> QTensor:
        """With a float scale: for the statistics of an observed layer, and for nothing that is computed with."""
        one = torch.ones([1] * self.codes.ndim, dtype=torch.int32, device=self.codes.device)
        scale = integer.to_float(one, self.exponent)
        return QTensor(self.codes, scale, self.format, self.shift, self.max_shift)


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


def quantize(t: IntTensor, form: Form, stream: Tensor | None = None, memory: Memory | None = None) -> Operand:
    """Codes of the form with the base scale 2^ceil(log2(R / Q)); stream: round stochastically by it.

    Where rounding is to nearest and bits are few (CLIPPED_BITS) the base is that or the 2nd, 4th or 8th part of it,
    whichever has the smallest squared error: of the few codes of a bell-shaped tensor many would otherwise wait for its
    outliers. With a memory, that of an earlier batch stays while it serves, see `remembered`.
    The scale of a channel or a token is 2^(base - e), e the largest exponent that the form has for which nothing in it
    is clipped: a comparison of integers. Those of channels are the shift; those of tokens go into the codes, which
    become as many bits wider. What lies beyond R 2^-halvings is clipped.
    """
    return (_quantize_tokens if form.top else _quantize_channels)(t, form, stream, memory)


def _quantize_channels(t: IntTensor, form: Form, stream: Tensor | None, memory: Memory | None) -> Operand:
    fmt = form.format
    largest = ops.int_amax(t.codes, 1 if form.channels > 1 else ops.WHOLE)
    needed = (ops.int_shift_to_fit(largest, fmt.bits, fmt.signed) - form.halvings).clamp(min=0)
    base = needed.amax().view([1] * needed.ndim) if needed.numel() else needed.new_zeros([1] * needed.ndim)
    if needed.numel() == 1:
        needed = base = _chosen(t.codes, t.exponent, base, largest, form, stream, memory)
    e = (base - needed).clamp(max=form.channels - 1)
    codes = ops.int_quantize(t.codes, base - e, stream, fmt.bits, fmt.signed)
    shift = e.to(torch.uint8) if form.channels > 1 else None
    return Operand(codes, t.exponent + base.view(()), fmt, shift, form.channels - 1)


def _quantize_tokens(t: IntTensor, form: Form, stream: Tensor | None, memory: Memory | None) -> Operand:
    fmt, x = form.format, _rows(t.codes, form.block)
    needed, largest = ops.int_token_shifts(x, fmt.bits, fmt.signed)
    most = needed.amax() if needed.numel() else needed.new_zeros(())
    base = (most.to(torch.int32) - form.halvings).clamp(min=0).view([1] * x.ndim)
    base = _chosen(x, t.exponent, base, largest, form, stream, memory, needed)
    codes = ops.int_quantize_tokens(x, needed, base, stream, fmt.bits, fmt.signed, form.top)
    if form.block:
        codes = codes.flatten()[: t.codes.numel()].view(t.shape)
    wide, inside = IntFormat(fmt.bits + form.top, fmt.signed), Inside(form.top, form.block)
    return Operand(codes, t.exponent + base.view(()) - form.top, wide, inside=inside)


def _rows(codes: Tensor, block: int) -> Tensor:
    """A matrix with a row for each block; without a block the codes as they are."""
    return rows_of_blocks(codes, block) if block else codes


def _chosen(
    codes: Tensor,
    exponent: Tensor,
    base: Tensor,
    largest: Tensor,
    form: Form,
    stream: Tensor | None,
    memory: Memory | None,
    needed: Tensor | None = None,
) -> Tensor:
    """The base of least squared error, of `base` and those below, where few bits are rounded to nearest."""
    fmt = form.format
    if stream is not None or fmt.bits > CLIPPED_BITS:
        return base
    of_tokens = (needed, form.top, _CANDIDATES, fmt.bits, fmt.signed)
    errors = ops.int_squared_errors(codes, _every(codes.numel()), base, largest, *of_tokens)
    if memory is not None:
        return remembered(memory, errors, base, largest, exponent)
    return (base - errors.argmin().to(torch.int32)).clamp(min=0)


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
