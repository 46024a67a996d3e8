"""A linear layer, forward and backward, as one op each: quantizers and products.    x (B, I), w (O, I), g (B, O)

They are ops for speed alone: of a layer with few elements, calls are what costs, and codes stay in memory that is used
again. Each equals, bit for bit, the ops that its body names. All matrices are row-major.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat, packed_bytes
from .dispatch import op, registered
from .exact import float_dtype
from .tokens import places_bytes


def _forward_fake(x, w, bias, x_top, x_clip, x_bits, x_signed, w_top, w_block, w_clip, w_bits, w_signed, half=False):
    saved = []
    of_x = x.new_empty(places_bytes(x.shape, x_top) if x_top else 0, dtype=torch.uint8)
    of_w = w.new_empty(w.shape[0], 1, dtype=torch.uint8)
    if w_block:
        of_w = w.new_empty(places_bytes([w.numel() // w_block], w_top), dtype=torch.uint8)
    for t, bits, exponents in ((x, x_bits, of_x), (w, w_bits, of_w)):
        saved += [
            t.new_empty(packed_bytes(t.numel(), bits), dtype=torch.uint8),
            x.new_empty(1, 1, dtype=torch.float32),
            exponents,
        ]
    return x.new_empty(x.shape[0], w.shape[0], dtype=float_dtype(half)), *saved


@op(
    "(Tensor x, Tensor w, Tensor? bias, int x_top, float x_clip, int x_bits, bool x_signed, int w_top, int w_block, "
    "float w_clip, int w_bits, bool w_signed, bool half=False) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_fake,
)
def linear_forward(
    x, w, bias, x_top: int, x_clip: float, x_bits, x_signed, w_top: int, w_block, w_clip, w_bits, w_signed, half=False
):
    """(y, then of x and of w: packed codes, their scale, exponents): y = x w^T + bias, float32 (B, O).

    half   y is bfloat16
    x_top  the largest exponent of a row of x (its places, by pack_tokens); 0: one range, no places
    w_top  the largest exponent of an output of w; 0: one range for all of w
    w_block  > 0: exponents belong to each w_block elements of w, row-major, which must be a number of them, and are
             inside of the codes; in place of them there are places, by pack_tokens
    = absmax_codes of x and pack_codes, or quantize_tokens and pack_tokens; shift_codes of w along its outputs or
      quantize_tokens of its blocks, and packed alike; both to nearest; scaled_matmul
    """
    if x_top:
        qx, sx, _ = _tokens(x, None, x_clip, x_bits, x_signed, x_top)
        px, places = registered["pack_tokens"](qx, x_bits, x_top)
    else:
        qx, sx = registered["absmax_codes"](x, x_clip, None, x_bits, x_signed)
        px, places = registered["pack_codes"](qx.flatten(), x_bits), x.new_empty(0, dtype=torch.uint8)
    if w_block:
        qw, sw, _ = _tokens(w.reshape(-1, w_block), None, w_clip, w_bits, w_signed, w_top)
        pw, e = registered["pack_tokens"](qw, w_bits, w_top)
        qw, w_bits, steps = qw.view(w.shape), w_bits + w_top, sw.expand(1, len(w))
    else:
        qw, sw, e = registered["shift_codes"](w, 0, w_top, w_clip, None, w_bits, w_signed)
        pw, steps = registered["pack_codes"](qw.flatten(), w_bits), (sw * numerics.power_of_two(-e.to(torch.int32))).T
    left, right = (qx, None, x_bits + x_top, x_signed, 0), (qw.T, None, w_bits, w_signed, 0)
    y = registered["scaled_matmul"](*left, *right, sx, steps, bias, half)
    return y, px, sx, places, pw, sw, e


def _tokens(
    x: Tensor, stream: Tensor | None, clip: float, bits: int, signed: bool, top: int, channel_top=0, apart: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes of x with an exponent for each row inside of them, their step, an exponent for each column)."""
    r, shift = registered["shift_exponents"](registered["amax"](x, 1), channel_top, apart)
    r = numerics.clipped(r, clip)
    codes = registered["quantize_tokens"](x, r, shift, stream, bits, signed, top)
    return codes, numerics.step(r, IntFormat(bits, signed)) * 2.0**-top, shift


_SAVED = "Tensor? {0}, Tensor? {0}_scale, int {0}_bits, bool {0}_signed"


