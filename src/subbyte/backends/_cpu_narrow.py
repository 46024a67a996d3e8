"""narrow_codes on its C++ kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat
from ._cpu_call import call, dense
from ._native import INT, INT64, POINTER, function

_narrow = function("sb_narrow_codes", POINTER, INT64, INT, INT, INT, INT, POINTER, INT)


def narrow_codes(codes: Tensor, drop: int, bits: int, signed: bool) -> Tensor:
    fmt = IntFormat(bits, signed)
    if not codes.is_cpu or codes.dtype != fmt.dtype:
        return NotImplemented
    codes = dense(codes)
    out = torch.empty_like(codes)
    limits = (fmt.qmin, fmt.qmax)
    done = call("narrow_codes", _narrow, codes.data_ptr(), codes.numel(), drop, signed, *limits, out.data_ptr())
    return out if done else NotImplemented


OPS = (narrow_codes,)
