"""A linear layer, forward and backward, as one op each: quantizers and products.    x (B, I), w (O, I), g (B, O)

They are ops for speed alone: of a layer with few elements, calls are what costs, and codes stay in memory that is used
again. Each equals, bit for bit, the ops that its body names. All matrices are row-major.
"""

from __future__ import annotations

import torch

from .. import numerics
from ..numerics import IntFormat, packed_bytes
from .dispatch import op, registered
from .quantize import WHOLE


def _forward_fake(x, w, bias, x_clip, x_bits, x_signed, w_top, w_clip, w_bits, w_signed):
    saved = []
    for t, bits in ((x, x_bits), (w, w_bits)):
        saved += [t.new_empty(packed_bytes(t.numel(), bits), dtype=torch.uint8), x.new_empty(1, 1, dtype=torch.float32)]
    exponents = w.new_empty(w.shape[0], 1, dtype=torch.uint8)
    return x.new_empty(x.shape[0], w.shape[0], dtype=torch.float32), *saved, exponents


@op(
    "(Tensor x, Tensor w, Tensor? bias, float x_clip, int x_bits, bool x_signed, int w_top, float w_clip, int w_bits,"
    " bool w_signed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_fake,
)
def linear_forward(
    x, w, bias, x_clip: float, x_bits: int, x_signed: bool, w_top: int, w_clip: float, w_bits: int, w_signed: bool
):
    """(y, packed codes of x, their scale, those of w, their scale, exponents of w): y = x w^T + bias, float32 (B, O).

    w_top  the largest exponent of an output of w; 0: one range for all of w
    = absmax_codes of x, shift_codes of w along its outputs, both to nearest, scaled_matmul, pack_codes
    """
    qx, sx = registered["absmax_codes"](x, x_clip, None, x_bits, x_signed)
    qw, sw, shift = registered["shift_codes"](w, 0, w_top, w_clip, None, w_bits, w_signed)
    steps = (sw * numerics.power_of_two(-shift.to(torch.int32))).T
    y = registered["scaled_matmul"](qx, None, x_bits, x_signed, 0, qw.T, None, w_bits, w_signed, 0, sx, steps, bias)
    px, pw = (registered["pack_codes"](q.flatten(), bits) for q, bits in ((qx, x_bits), (qw, w_bits)))
    return y, px, sx, pw, sw, shift


_SAVED = "Tensor? {0}, Tensor? {0}_scale, int {0}_bits, bool {0}_signed"


def _backward_fake(g, stream, tokens, top, clip, bits, inputs, sums, x, x_scale, x_bits, x_signed, w, *_rest):
    rows, outputs = g.shape
    sizes = (
        (rows, inputs) if w is not None else (0,),
        (outputs, inputs) if x is not None else (0,),
        (outputs if sums else 0,),
    )
    return tuple(g.new_empty(size, dtype=torch.float32) for size in sizes)


@op(
    "(Tensor g, Tensor? stream, bool tokens, int top, float clip, int bits, int inputs, bool sums, "
    f"{_SAVED.format('x')}, {_SAVED.format('w')}, Tensor? w_shift, int w_top) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
def linear_backward(
    g,
    stream,
    tokens: bool,
    top,
    clip,
    bits,
    inputs,
    sums: bool,
    x,
    x_scale,
    x_bits,
    x_signed,
    w,
    w_scale,
    w_bits,
    w_signed,
    w_shift,
    w_top,
):
    """(grad_input, grad_weight, grad_bias), float32, of the gradient g of linear_forward's y.

    x, w    packed as linear_forward saves them, or None: then there is no grad_weight, or no grad_input (no elements)
    inputs  I; sums: is grad_bias wanted?
    tokens  do exponents belong to the rows of g (then clip is 1), or to its outputs?
    top     the largest exponent; 0: one range for all of g
    w_shift linear_forward's exponents of w, at most w_top; None: all are 0, as is w_top
    = shift_codes of g along its outputs or quantize_tokens, scaled_matmul_packed, channel_sums
    """
    rows, outputs = g.shape
    if tokens:
        r = registered["amax"](g, WHOLE)
        q = registered["quantize_tokens"](g, r, stream, bits, True, top)
        s = numerics.step(r, IntFormat(bits)) * 2.0**-top
        steps, bits, top, shift = s.expand(1, outputs), bits + top, 0, None
    else:
        q, s, shift = registered["shift_codes"](g, 1, top, clip, stream, bits, True)
        steps = s * numerics.power_of_two(-shift.to(torch.int32))
    grad_input, grad_weight, grad_bias = (g.new_empty(0, dtype=torch.float32) for _ in range(3))
    if w is not None:
        right = (w, [outputs, inputs], [inputs, 1], w_shift, w_bits, w_signed, w_top)
        e, s_g = shift if top else None, s * 2.0 ** -(top + w_top)
        grad_input = registered["scaled_matmul_packed"](q, e, bits, True, top, *right, s_g, w_scale, None)
    if x is not None:
        right = (x, [rows, inputs], [inputs, 1], None, x_bits, x_signed, 0)
        grad_weight = registered["scaled_matmul_packed"](q.T, None, bits, True, 0, *right, steps.T, x_scale, None)
    if sums:
        grad_bias = registered["channel_sums"](q, bits, True).float() * steps.flatten()
    return grad_input, grad_weight, grad_bias
