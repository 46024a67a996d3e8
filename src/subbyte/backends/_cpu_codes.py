"""absmax_codes and shift_codes on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat
from ._cpu_call import axes, call, dense_floats, floats, new, transposition
from ._native import FLOAT, INT, INT64, POINTER, function

_STREAM = (POINTER, INT64, INT64, INT64)  # stream, order
_absmax = function("sb_absmax_codes", POINTER, INT, INT64, FLOAT, *_STREAM, INT, INT, POINTER, POINTER, INT)
_shift = function(
    "sb_shift_codes", *(POINTER, INT, INT64, INT64, INT64, INT, FLOAT), *_STREAM, INT, INT, *(POINTER,) * 3, INT
)


def absmax_codes(x: Tensor, clip: float, stream: Tensor | None, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    found = _found(x, stream)
    if found is None:
        return NotImplemented
    (dense_x, *drawn), fmt = found, IntFormat(bits, signed)
    codes, scale = torch.empty_like(dense_x, dtype=fmt.dtype), new([1] * x.ndim)
    out = (fmt.qmin, fmt.qmax, codes.data_ptr(), scale.data_ptr())
    done = call("absmax_codes", _absmax, *floats(dense_x), dense_x.numel(), clip, *drawn, *out)
    return (codes, scale) if done else NotImplemented


def shift_codes(
    x: Tensor, axis: int, top: int, clip: float, stream: Tensor | None, bits: int, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    found = _found(x, stream)
    if found is None:
        return NotImplemented
    (dense_x, *drawn), fmt, groups = found, IntFormat(bits, signed), x.shape[axis]
    of_axis = axes(dense_x, [axis])
    assert of_axis is not None, "one axis is always one run"
    codes, scale = torch.empty_like(dense_x, dtype=fmt.dtype), new([1] * x.ndim)
    shift = new([n if i == axis else 1 for i, n in enumerate(x.shape)], torch.uint8)
    out = (fmt.qmin, fmt.qmax, codes.data_ptr(), scale.data_ptr(), shift.data_ptr())
    sizes = (dense_x.numel(), groups, of_axis[1], top, clip)
    done = call("shift_codes", _shift, *floats(dense_x), *sizes, *drawn, *out)
    return (codes, scale, shift) if done else NotImplemented


def _found(x: Tensor, stream: Tensor | None) -> tuple | None:
    """(x as dense floats, address of the stream, order); None where the kernels do not cover them."""
    dense_x = dense_floats(x)
    if dense_x is None:
        return None
    if stream is None:
        return dense_x, None, 1, x.numel(), 1
    order = transposition(dense_x)
    return None if order is None or not stream.is_cpu else (dense_x, stream.data_ptr(), *order)


OPS = (absmax_codes, shift_codes)
