"""Codes with a step of their own for each token, brought to one scale by a shift; and how they are packed without it.

A token is an index of all axes but 1: a row of a matrix, a pixel of a sample. The shift is inside the codes (it folds
into int8), so what comes out has one scale, and every product takes it as it is, whatever axis it reduces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat, packed_bytes, place_bits
from .dispatch import op, registered


def shifted(x: Tensor, shift: Tensor | None) -> Tensor:
    """x 2^shift in float32; x itself without a shift."""
    return x if shift is None else x.to(torch.float32) * numerics.power_of_two(shift)


def token_exponents(x: Tensor, r: Tensor, top: int) -> Tensor:
    """largest_exponents of each token's range, max |x| along axis 1."""
    bits = numerics.range_bits(x)
    most = numerics.range_from_bits(bits.amax(1, keepdim=True) if x.numel() else bits[:, :1])
    return numerics.largest_exponents(most, r, top)


@op(
    "(Tensor x, Tensor r, Tensor? shift, Tensor? stream, int bits, bool signed, int top) -> Tensor",
    lambda x, r, shift, stream, bits, signed, top: torch.empty_like(x, dtype=IntFormat(bits, signed).dtype),
)
def quantize_tokens(
    x: Tensor, r: Tensor, shift: Tensor | None, stream: Tensor | None, bits: int, signed: bool, top: int
) -> Tensor:
    """codes = quantize(z, r, e, stream, bits, signed) 2^(top - e), z = x 2^shift, e = token_exponents(z, r, top).

    x      any float, 2 axes or more
    r      float32 of one element, max |z|
    shift  uint8, one for each index of axis 1; None: 0
    bits   bits + top <= 8
    """
    x = shifted(x, shift)
    e = token_exponents(x, r, top)
    codes = registered["quantize"](x, r, e.to(torch.uint8), stream, bits, signed)
    return torch.empty_like(x, dtype=codes.dtype).copy_(codes * (1 << (top - e)).to(codes.dtype))


@op(
    "(Tensor x, Tensor r, Tensor? stream, int bits, bool signed, int top, int block) -> Tensor",
    lambda x, r, stream, bits, signed, top, block: torch.empty_like(x, dtype=IntFormat(bits, signed).dtype),
)
def quantize_blocks(x: Tensor, r: Tensor, stream: Tensor | None, bits: int, signed: bool, top: int, block: int):
    """quantize_tokens of numerics.rows_of_blocks(x, block), in x's shape and memory format.

    x      any float, any shape
    r      float32 of one element, max |x|
    bits   bits + top <= 8
    """
    rows = numerics.rows_of_blocks(x, block)
    codes = registered["quantize_tokens"](rows, r.view(1, 1), None, stream, bits, signed, top)
    return torch.empty_like(x, dtype=codes.dtype).copy_(codes.flatten()[: x.numel()].view(x.shape))


def _pack_fake(codes, bits, top):
    packed = codes.new_empty(packed_bytes(codes.numel(), bits), dtype=torch.uint8)
    return packed, codes.new_empty(places_bytes(codes.shape, top), dtype=torch.uint8)


def places_bytes(shape: torch.Size | list[int], top: int) -> int:
    """Bytes of the places of a tensor's tokens, packed."""
    return packed_bytes(math.prod(shape[:1]) * math.prod(shape[2:]), place_bits(top))


@op("(Tensor codes, int bits, int top) -> (Tensor, Tensor)", _pack_fake)
def pack_tokens(codes: Tensor, bits: int, top: int) -> tuple[Tensor, Tensor]:
    """(pack_codes of codes 2^-places in their memory order, pack_codes of places): what quantize_tokens gives.

    codes  int8 or uint8, dense; `bits` bits a code are left. places: numerics.without_common_places(codes, top), in the
           order of the tokens' indices, place_bits(top) bits each
    """
    small, places = numerics.without_common_places(codes, top)
    packed = registered["pack_codes"](small.as_strided((small.numel(),), (1,)), bits)
    return packed, registered["pack_codes"](places.flatten(), place_bits(top))


def _unpack_fake(packed, places, size, stride, bits, signed, top):
    return packed.new_empty(0, dtype=IntFormat(bits, signed).dtype).new_empty_strided(size, stride)


@op("(Tensor packed, Tensor places, int[] size, int[] stride, int bits, bool signed, int top) -> Tensor", _unpack_fake)
def unpack_tokens(packed: Tensor, places: Tensor, size, stride, bits: int, signed: bool, top: int) -> Tensor:
    """The inverse: codes of this size and stride, dense."""
    tokens = [1 if i == 1 else n for i, n in enumerate(size)]
    by = registered["unpack_codes"](places, math.prod(tokens), place_bits(top), False).view(tokens)
    small = registered["unpack_codes"](packed, math.prod(size), bits, signed).as_strided(size, stride)
    return torch.empty_strided(size, stride, dtype=small.dtype, device=small.device).copy_(small << by.to(small.dtype))
