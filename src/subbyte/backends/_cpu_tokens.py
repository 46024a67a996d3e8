"""quantize_tokens and norm_grad_tokens on the C++ kernels, which take a matrix with a row for each token."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat
from ._cpu_call import call, dense_float32, ran, transposition
from ._cpu_chain import norm_gradient, pointers
from ._cpu_norm import norm_grad_apply
from ._cpu_pack import unpack_codes
from ._native import INT, INT64, POINTER, function

_ROUNDING = (POINTER, INT64, INT64, INT64, INT, INT)  # stream, batch, channels, pixels, bits, top
_VALUES = (POINTER, INT64)

_quantize = function("sb_quantize_tokens", POINTER, INT64, INT64, POINTER, *_ROUNDING[:-1], INT, INT, POINTER, INT)
_grad = function(
    "sb_norm_grad_tokens", POINTER, INT64, INT64, POINTER, INT, *_VALUES * 5, POINTER, *_ROUNDING, POINTER, INT
)


def quantize_tokens(x: Tensor, r: Tensor, stream: Tensor | None, bits: int, signed: bool, top: int) -> Tensor:
    x32 = dense_float32(x)
    if x32 is None or r.dtype != torch.float32 or r.device.type != "cpu" or r.numel() != 1 or x.ndim < 2:
        return NotImplemented
    if x.numel() == 0:
        return NotImplemented
    codes = torch.empty_like(x32, dtype=IntFormat(bits, signed).dtype)
    order = (1, x.numel(), 1) if stream is None else transposition(x32)
    if order is None or not _by_rows(x32):
        found = quantize_tokens(x32.movedim(1, -1).contiguous().movedim(-1, 1), r, stream, bits, signed, top)
        return found if found is NotImplemented else codes.copy_(found)
    channels = x.shape[1]
    rounding = (None if stream is None else stream.data_ptr(), *order, bits, signed, top)
    rows = x.numel() // channels
    done = call("quantize_tokens", _quantize, x32.data_ptr(), rows, channels, r.data_ptr(), *rounding, codes.data_ptr())
    return codes if done else NotImplemented


def norm_grad_tokens(q_g, saved, saved_bits, q_gamma, a, u, v, t, r, stream, bits, top):
    found = norm_gradient(q_g, saved, saved_bits, q_gamma, a, u, v, t)
    order = (1, q_g.numel(), 1) if stream is None or found is None else transposition(q_g)
    if found is None or order is None or r.numel() != 1 or r.dtype != torch.float32:
        return NotImplemented
    if not _by_rows(q_g):  # the channels of a token are apart: dx in floats first
        k = unpack_codes(saved, q_g.numel(), saved_bits, True).as_strided(q_g.shape, q_g.stride())
        dx = norm_grad_apply(q_g, k, q_gamma, a, u, v, t, False)
        codes = dx if dx is NotImplemented else quantize_tokens(dx, r, stream, bits, True, top)
        ran["norm_grad_tokens"] = ran.get("quantize_tokens", "")
        return codes
    codes, channels = torch.empty_like(q_g), q_g.shape[1]
    rounding = (None if stream is None else stream.data_ptr(), *order, bits, top)
    arguments = (q_g.data_ptr(), q_g.numel() // channels, channels, saved.data_ptr(), saved_bits, *pointers(found[1]))
    done = call("norm_grad_tokens", _grad, *arguments, r.data_ptr(), *rounding, codes.data_ptr())
    return codes if done else NotImplemented


def _by_rows(x: Tensor) -> bool:
    """Do the channels of a token lie together, in a dense tensor?"""
    return x.shape[1] == 1 or x.stride(1) == 1


OPS = (quantize_tokens, norm_grad_tokens)
