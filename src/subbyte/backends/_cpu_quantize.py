"""amax and quantize on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat
from ._cpu_call import CPU, axes, call, dense_floats, floats, geometry, transposition
from ._native import INT, INT64, POINTER, function

_OPERAND = (POINTER, INT64, INT64)  # values, channels, inner

_amax = function("sb_amax", POINTER, INT, INT64, INT64, INT64, POINTER, INT)
_quantize = function(
    "sb_quantize", POINTER, INT, INT64, *_OPERAND, *_OPERAND, POINTER, INT64, INT64, INT64, INT, INT, POINTER, INT
)


def amax(x: Tensor, axis: int) -> Tensor:
    dense_x = dense_floats(x)
    if dense_x is None:
        return NotImplemented
    n = dense_x.numel()
    shape = [size if i == axis else 1 for i, size in enumerate(x.shape)]
    r = torch.zeros(shape, dtype=torch.float32, device=CPU)
    of_axis = axes(dense_x, [axis] if axis >= 0 else [])
    assert of_axis is not None, "one axis is always one run"
    channels, inner = of_axis
    outer = n // (channels * inner)
    if not call("amax", _amax, *floats(dense_x), outer, channels if n else 0, inner, r.data_ptr()):
        return NotImplemented
    return r


def quantize(x: Tensor, r: Tensor, shift: Tensor | None, stream: Tensor | None, bits: int, signed: bool) -> Tensor:
    dense_x = dense_floats(x)
    if dense_x is None or r.dtype != torch.float32 or not _on_cpu(r, shift, stream):
        return NotImplemented
    fmt = IntFormat(bits, signed)
    codes = torch.empty_like(dense_x, dtype=fmt.dtype)
    order = (1, x.numel(), 1) if stream is None else transposition(dense_x)
    if order is None:
        return codes.copy_(quantize(dense_x.contiguous(), r, shift, stream, bits, signed))
    r_axis = geometry(dense_x, r)
    shift_axis = (1, 1) if shift is None else geometry(dense_x, shift)
    if r_axis is None or shift_axis is None or (shift is not None and shift.dtype != torch.uint8):
        return NotImplemented
    r, shift = r.contiguous(), None if shift is None else shift.contiguous()
    done = call(
        "quantize",
        _quantize,
        *(*floats(dense_x), x.numel()),
        *(r.data_ptr(), *r_axis),
        *(_pointer(shift), *shift_axis),
        *(_pointer(stream), *order),
        *(fmt.qmin, fmt.qmax, codes.data_ptr()),
    )
    return codes if done else NotImplemented


def _on_cpu(*tensors: Tensor | None) -> bool:
    return all(t is None or t.is_cpu for t in tensors)


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


OPS = (amax, quantize)
