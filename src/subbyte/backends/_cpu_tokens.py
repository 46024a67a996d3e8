"""The passes over tokens on the C++ kernels, which take a matrix with a row for each token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..numerics import (
    IntFormat,
    packed_bytes,
    place_bits,
    power_of_two,
    rows_of_blocks,
    token_shape,
    without_common_places,
)
from ..qtensor import is_dense
from ._cpu_call import CPU, FLOATS, call, dense_floats, floats, new, ran, transposition
from ._cpu_chain import NORM, norm_gradient, norm_operands, norm_relu, pointers
from ._cpu_norm import norm_grad_apply
from ._cpu_pack import pack_codes, unpack_codes
from ._native import INT, INT64, POINTER, function

_ROUNDING = (POINTER, INT64, INT64, INT64, INT, INT)  # stream, batch, channels, pixels, bits, top
_VALUES = (POINTER, INT64)

_quantize = function("sb_quantize_tokens", POINTER, INT, INT64, INT64, POINTER, *_ROUNDING[:-1], INT, INT, POINTER, INT)
_quantize_blocks = function(
    "sb_quantize_blocks", POINTER, INT, INT64, INT64, INT64, INT64, POINTER, INT, INT, INT, POINTER, INT
)
_pack = function("sb_pack_tokens", POINTER, INT64, INT64, INT, INT, POINTER, POINTER, INT)
_shift = function("sb_shift_tokens", POINTER, INT64, INT64, INT64, INT, POINTER, POINTER, INT)
_unpack = function("sb_unpack_tokens", POINTER, POINTER, INT64, INT64, INT, INT, INT, POINTER, INT)
_norm_relu = function("sb_norm_relu_tokens", POINTER, INT64, INT64, *NORM, POINTER, *(INT,) * 4, *(POINTER,) * 5, INT)
_grad = function(
    "sb_norm_grad_tokens", POINTER, INT64, INT64, POINTER, INT, *_VALUES * 5, POINTER, *_ROUNDING, INT, POINTER, INT
)


def quantize_tokens(
    x: Tensor, r: Tensor, shift: Tensor | None, stream: Tensor | None, bits: int, signed: bool, top: int
) -> Tensor:
    dense_x = dense_floats(x)
    if dense_x is None or not _is_range(r) or x.ndim < 2 or x.numel() == 0:
        return NotImplemented
    if shift is not None and shift.any():  # another pass, only where it changes something
        dense_x = dense_x * power_of_two(shift)
    codes = torch.empty_like(dense_x, dtype=IntFormat(bits, signed).dtype)
    order = (1, x.numel(), 1) if stream is None else transposition(dense_x)
    if order is None or not _by_rows(dense_x):
        found = quantize_tokens(dense_x.movedim(1, -1).contiguous().movedim(-1, 1), r, None, stream, bits, signed, top)
        return found if found is NotImplemented else codes.copy_(found)
    channels = x.shape[1]
    rounding = (None if stream is None else stream.data_ptr(), *order, bits, signed, top)
    rows = x.numel() // channels
    done = call(
        "quantize_tokens", _quantize, *floats(dense_x), rows, channels, r.data_ptr(), *rounding, codes.data_ptr()
    )
    return codes if done else NotImplemented


def quantize_blocks(x: Tensor, r: Tensor, stream: Tensor | None, bits: int, signed: bool, top: int, block: int):
    dense_x = dense_floats(x)
    if dense_x is None or x.numel() == 0:
        return NotImplemented
    order = transposition(dense_x) if stream is None and _is_range(r) else None
    if order is not None and order[2] > 1:
        codes = torch.empty_like(dense_x, dtype=IntFormat(bits, signed).dtype)
        operands = (*floats(dense_x), *order, block, r.data_ptr(), bits, signed, top)
        if call("quantize_blocks", _quantize_blocks, *operands, codes.data_ptr()):
            return codes
    found = quantize_tokens(rows_of_blocks(dense_x, block), r, None, stream, bits, signed, top)
    if found is NotImplemented:
        return found
    ran["quantize_blocks"] = ran.get("quantize_tokens", "")
    found = found.flatten()[: x.numel()].view(x.shape)
    return found if dense_x.is_contiguous() else torch.empty_like(dense_x, dtype=found.dtype).copy_(found)


def pack_tokens(codes: Tensor, bits: int, top: int):
    rows = _rows_of_bytes(codes)
    if rows is None:  # the channels of a token are apart
        if not codes.is_cpu or codes.numel() == 0 or not is_dense(codes):
            return NotImplemented
        small, places = _without_common_places(codes, top)
        packed = pack_codes(small.as_strided((small.numel(),), (1,)), bits)
        ran["pack_tokens"] = ran.get("pack_codes", "")
        return packed if packed is NotImplemented else (packed, pack_codes(places.flatten(), place_bits(top)))
    packed = new(packed_bytes(codes.numel(), bits), torch.uint8)
    places = _places(rows[0], top)
    arguments = (codes.data_ptr(), *rows, bits, top, packed.data_ptr(), places.data_ptr())
    return (packed, places) if call("pack_tokens", _pack, *arguments) else NotImplemented


def _without_common_places(codes: Tensor, top: int) -> tuple[Tensor, Tensor]:
    if not codes.is_contiguous() or codes.ndim < 2:
        return without_common_places(codes, top)
    small, places = torch.empty_like(codes), new(token_shape(codes), torch.uint8)
    operands = (codes.data_ptr(), codes.shape[0], codes.shape[1], math.prod(codes.shape[2:]), top)
    done = call("pack_tokens", _shift, *operands, small.data_ptr(), places.data_ptr())
    return (small, places) if done else without_common_places(codes, top)


def unpack_tokens(packed: Tensor, places: Tensor, size, stride, bits: int, signed: bool, top: int):
    codes = torch.empty_strided(size, stride, dtype=IntFormat(bits, signed).dtype, device=CPU)
    tokens, width = codes.numel() // max(codes.shape[1], 1), place_bits(top)
    if not _are_bytes(packed, packed_bytes(codes.numel(), bits)) or not _are_bytes(places, packed_bytes(tokens, width)):
        return NotImplemented
    rows = _rows_of_bytes(codes)
    if rows is None:
        small = unpack_codes(packed, codes.numel(), bits, signed)
        by = unpack_codes(places, tokens, width, False)
        ran["unpack_tokens"] = ran.get("unpack_codes", "")
        if small is NotImplemented or not is_dense(codes):
            return NotImplemented
        by = by.view([1 if i == 1 else n for i, n in enumerate(codes.shape)])
        return codes.copy_(small.as_strided(codes.shape, codes.stride()) << by.to(codes.dtype))
    arguments = (packed.data_ptr(), places.data_ptr(), *rows, bits, signed, top, codes.data_ptr())
    return codes if call("unpack_tokens", _unpack, *arguments) else NotImplemented


def norm_relu_tokens(
    q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, r, next_bits, next_signed, top, half=False
):
    norm, rows = norm_operands(q, total, factor, q_gamma, scale, beta), _rows_of_bytes(q)
    if norm is None or not _is_range(r):
        return NotImplemented
    if rows is None:  # the channels of a token are apart: ReLU(y) in floats first
        found = norm_relu(q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, None, True, half)
        if found is NotImplemented:
            return found
        z, _, saved, mask = found
        codes = quantize_tokens(z, r, None, None, next_bits, next_signed, top)
        if codes is NotImplemented:
            return codes
        ran["norm_relu_tokens"] = ran.get("quantize_tokens", "")
        return codes, *pack_tokens(codes, next_bits, top), saved, mask
    codes = torch.empty_like(q, dtype=IntFormat(next_bits, next_signed).dtype)
    packed, saved, mask = (new(packed_bytes(q.numel(), b), torch.uint8) for b in (next_bits, saved_bits, 1))
    places = _places(rows[0], top)
    form = (n, bits, saved_bits, r.data_ptr(), next_bits, next_signed, top, half)
    arguments = (q.data_ptr(), *rows, *pointers(norm), *form)
    outputs = (codes, packed, places, saved, mask)
    done = call("norm_relu_tokens", _norm_relu, *arguments, *(t.data_ptr() for t in outputs))
    return outputs if done else NotImplemented


def norm_grad_tokens(q_g, saved, saved_bits, q_gamma, a, u, v, t, r, stream, bits, top, half=False):
    found = norm_gradient(q_g, saved, saved_bits, q_gamma, a, u, v, t)
    order = (1, q_g.numel(), 1) if stream is None or found is None else transposition(q_g)
    if found is None or order is None or not _is_range(r):
        return NotImplemented
    if not _by_rows(q_g):  # the channels of a token are apart: dx in floats first
        k = unpack_codes(saved, q_g.numel(), saved_bits, True).as_strided(q_g.shape, q_g.stride())
        dx = norm_grad_apply(q_g, k, q_gamma, a, u, v, t, False)
        codes = dx if dx is NotImplemented else quantize_tokens(dx.to(FLOATS[half]), r, None, stream, bits, True, top)
        ran["norm_grad_tokens"] = ran.get("quantize_tokens", "")
        return codes
    codes, channels = torch.empty_like(q_g), q_g.shape[1]
    rounding = (None if stream is None else stream.data_ptr(), *order, bits, top, half)
    arguments = (q_g.data_ptr(), q_g.numel() // channels, channels, saved.data_ptr(), saved_bits, *pointers(found[1]))
    done = call("norm_grad_tokens", _grad, *arguments, r.data_ptr(), *rounding, codes.data_ptr())
    return codes if done else NotImplemented


def _is_range(r: Tensor) -> bool:
    """One number for the whole tensor, as a kernel reads it."""
    return r.is_cpu and r.dtype == torch.float32 and r.numel() == 1


def _places(tokens: int, top: int) -> Tensor:
    return new(packed_bytes(tokens, place_bits(top)), torch.uint8)


def _by_rows(x: Tensor) -> bool:
    """Do the channels of a token lie together, in a dense tensor?"""
    return x.shape[1] == 1 or x.stride(1) == 1


def _rows_of_bytes(codes: Tensor) -> tuple[int, int] | None:
    """(tokens, channels) of bytes that lie token by token; None for any other tensor."""
    if not codes.is_cpu or codes.dtype not in (torch.int8, torch.uint8) or codes.ndim < 2:
        return None
    if codes.numel() == 0 or not _by_rows(codes) or not codes.movedim(1, -1).is_contiguous():
        return None
    return codes.numel() // codes.shape[1], codes.shape[1]


def _are_bytes(t: Tensor, n: int) -> bool:
    return t.is_cpu and t.dtype == torch.uint8 and t.numel() == n and t.is_contiguous()


OPS = (quantize_tokens, quantize_blocks, pack_tokens, unpack_tokens, norm_relu_tokens, norm_grad_tokens)
