"""QTensor, the carrier of quantized values: leaves a quantizer, enters a product, is saved for backward.

Emulated stands in its place for the few quantizers of the comparison whose values have no such form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from .numerics import MAX_EXPONENT, IntFormat, power_of_two

S = TypeVar("S", bound="Scaled")


@dataclass(frozen=True)
class Inside:
    """Exponents inside of codes: those of a token are c 2^(top - e), and at rest they are c and e.

    top    the largest e: fixed by the quantizer's settings, as max_shift is
    block  > 0: a token is that many elements, one behind the other; 0: an index of all axes but 1
    """

    top: int
    block: int = 0


class Scaled:
    """What a QTensor and its packed form have in common: a scale and a shift that broadcast to a shape."""

    scale: Tensor
    format: IntFormat
    shift: Tensor | None
    max_shift: int
    inside: Inside | None

    @property
    def code_bits(self) -> int:
        """Bits of a code without the exponent that is inside of it."""
        return self.format.bits - (self.inside.top if self.inside else 0)

    def varies_along(self, axis: int) -> tuple[bool, bool]:
        """(does the scale, does the shift differ along this axis?), judged by shape alone."""
        return self.scale.shape[axis] != 1, self.shift is not None and self.shift.shape[axis] != 1

    def fold_shift(self: S, axis: int) -> S:
        """Move a shift that runs along any axis but `axis` into the float scale: exact, it is a power of two."""
        if self.shift is None or self.shift.shape[axis] != 1:
            return self
        return replace(self, scale=self.effective_scale(), shift=None, max_shift=0)  # type: ignore[type-var]

    def effective_scale(self) -> Tensor:
        """scale * 2^-shift, float32."""
        if self.shift is None:
            return self.scale
        return self.scale * power_of_two(-self.shift.to(torch.int32))


@dataclass(frozen=True)
class QTensor(Scaled):
    """real = codes * scale * 2^-shift.

    codes  int8 (uint8 when the format is unsigned), any shape, any dense memory format
    scale  float32, broadcastable to codes; 0 for a zero tensor, NaN where the source held NaN or Inf
    shift  uint8, broadcastable to codes and longer than 1 along one axis only, or None; 0 <= shift <= max_shift
    max_shift  the largest exponent that the quantizer may choose: fixed by its settings, never by the data
    inside  exponents inside of the codes, or None. A shift beside those of tokens is along axis 1, beside those of
            blocks along axis 0. Blocks: codes are contiguous, a number of them

    >>> q = QTensor(torch.tensor([[1, -7], [3, 0]], dtype=torch.int8), torch.tensor([[0.5]]), IntFormat(4))
    >>> q.dequantize().tolist()
    [[0.5, -3.5], [1.5, 0.0]]
    """

    codes: Tensor
    scale: Tensor
    format: IntFormat
    shift: Tensor | None = None
    max_shift: int = 0
    inside: Inside | None = None

    def __post_init__(self) -> None:
        c, s = self.codes, self.scale
        if c.dtype != self.format.dtype:
            raise TypeError(f"codes of format {self.format} are {self.format.dtype}, not {c.dtype}")
        if s.dtype != torch.float32 or not _broadcasts(s, c):
            raise ValueError(
                f"scale must be float32 and broadcast to codes {tuple(c.shape)}, not {s.dtype} {tuple(s.shape)}"
            )
        if self.inside is not None:
            self._check(self.inside)
        if not 0 <= self.max_shift <= MAX_EXPONENT:
            raise ValueError(f"max_shift must be 0..{MAX_EXPONENT}, not {self.max_shift}")
        if self.shift is None:
            if self.max_shift:
                raise ValueError("max_shift without shift")
            return
        e = self.shift
        if e.dtype != torch.uint8 or not _broadcasts(e, c) or sum(n != 1 for n in e.shape) > 1:
            raise ValueError(
                f"shift must be uint8 along one axis of codes {tuple(c.shape)}, not {e.dtype} {tuple(e.shape)}"
            )

    @property
    def shape(self) -> torch.Size:
        """Of the codes."""
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        """Of the codes."""
        return self.codes.device

    def _check(self, inside: Inside) -> None:
        c, most = self.codes, self.format.bits - 1
        if not 1 <= inside.top <= most:
            raise ValueError(f"exponents inside of {self.format} codes are at most 1..{most}, not {inside.top}")
        axis = 0 if inside.block else 1
        if self.shift is not None and self.shift.numel() != self.shift.shape[axis]:
            raise ValueError(
                f"beside exponents of {'blocks' if inside.block else 'tokens'} inside of codes a shift is along axis "
                f"{axis}, not {tuple(self.shift.shape)}"
            )
        if inside.block < 0 or (inside.block and (not c.is_contiguous() or c.numel() % inside.block)):
            raise ValueError(
                f"blocks of {inside.block} need contiguous codes that are a number of them: not {tuple(c.shape)} with "
                f"strides {c.stride()}"
            )

    @property
    def T(self) -> QTensor:
        """The transposed matrix (last two axes), as views."""
        shift = None if self.shift is None else self.shift.mT
        return replace(self, codes=self.codes.mT, scale=self.scale.mT, shift=shift, inside=None)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """codes * (scale * 2^-shift), computed in float32 (float64 when asked for) and returned as dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return (self.codes.to(wide) * self.effective_scale().to(wide)).to(dtype)


@dataclass(frozen=True)
class Emulated:
    """What a quantizer made that is not codes * scale * 2^-shift: there is no integer product of it.

    values  float32, what the codes stand for; format: as many bits as each code has
    Products of it run on the values, in floats, and are recorded as "emulated".
    """

    values: Tensor
    format: IntFormat

    @property
    def shape(self) -> torch.Size:
        """Of the values."""
        return self.values.shape

    @property
    def device(self) -> torch.device:
        """Of the values."""
        return self.values.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values as dtype."""
        return self.values.to(dtype)


def _broadcasts(t: Tensor, to: Tensor) -> bool:
    return t.ndim == to.ndim and all(n in (1, m) for n, m in zip(t.shape, to.shape, strict=True))


@dataclass(frozen=True)
class PackedQTensor(Scaled):
    """A QTensor at rest: its codes packed densely in memory order, ceil(numel * bits / 8) bytes. Made by ops.pack.

    places  where there are exponents inside: how far each token's codes were shifted right, so that code_bits are left;
            packed as ops.pack_tokens does
    """

    packed: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    scale: Tensor
    format: IntFormat
    shift: Tensor | None = None
    max_shift: int = 0
    inside: Inside | None = None
    places: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scale, shift and places together."""
        return sum(t.nbytes for t in (self.packed, self.scale, self.shift, self.places) if t is not None)


def is_dense(x: Tensor) -> bool:
    """Is every element of one block of memory an element of x, once?"""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(x.shape, x.stride()) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True
