"""A linear layer's forward and backward as one op each (ops.linear), where its scheme and its tensors allow.

Elsewhere autograd calls one op after the other, with the same result bit for bit. What forward saves is the same too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import ops
from .numerics import IntFormat
from .ops.matmul import check_bias
from .products import MatmulProducts, Products
from .qtensor import Inside, PackedQTensor
from .quantizers import AbsMax, BlockShiftQuant, Quantizer, ShiftQuant, TokenShiftQuant
from .scheme import LayerScheme


def forward(x: Tensor, w: Any, bias: Tensor | None, products: Products, scheme: LayerScheme, half: bool = False):
    """(y, x packed, w packed) of x (B, I), w (O, I), y in bfloat16 if half.

    None where the layer is not one for ops.linear_forward.
    """
    qx, qw = scheme.activation, scheme.weight
    w_top, w_inside = _largest_exponent(qw, 0), None
    if isinstance(qw, BlockShiftQuant) and not qw.shifts and isinstance(w, Tensor):
        w_inside = qw.inside_of(w)
        w_top = w_inside.top if w_inside else None
    if type(qx) not in (AbsMax, TokenShiftQuant) or qw is None or w_top is None:
        return None
    assert isinstance(qx, AbsMax | TokenShiftQuant)
    assert isinstance(qw, AbsMax | ShiftQuant | BlockShiftQuant)
    if (
        qx.shifts
        or qx.stochastic
        or qw.stochastic
        or type(products) is not MatmulProducts
        or not ops.covered("linear_forward")
    ):
        return None
    if not isinstance(w, Tensor) or not _takes(x) or not _takes(w) or x.shape[1] != w.shape[1]:
        return None
    check_bias(bias, len(w))
    x_inside = qx.inside if isinstance(qx, TokenShiftQuant) else None
    x_top, w_block = x_inside.top if x_inside else 0, w_inside.block if w_inside else 0
    y, px, sx, places, pw, sw, e = ops.linear_forward(
        *(x.detach(), w.detach(), bias, x_top, qx.clip, qx.bits, qx.signed),
        *(w_top, w_block, qw.clip, qw.bits, qw.signed, half),
    )
    ops.note("output", "integer")
    shift = (e, w_top) if isinstance(qw, ShiftQuant) else (None, 0)
    return y, _packed(px, x, sx, qx, x_inside, places), _packed(pw, w, sw, qw, w_inside, e, *shift)


def backward(
    g: Tensor, x: Any, w: Any, sums: bool, products: Products, scheme: LayerScheme, stream: Callable, half: bool = False
):
    """(grad_input, grad_weight, grad_bias) of g (B, O); None where g is not one for ops.linear_backward.

    x, w    packed as forward gives them, or None: then there is no grad_weight, or no grad_input
    sums    is grad_bias wanted?
    stream  gives what g is rounded by
    half    is grad_input to be bfloat16?
    """
    q = scheme.gradient
    if type(products) is not MatmulProducts or scheme.gradient_samples != 1 or not ops.covered("linear_backward"):
        return None
    tokens, top, channels = False, _largest_exponent(q, 1), (0, 0)
    if isinstance(q, TokenShiftQuant):
        tokens, top, channels = True, q.top, (q.channel_groups - 1, q.channels_apart)
    if q is None or top is None or not q.signed or not _takes(g) or g.shape[1] == 1 or x is w:
        return None
    if not _saved(x, False) or not _saved(w, True):
        return None
    clip = getattr(q, "clip", 1.0)
    of_x = (x.places, x.inside.top) if x and x.inside else (None, 0)
    of_w = (None, 0, 0)
    if w:
        of_w = (w.places, w.inside.top, w.inside.block) if w.inside else (w.shift, w.max_shift, 0)
    inputs = (w if x is None else x).shape[1]
    found = ops.linear_backward(
        *(g, stream(), tokens, top, *channels, clip, q.bits, inputs, sums),
        *(*_operand(x), *of_x, *_operand(w), *of_w, half),
    )
    for name, operand in (("grad_input", w), ("grad_weight", x)):
        if operand is not None:
            ops.note(name, "integer")
    return found


def _packed(
    codes: Tensor, t: Tensor, scale: Tensor, q: Quantizer, inside: Inside | None, places, shift=None, max_shift: int = 0
) -> PackedQTensor:
    """t, row-major, as the op packed it."""
    fmt = IntFormat(q.bits + (inside.top if inside else 0), q.signed)
    places = places if inside else None
    return PackedQTensor(codes, t.shape, (t.shape[1], 1), scale, fmt, shift, max_shift, inside, places)


def _largest_exponent(q: Quantizer | None, axis: int) -> int | None:
    """Of an index of the axis, 0 where q has one range for all; None for a quantizer that the ops don't know."""
    if type(q) is ShiftQuant and q.axis == axis and q.exponents == "consecutive":
        return q.max_shift
    return 0 if type(q) is AbsMax else None


def _takes(t: Tensor) -> bool:
    return t.ndim == 2 and t.is_contiguous() and t.numel() > 0


def _saved(p: Any, by_row: bool) -> bool:
    """Is it None, or packed row-major with one scale? by_row: rows may have a shift each, or blocks exponents."""
    if p is None:
        return True
    if not isinstance(p, PackedQTensor) or p.stride != (p.shape[1], 1) or p.scale.numel() != 1:
        return False
    if p.inside and (by_row != (p.inside.block > 0) or p.shift is not None):
        return False
    return p.shift is None or (by_row and p.shift.shape == (p.shape[0], 1))


def _operand(p: PackedQTensor | None) -> tuple:
    return (None, None, 8, True) if p is None else (p.packed, p.scale, p.code_bits, p.format.signed)
