"""AbsMax and PerChannel: the scale is the largest magnitude of a tensor, or of each index of an axis, over Q."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..numerics import clipped
from ..qtensor import Emulated, QTensor
from .base import Quantizer, and_clip, axis_of_ranges, channel_ranges, check_clip


@dataclass(frozen=True)
class AbsMax(Quantizer):
    """One scale for the tensor: s = clip R / Q, with R = max |x|. What lies beyond clip R gets the last code.

    A few values of a bell-shaped tensor lie far out: with clip < 1 the steps between all others are finer for it. It is
    the cheap form of MSEClip, which looks for the best clip in each tensor.

    >>> import torch
    >>> AbsMax(4)(torch.tensor([[1.0, -7.0, 2.6]])).codes.tolist()
    [[1, -7, 3]]
    >>> AbsMax(4, clip=0.5)(torch.tensor([[1.0, -7.0, 2.6]])).codes.tolist()
    [[2, -7, 5]]
    """

    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.clip)

    def represent(self, x: Tensor, stream: Tensor | None) -> QTensor | Emulated:
        codes, scale = ops.absmax_codes(x, self.clip, stream, self.bits, self.signed)  # the same in one call
        return QTensor(codes, scale, self.format)

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        return self.ranges_of(ops.amax(x, ops.WHOLE))

    @property
    def range_axis(self) -> int:
        return ops.WHOLE

    def ranges_of(self, r_k: Tensor) -> tuple[Tensor, None, int]:
        return clipped(r_k, self.clip), None, 0

    def details(self) -> str:
        return and_clip("", self.clip)


@dataclass(frozen=True)
class PerChannel(Quantizer):
    """One free scale for each index of an axis: s_k = clip r_k / Q. With axis 0 on a gradient: PSQ, one a sample.

    What lies beyond clip r_k gets the last code.

    Source: PSQ is from Chen et al., "A statistical framework for low-bitwidth training" (StatQuant), arXiv 2010.14298.
    Along an axis that a product reduces there is no integer product: it is then emulated, and reported as such.
    """

    axis: int = 0
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.clip)

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        return self.ranges_of(channel_ranges(x, self.axis))

    @property
    def range_axis(self) -> int | None:
        return axis_of_ranges(self.axis)

    def ranges_of(self, r_k: Tensor) -> tuple[Tensor, None, int]:
        return clipped(r_k, self.clip), None, 0

    def details(self) -> str:
        return and_clip(f"axis {self.axis}", self.clip)


def by_axis(bits: int, axis: int | None, rounding: str, clip: float = 1.0) -> AbsMax | PerChannel:
    """PerChannel of that axis, AbsMax for None."""
    # Wanted in every call of a norm, so made once; but a tracer looks through a cache, and warns of it.
    make = _made if torch.compiler.is_compiling() else _made_once
    return make(bits, axis, rounding, clip)


def _made(bits: int, axis: int | None, rounding: str, clip: float) -> AbsMax | PerChannel:
    if axis is None:
        return AbsMax(bits, rounding=rounding, clip=clip)
    return PerChannel(bits, rounding=rounding, axis=axis, clip=clip)


_made_once = functools.lru_cache(256)(_made)
