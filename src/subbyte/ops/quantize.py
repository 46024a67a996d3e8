"""amax, quantize, pack, unpack: floats to codes, and codes to dense bytes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat, packed_bytes
from ..qtensor import PackedQTensor, QTensor, is_dense
from .dispatch import op
from .tokens import pack_tokens, unpack_tokens

WHOLE = -1
"""axis of a range that covers the whole tensor."""


def _amax_shape(x: Tensor, axis: int) -> list[int]:
    return [n if i == axis else 1 for i, n in enumerate(x.shape)]


@op("(Tensor x, int axis) -> Tensor", lambda x, axis: x.new_empty(_amax_shape(x, axis), dtype=torch.float32))
def amax(x: Tensor, axis: int) -> Tensor:
    """R = max |x| along all axes but `axis` (WHOLE: along all), float32, keeping dimensions of size 1.

    NaN where any element is NaN or Inf; 0 below numerics.RANGE_FLOOR and for an empty slice.
    """
    bits = numerics.range_bits(x)
    rest = [i for i in range(x.ndim) if i != axis]
    if x.numel() == 0:
        return x.new_zeros(_amax_shape(x, axis), dtype=torch.float32)
    return numerics.range_from_bits(bits.amax(rest, keepdim=True) if rest else bits)


def _quantize_fake(x, r, shift, stream, bits, signed):
    return torch.empty_like(x, dtype=IntFormat(bits, signed).dtype)


@op("(Tensor x, Tensor r, Tensor? shift, Tensor? stream, int bits, bool signed) -> Tensor", _quantize_fake)
def quantize(x: Tensor, r: Tensor, shift: Tensor | None, stream: Tensor | None, bits: int, signed: bool) -> Tensor:
    """codes = round(x 2^shift Q / r) by the rules of numerics, in x's memory format.

    x       any float, any shape
    r       float32 range, broadcastable to x
    shift   uint8, broadcastable to x, or None: what lies 2^-shift lower has its own step 2^-shift r / Q
    stream  int64 scalar: stochastic rounding by bits of (stream, logical row-major index); None: nearest, half to even
    """
    fmt = IntFormat(bits, signed)
    inv = numerics.inverse_step(r, fmt)
    if shift is not None:
        inv = inv * numerics.power_of_two(shift)
    t = numerics.to_fixed(x, inv, fmt)
    if stream is None:
        codes = numerics.round_nearest(t)
    else:
        codes = numerics.round_stochastic(t, numerics.random_bits16(stream, x.numel()).view(x.shape))
    return torch.empty_like(x, dtype=fmt.dtype).copy_(codes)


# ------------------------------------------------------------------------------------------------------- packing

_GROUP = 8  # codes that fill a whole number of bytes, whatever their width: 8 codes of b bits are b bytes


def _pack_fake(codes, bits):
    return codes.new_empty(packed_bytes(codes.numel(), bits), dtype=torch.uint8)


@op("(Tensor codes, int bits) -> Tensor", _pack_fake)
def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """A little-endian bit string: code i (two's complement, b bits) at bits b i .. b i + b - 1. 1-D codes -> uint8.

    4 bits: code 2j in the low half of byte j, code 2j + 1 in the high half.
    """
    if bits == 8:
        return codes.view(torch.uint8).clone()
    if bits == 4 and codes.numel() % 2 == 0:
        pairs = codes.view(torch.uint8).view(-1, 2)
        return (pairs[:, 0] & 15) | (pairs[:, 1] << 4)
    n = codes.numel()
    groups = torch.zeros(-(-n // _GROUP) * _GROUP, dtype=torch.int64, device=codes.device)
    groups[:n] = codes & ((1 << bits) - 1)
    at = torch.arange(_GROUP, device=codes.device)
    words = (groups.view(-1, _GROUP) << (at * bits)).sum(-1, keepdim=True)  # 8 x 7 bits fit an int64
    return ((words >> (at[:bits] * 8)) & 255).to(torch.uint8).flatten()[: packed_bytes(n, bits)]


def _unpack_fake(packed, numel, bits, signed):
    return packed.new_empty(numel, dtype=IntFormat(bits, signed).dtype)


@op("(Tensor packed, int numel, int bits, bool signed) -> Tensor", _unpack_fake)
def unpack_codes(packed: Tensor, numel: int, bits: int, signed: bool) -> Tensor:
    """The inverse of pack_codes. uint8 (packed_bytes,) -> codes (numel,). ValueError for another number of bytes."""
    dtype = IntFormat(bits, signed).dtype
    if packed.numel() != packed_bytes(numel, bits):
        needed = packed_bytes(numel, bits)
        raise ValueError(f"{numel} codes of {bits} bits are {needed} bytes, not {packed.numel()}")
    if bits == 8:
        return packed.view(dtype).clone()
    groups = -(-numel // _GROUP)
    padded = torch.zeros(groups * bits, dtype=torch.int64, device=packed.device)
    padded[: packed.numel()] = packed
    at = torch.arange(_GROUP, device=packed.device)
    words = (padded.view(-1, bits) << (at[:bits] * 8)).sum(-1, keepdim=True)
    u = ((words >> (at * bits)) & ((1 << bits) - 1)).flatten()[:numel]
    half = 1 << (bits - 1)
    return ((u ^ half) - half if signed else u).to(dtype)


def pack(q: QTensor) -> PackedQTensor:
    """The densest form of q's codes, in memory order when they are dense in memory (channels_last stays so)."""
    codes = q.codes if is_dense(q.codes) else q.codes.contiguous()
    if q.inside:
        tokens = codes.view(-1, q.inside.block) if q.inside.block else codes
        packed, places = pack_tokens(tokens, q.code_bits, q.inside.top)
        form = (q.format, q.shift, q.max_shift, q.inside)
        return PackedQTensor(packed, codes.shape, codes.stride(), q.scale, *form, places)
    flat = codes.as_strided((codes.numel(),), (1,))
    return PackedQTensor(
        pack_codes(flat, q.format.bits), codes.shape, codes.stride(), q.scale, q.format, q.shift, q.max_shift
    )


def unpack(p: PackedQTensor) -> QTensor:
    """The inverse of pack, memory format included."""
    if p.inside:
        assert p.places is not None
        size, stride, block = p.shape, p.stride, p.inside.block
        if block:
            size, stride = torch.Size((p.shape.numel() // block, block)), (block, 1)
        codes = unpack_tokens(p.packed, p.places, size, stride, p.code_bits, p.format.signed, p.inside.top)
        codes = codes.view(p.shape) if block else codes
        return QTensor(codes, p.scale, p.format, p.shift, p.max_shift, p.inside)
    flat = unpack_codes(p.packed, p.shape.numel(), p.format.bits, p.format.signed)
    return QTensor(flat.as_strided(p.shape, p.stride), p.scale, p.format, p.shift, p.max_shift)


def _narrow_fake(codes, drop, bits, signed):
    return torch.empty_like(codes)


@op("(Tensor codes, int drop, int bits, bool signed) -> Tensor", _narrow_fake)
def narrow_codes(codes: Tensor, drop: int, bits: int, signed: bool) -> Tensor:
    """codes / 2^drop, half to even, clamped to the format of `bits` bits; same dtype and memory format."""
    fmt = IntFormat(bits, signed)
    narrowed = numerics.shift_right_nearest(codes.to(torch.int32), drop).clamp(fmt.qmin, fmt.qmax)
    return torch.empty_like(codes).copy_(narrowed)


def narrow(q: QTensor, bits: int) -> QTensor:
    """The same values in fewer bits; the scale grows to match."""
    drop = q.format.bits - bits
    if drop <= 0:
        return q
    fmt = replace(q.format, bits=bits)
    codes = narrow_codes(q.codes, drop, bits, fmt.signed)
    return QTensor(codes, q.scale * float(1 << drop), fmt, q.shift, q.max_shift)
