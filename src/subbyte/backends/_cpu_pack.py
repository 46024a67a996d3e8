"""pack_codes and unpack_codes on the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat, packed_bytes
from ._cpu_call import call, new
from ._native import INT, INT64, POINTER, function

_pack = function("sb_pack_codes", POINTER, INT64, INT, POINTER, INT)
_unpack = function("sb_unpack_codes", POINTER, INT64, INT, INT, POINTER, INT)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    if not _is_bytes(codes):
        return NotImplemented
    packed = new(packed_bytes(codes.numel(), bits), torch.uint8)
    codes = codes.contiguous()
    done = call("pack_codes", _pack, codes.data_ptr(), codes.numel(), bits, packed.data_ptr())
    return packed if done else NotImplemented


def unpack_codes(packed: Tensor, numel: int, bits: int, signed: bool) -> Tensor:
    if not _is_bytes(packed) or packed.numel() != packed_bytes(numel, bits):
        return NotImplemented
    codes = new(numel, IntFormat(bits, signed).dtype)
    packed = packed.contiguous()
    done = call("unpack_codes", _unpack, packed.data_ptr(), numel, bits, signed, codes.data_ptr())
    return codes if done else NotImplemented


def _is_bytes(t: Tensor) -> bool:
    return t.is_cpu and t.dtype in (torch.int8, torch.uint8) and t.ndim == 1


OPS = (pack_codes, unpack_codes)
