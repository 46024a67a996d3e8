"""absmax_codes, shift_codes: floats to codes by a range of their own, the whole of a quantizer in one call.

Each equals, bit for bit, the ops that its body names. They are ops for speed alone: what stands between those costs
more than a pass over a small tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat
from .dispatch import op, registered
from .quantize import WHOLE, _amax_shape


def _scaled_fake(x, bits, signed):
    return torch.empty_like(x, dtype=IntFormat(bits, signed).dtype), x.new_empty([1] * x.ndim, dtype=torch.float32)


@op(
    "(Tensor x, float clip, Tensor? stream, int bits, bool signed) -> (Tensor, Tensor)",
    lambda x, clip, stream, bits, signed: _scaled_fake(x, bits, signed),
)
def absmax_codes(x: Tensor, clip: float, stream: Tensor | None, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes, scale): quantize(x, r) with the one range r = clipped(amax(x, WHOLE), clip), and step(r)."""
    r = numerics.clipped(registered["amax"](x, WHOLE), clip)
    return registered["quantize"](x, r, None, stream, bits, signed), numerics.step(r, IntFormat(bits, signed))


@op(
    "(Tensor x, int axis, int top, float clip, Tensor? stream, int bits, bool signed) -> (Tensor, Tensor, Tensor)",
    lambda x, axis, top, clip, stream, bits, signed: (
        *_scaled_fake(x, bits, signed),
        x.new_empty(_amax_shape(x, axis), dtype=torch.uint8),
    ),
)
def shift_codes(x: Tensor, axis: int, top: int, clip: float, stream: Tensor | None, bits: int, signed: bool):
    """(codes, scale, shift): (R, shift) = shift_exponents(amax(x, axis), top, 0), quantize(x, r, shift), step(r).

    r = clipped(R, clip). x has at least one index along `axis`.
    """
    r, shift = registered["shift_exponents"](registered["amax"](x, axis), top, 0)
    r = numerics.clipped(r, clip)
    return registered["quantize"](x, r, shift, stream, bits, signed), numerics.step(r, IntFormat(bits, signed)), shift
