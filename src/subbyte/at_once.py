"""A linear layer's forward and backward as one op each (ops.linear), where its scheme and its tensors allow.

Elsewhere autograd calls one op after the other, with the same result bit for bit. What forward saves is the same too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import ops
from .ops.matmul import check_bias
from .products import MatmulProducts, Products
from .qtensor import PackedQTensor
from .quantizers import AbsMax, Quantizer, ShiftQuant, TokenShiftQuant
from .scheme import LayerScheme


def forward(x: Tensor, w: Any, bias: Tensor | None, products: Products, scheme: LayerScheme):
    """(y, x packed, w packed) of x (B, I), w (O, I); None where the layer is not one for ops.linear_forward."""
    qx, qw = _nearest(scheme.activation), _nearest(scheme.weight)
    if type(products) is not MatmulProducts or qx is None or qw is None or not ops.covered("linear_forward"):
        return None
    if not isinstance(w, Tensor) or not _takes(x) or not _takes(w) or x.shape[1] != w.shape[1]:
        return None
    check_bias(bias, len(w))
    y, px, sx, pw, sw = ops.linear_forward(
        x.detach(), w.detach(), bias, qx.clip, qx.bits, qx.signed, qw.clip, qw.bits, qw.signed
    )
    ops.note("output", "integer")
    return y, *(
        PackedQTensor(p, t.shape, (t.shape[1], 1), s, q.format) for p, t, s, q in ((px, x, sx, qx), (pw, w, sw, qw))
    )


def backward(g: Tensor, x: Any, w: Any, sums: bool, products: Products, scheme: LayerScheme, stream: Callable):
    """(grad_input, grad_weight, grad_bias) of g (B, O); None where g is not one for ops.linear_backward.

    x, w    packed as forward gives them, or None: then there is no grad_weight, or no grad_input
    sums    is grad_bias wanted?
    stream  gives what g is rounded by
    """
    q = scheme.gradient
    if type(products) is not MatmulProducts or scheme.gradient_samples != 1 or not ops.covered("linear_backward"):
        return None
    if type(q) is AbsMax:
        tokens, top, clip = False, 0, q.clip
    elif type(q) is ShiftQuant and q.axis == 1 and q.exponents == "consecutive":
        tokens, top, clip = False, q.max_shift, q.clip
    elif type(q) is TokenShiftQuant:
        tokens, top, clip = True, q.top, 1.0
    else:
        return None
    if not q.signed or not _takes(g) or g.shape[1] == 1 or not _saved(x) or not _saved(w) or x is w:
        return None
    inputs = (w if x is None else x).shape[1]
    found = ops.linear_backward(g, stream(), tokens, top, clip, q.bits, inputs, sums, *_operand(x), *_operand(w))
    for name, operand in (("grad_input", w), ("grad_weight", x)):
        if operand is not None:
            ops.note(name, "integer")
    return found


def _nearest(q: Quantizer | None) -> AbsMax | None:
    """q, if it is one that linear_forward knows."""
    return q if type(q) is AbsMax and not q.stochastic else None


def _takes(t: Tensor) -> bool:
    return t.ndim == 2 and t.is_contiguous() and t.numel() > 0


def _saved(p: Any) -> bool:
    """Is it None, or packed row-major with one scale?"""
    if p is None:
        return True
    return isinstance(p, PackedQTensor) and p.stride == (p.shape[1], 1) and p.scale.numel() == 1 and p.shift is None


def _operand(p: PackedQTensor | None) -> tuple:
    return (None, None, 8, True) if p is None else (p.packed, p.scale, p.format.bits, p.format.signed)
