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


class Scaled:
    """What a QTensor and its packed form have in common: a scale and a shift that broadcast to a shape."""

    scale: Tensor
    shift: Tensor | None
    max_shift: int

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
    token_top  the same of exponents inside the codes, one for each token (an index of all axes but 1): a token's codes
               are c 2^(token_top - e), and pack keeps c and e
    block  > 0: a token is that many elements, one behind the other; codes are contiguous then, and a number of blocks

    >>> q = QTensor(torch.tensor([[1, -7], [3, 0]], dtype=torch.int8), torch.tensor([[0.5]]), IntFormat(4))
    >>> q.dequantize().tolist()
    [[0.5, -3.5], [1.5, 0.0]]
    """

    codes: Tensor
    scale: Tensor
    format: IntFormat
    shift: Tensor | None = None
    max_shift: int = 0
    token_top: int = 0
    block: int = 0

    def __post_init__(self) -> None:
        c, s = self.codes, self.scale
        if c.dtype != self.format.dtype:
            raise TypeError(f"codes of format {self.format} are {self.format.dtype}, not {c.dtype}")
        if s.dtype != torch.float32 or not _broadcasts(s, c):
            raise ValueError(
                f"scale must be float32 and broadcast to codes {tuple(c.shape)}, not {s.dtype} {tuple(s.shape)}"
            )
        if not 0 <= self.token_top < self.format.bits or (self.token_top and self.shift is not None):
            raise ValueError(f"token_top must be 0..{self.format.bits - 1}, and 0 beside a shift, not {self.token_top}")
        if self.block and (not self.token_top or not c.is_contiguous() or c.numel() % self.block):
            raise ValueError(
                f"blocks of {self.block} need a token_top, and contiguous codes that are a number of them: not "
                f"{self.token_top}, {tuple(c.shape)} with strides {c.stride()}"
            )
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

    @property
    def T(self) -> QTensor:
        """The transposed matrix (last two axes), as views."""
        shift = None if self.shift is None else self.shift.mT
        return replace(self, codes=self.codes.mT, scale=self.scale.mT, shift=shift, token_top=0, block=0)

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

    places  of codes with exponents for tokens inside (token_top > 0): how far each token's were shifted right, so that
            bits - token_top are left; packed as ops.pack_tokens does. block: QTensor's
    """

    packed: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    scale: Tensor
    format: IntFormat
    shift: Tensor | None = None
    max_shift: int = 0
    places: Tensor | None = None
    token_top: int = 0
    block: int = 0

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
