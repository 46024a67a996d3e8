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


def _forward_fake(x, w, bias, x_clip, x_bits, x_signed, w_clip, w_bits, w_signed):
    saved = []
    for t, bits in ((x, x_bits), (w, w_bits)):
        saved += [t.new_empty(packed_bytes(t.numel(), bits), dtype=torch.uint8), x.new_empty(1, 1, dtype=torch.float32)]
    return x.new_empty(x.shape[0], w.shape[0], dtype=torch.float32), *saved


@op(
    "(Tensor x, Tensor w, Tensor? bias, float x_clip, int x_bits, bool x_signed, float w_clip, int w_bits,"
    " bool w_signed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_fake,
)
def linear_forward(x, w, bias, x_clip: float, x_bits: int, x_signed: bool, w_clip: float, w_bits: int, w_signed: bool):
    """(y, packed codes of x, their scale, those of w, their scale): y = x w^T + bias, float32 (B, O).

    = absmax_codes of x and w, to nearest, scaled_matmul, pack_codes
    """
    qx, sx = registered["absmax_codes"](x, x_clip, None, x_bits, x_signed)
    qw, sw = registered["absmax_codes"](w, w_clip, None, w_bits, w_signed)
    y = registered["scaled_matmul"](qx, None, x_bits, x_signed, 0, qw.T, None, w_bits, w_signed, 0, sx, sw, bias)
    px, pw = (registered["pack_codes"](q.flatten(), bits) for q, bits in ((qx, x_bits), (qw, w_bits)))
    return y, px, sx, pw, sw


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
    f"{_SAVED.format('x')}, {_SAVED.format('w')}) -> (Tensor, Tensor, Tensor)",
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
):
    """(grad_input, grad_weight, grad_bias), float32, of the gradient g of linear_forward's y.

    x, w    packed as linear_forward saves them, or None: then there is no grad_weight, or no grad_input (no elements)
    inputs  I; sums: is grad_bias wanted?
    tokens  do exponents belong to the rows of g (then clip is 1), or to its outputs?
    top     the largest exponent; 0: one range for all of g
    = shift_codes of g along its outputs or quantize_tokens, scaled_matmul_packed, channel_sums
    """
    rows, outputs = g.shape
    if tokens:
        r = registered["amax"](g, WHOLE)
        q = registered["quantize_tokens"](g, r, stream, bits, top)
        s = numerics.step(r, IntFormat(bits)) * 2.0**-top
        steps, bits, top, shift = s.expand(1, outputs), bits + top, 0, None
    else:
        q, s, shift = registered["shift_codes"](g, 1, top, clip, stream, bits, True)
        steps = s * numerics.power_of_two(-shift.to(torch.int32))
    grad_input, grad_weight, grad_bias = (g.new_empty(0, dtype=torch.float32) for _ in range(3))
    if w is not None:
        right = (w, [outputs, inputs], [inputs, 1], None, w_bits, w_signed, 0)
        e = shift if top else None
        grad_input = registered["scaled_matmul_packed"](q, e, bits, True, top, *right, s * 2.0**-top, w_scale, None)
    if x is not None:
        right = (x, [rows, inputs], [inputs, 1], None, x_bits, x_signed, 0)
        grad_weight = registered["scaled_matmul_packed"](q.T, None, bits, True, 0, *right, steps.T, x_scale, None)
    if sums:
        grad_bias = registered["channel_sums"](q, bits, True).float() * steps.flatten()
    return grad_input, grad_weight, grad_bias
