"""amax on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ._cpu_call import around, call, dense_float32
from ._native import INT, INT64, POINTER, function

_amax = function("sb_amax", POINTER, INT64, INT64, INT64, POINTER, INT)


def amax(x: Tensor, axis: int) -> Tensor:
    x32 = dense_float32(x)
    if x32 is None:
        return NotImplemented
    shape = [n if i == axis else 1 for i, n in enumerate(x.shape)]
    outer, channels, inner = around(x32, axis)
    r = torch.zeros(shape, dtype=torch.float32) if x.numel() == 0 else torch.empty(shape, dtype=torch.float32)
    if not call("amax", _amax, x32.data_ptr(), outer, channels if x.numel() else 0, inner, r.data_ptr()):
        return NotImplemented
    return r


OPS = (amax,)
