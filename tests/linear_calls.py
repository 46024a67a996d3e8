"""Arguments for the ops of ops/linear.py, for op_calls.py."""

from __future__ import annotations

import torch
from torch import Tensor

from chain_calls import _floats
from subbyte.numerics import place_bits
from subbyte.ops import packed_bytes, registered

FORMS = ((4, True), (8, True), (6, False), (8, False))
"""Bits and sign of x; w has as many bits."""


def linear_forward(big: int) -> list[tuple]:
    x, w, bias = _floats(7 * big, 19), _floats(5 * big, 19), _floats(5 * big)
    w = w * torch.exp2(-torch.arange(float(len(w))) / 3)[:, None]
    calls = [
        (x, w, b, 0, clip, *form, top, 0, 0.75, form[0], True)
        for form in FORMS
        for b, clip, top in ((bias, 0.3, 0), (None, 1.0, 0), (bias, 1.0, 4))
    ]
    calls += [
        (x, w, bias, x_top, clip, bits, signed, top, block, 0.75, bits, True)
        for x_top, clip, bits, signed, top, block in (
            (2, 1.0, 4, False, 4, 0),
            (4, 0.6, 4, True, 0, 0),
            (1, 0.3, 6, True, 0, 0),
            (0, 0.5, 4, False, 2, 5),
            (1, 0.6, 4, False, 2, 19),
            (1, 1.0, 4, True, 4, 5),
        )
    ]
    one = (1.0, 4, True, 0, 0, 1.0, 4, True)
    return [
        *calls,
        (x * 0, w, bias, 0, *one),
        (x * 0, w, bias, 2, *one),
        (x[:1], w[:1], bias[:1], 0, *one),
        (x, w * 0, bias, 0, 1.0, 4, True, 4, 0, 1.0, 4, True),
        (x, w * 0, bias, 1, 0.6, 4, True, 2, 5, 1.0, 4, True),
    ]


def _bytes(numel: int, bits: int) -> Tensor:
    """Packed codes, none of them the most negative number of its width."""
    if bits == 8:
        return (torch.arange(numel) * 37 % 255 - 127).to(torch.int8).view(torch.uint8)
    return (torch.arange(packed_bytes(numel, bits)) * 37 % 251).to(torch.uint8) & (0x77 if bits == 4 else 0xFF)


def packed_places(places: Tensor, top: int) -> Tensor:
    return registered["pack_codes"](places, place_bits(top))


def linear_backward(big: int) -> list[tuple]:
    rows, outputs, inputs = 7 * big, 5 * big, 19
    g, stream = _floats(rows, outputs) * torch.exp2(-torch.arange(outputs) / 3), torch.tensor(-9)
    scales = torch.full((1, 1), 0.25), torch.full((1, 1), 0.5)
    calls = []
    for bits, signed in ((4, True), (8, True), (8, False)):
        x = (_bytes(rows * inputs, bits), scales[0], bits, signed)
        w = (_bytes(outputs * inputs, bits), scales[1], bits, True)
        none, whole, one = (None, None, bits, True), (None, 0), (None, 0, 0)
        top = min(2, 8 - bits)
        places = packed_places((torch.arange(rows) % (top + 1)).to(torch.uint8), top), top
        of_blocks = packed_places((torch.arange(outputs) % (top + 1)).to(torch.uint8), top), top, inputs
        forms = ((stream, False, 8, 0, 0, 0.5), (None, False, 3, 0, 0, 1.0), (stream, False, 0, 0, 0, 0.3))
        tokens = ((stream, True, 8 - bits, 0, 0, 1.0), (None, True, (8 - bits) // 2, 0, 0, 0.4))
        tokens += ((stream, True, 8 - bits, 12, 0, 1.0), (stream, True, 8 - bits, 12, 4, 0.6))
        e = (torch.arange(outputs) * 5 % 4).to(torch.uint8)[:, None], 3, 0
        for shift in (one, e):
            calls += [(g, *form, bits, inputs, True, *x, *whole, *w, *shift) for form in (*forms, *tokens)]
        if bits < 8:
            calls += [(g, *form, bits, inputs, True, *x, *places, *w, *one) for form in (*forms, *tokens)]
            calls += [(g, *form, bits, inputs, True, *x, *whole, *w, *of_blocks) for form in (*forms, *tokens)]
        calls += [(g, *forms[0], bits, inputs, False, *a, *whole, *b, *one) for a, b in ((x, none), (none, w))]
        for power, other in (
            (-76, -40),
            (105, 30),
        ):  # scales beyond float32 with 2^-12, or without: exponents of 0 stay
            edge = (w[0], torch.full((1, 1), 2.0**other), *w[2:])
            calls.append((g * 2.0**power, *tokens[3], bits, inputs, True, *x, *whole, *edge, *one))
    return calls


CALLS = {f.__name__: f for f in (linear_forward, linear_backward)}