def _backward_fake(
    g,
    stream,
    tokens,
    top,
    channel_top,
    apart,
    clip,
    bits,
    inputs,
    sums,
    x,
    x_scale,
    x_bits,
    x_signed,
    x_places,
    x_top,
    w,
    *rest,
):
    rows, outputs = g.shape
    sizes = (
        (rows, inputs) if w is not None else (0,),
        (outputs, inputs) if x is not None else (0,),
        (outputs if sums else 0,),
    )
    dtypes = (float_dtype(rest[6:] == (True,)), torch.float32, torch.float32)
    return tuple(g.new_empty(size, dtype=dtype) for size, dtype in zip(sizes, dtypes, strict=True))


@op(
    "(Tensor g, Tensor? stream, bool tokens, int top, int channel_top, int apart, float clip, int bits, int inputs, "
    "bool sums, "
    f"{_SAVED.format('x')}, Tensor? x_places, int x_top, {_SAVED.format('w')}, Tensor? w_e, int w_top, "
    "int w_block, bool half=False) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
def linear_backward(
    g,
    stream,
    tokens: bool,
    top,
    channel_top,
    apart,
    clip,
    bits,
    inputs,
    sums: bool,
    x,
    x_scale,
    x_bits,
    x_signed,
    x_places,
    x_top,
    w,
    w_scale,
    w_bits,
    w_signed,
    w_e,
    w_top,
    w_block,
    half=False,
):
    """(grad_input, grad_weight, grad_bias), float32, of the gradient g of linear_forward's y.

    half    grad_input is bfloat16

    x, w    packed as linear_forward saves them, or None: then there is no grad_weight, or no grad_input (no elements)
    inputs  I; sums: is grad_bias wanted?
    tokens  do exponents belong to the rows of g, or to its outputs?
    top     the largest exponent; 0: one range for all of g
    channel_top, apart  of tokens: outputs have exponents too, as shift_exponents gives them
    x_places, x_top  those of linear_forward; None: x_top is 0
    w_e, w_top, w_block  linear_forward's exponents of w, at most w_top; None: all are 0, as is w_top
    = shift_codes of g along its outputs or quantize_tokens, scaled_matmul_packed (or unpack_tokens and scaled_matmul),
      channel_sums
    """
    rows, outputs = g.shape
    if tokens:
        q, s, shift = _tokens(g, stream, clip, bits, True, top, channel_top, apart)
        bits, top = bits + top, channel_top
    else:
        q, s, shift = registered["shift_codes"](g, 1, top, clip, stream, bits, True)
    steps = s * numerics.power_of_two(-shift.to(torch.int32))
    grad_input, grad_weight, grad_bias = (g.new_empty(0, dtype=float_dtype(half and not i)) for i in range(3))
    of_g = (q, shift if top else None, bits, True, top)
    if w is not None and w_block:
        blocks = [outputs * inputs // w_block, w_block], [w_block, 1]
        codes = registered["unpack_tokens"](w, w_e, *blocks, w_bits, w_signed, w_top).view(outputs, inputs)
        by = (codes, None, w_bits + w_top, w_signed, 0)
        grad_input = registered["scaled_matmul"](*of_g, *by, s * 2.0**-top, w_scale, None, half)
    elif w is not None:
        right = (w, [outputs, inputs], [inputs, 1], w_e, w_bits, w_signed, w_top)
        s_g = s * 2.0 ** -(top + w_top)
        grad_input = registered["scaled_matmul_packed"](*of_g, *right, s_g, w_scale, None, half)
    if x is not None and x_places is not None:
        codes = registered["unpack_tokens"](x, x_places, [rows, inputs], [inputs, 1], x_bits, x_signed, x_top)
        by = (codes, None, x_bits + x_top, x_signed, 0)
        grad_weight = registered["scaled_matmul"](q.T, None, bits, True, 0, *by, steps.T, x_scale, None)
    elif x is not None:
        right = (x, [rows, inputs], [inputs, 1], None, x_bits, x_signed, 0)
        grad_weight = registered["scaled_matmul_packed"](q.T, None, bits, True, 0, *right, steps.T, x_scale, None)
    if sums:
        grad_bias = registered["channel_sums"](q, bits, True).float() * steps.flatten()
    return grad_input, grad_weight, grad_bias
