"""The passes of the integer-only mode over tokens on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat, token_shape
from ._cpu_call import CPU, are, call, new
from ._cpu_integer import shape_of
from ._native import INT, INT64, POINTER, function

_SHAPE = (INT64, INT64, INT64)  # outer, channels, inner

_shifts = function("sb_int_token_shifts", POINTER, *_SHAPE, INT, POINTER, POINTER, INT)
_quantize = function("sb_int_quantize_tokens", POINTER, *_SHAPE, *(POINTER,) * 3, *(INT,) * 3, POINTER, INT)


def int_token_shifts(x: Tensor, bits: int, signed: bool):
    if not are(torch.int32, x) or x.ndim < 2:
        return NotImplemented
    x = x.contiguous()
    needed = torch.zeros(token_shape(x), dtype=torch.uint8, device=CPU)
    largest = torch.zeros([1] * x.ndim, dtype=torch.int64, device=CPU)
    operands = (x.data_ptr(), *shape_of(x, True), IntFormat(bits, signed).qmax)
    done = call("int_token_shifts", _shifts, *operands, needed.data_ptr(), largest.data_ptr())
    return (needed, largest) if done else NotImplemented


def int_quantize_tokens(
    x: Tensor, needed: Tensor, base: Tensor, stream: Tensor | None, bits: int, signed: bool, top: int
) -> Tensor:
    on_cpu = stream is None or stream.is_cpu
    if not are(torch.int32, x, base) or not are(torch.uint8, needed) or not on_cpu or base.numel() != 1:
        return NotImplemented
    if x.ndim < 2 or needed.shape != token_shape(x):
        return NotImplemented
    x, needed, fmt = x.contiguous(), needed.contiguous(), IntFormat(bits, signed)
    codes = new(x.shape, fmt.dtype)
    source = None if stream is None else stream.data_ptr()
    operands = (x.data_ptr(), *shape_of(x, True), needed.data_ptr(), base.data_ptr(), source, fmt.qmin, fmt.qmax, top)
    return codes if call("int_quantize_tokens", _quantize, *operands, codes.data_ptr()) else NotImplemented


OPS = (int_token_shifts, int_quantize_tokens)
