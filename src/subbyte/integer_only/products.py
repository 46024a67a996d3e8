"""Layers with a weight: three integer products, each an accumulator with one power of two.    x (N, C, ...), w (O, ...)

    y  = x w          exponent e_x + e_w
    dx = g w          ShiftQuant's shift of channel o is inside the sum: exponent e_g - E + e_w
    dw = g x          there it is outside: the sums of channel o go left by E - e(o)

The bias is added as integers, and its gradient is a sum of the gradient as it arrives, before it becomes codes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..nn.conv import each
from ..nn.quantized import STATE_SUFFIX
from ..numerics import IntFormat, product_bound
from ..scheme import LayerScheme
from . import carrier, operand
from .carrier import IntTensor
from .operand import Form, Memory, Operand
from .steps import Call

ACTIVATION_EXPONENT = "activation" + STATE_SUFFIX
"""The buffer with the exponent of a layer's Memory."""

_NO_CODES = torch.empty(0, dtype=torch.int8)

_INTEGER = "integer"  # what a layer's record says of a product


def linear(call: Call, x: IntTensor):
    """x (..., I) -> (..., O)."""
    m = call.module
    if x.shape[-1] != m.in_features:
        raise ValueError(f"Linear expects inputs (..., {m.in_features}), not {tuple(x.shape)}")
    flat = x.with_codes(x.codes.reshape(-1, m.in_features))
    y, back = _layer(call, flat, _Matmul())
    before = x.shape

    def backward(g: IntTensor):
        (dx,) = back(g.with_codes(g.codes.reshape(-1, m.out_features)))
        return (None if dx is None else dx.with_codes(dx.codes.reshape(before)),)

    return y.with_codes(y.codes.reshape(*x.shape[:-1], m.out_features)), backward


def conv2d(call: Call, x: IntTensor):
    """x (N, C, H, W) -> (N, O, P, Q)."""
    m = call.module
    if len(x.shape) != 4 or x.shape[1] != m.in_channels:
        raise ValueError(f"Conv2d expects inputs (N, {m.in_channels}, H, W), not {tuple(x.shape)}")
    window = tuple([*each(v, 2)] for v in (m.stride, m.padding, m.dilation))
    return _layer(call, x, _Convolution((*window, m.groups)))


def remember(module: Any) -> None:
    """Give a layer with few bits of activation the buffer of a Memory; its release() drops it."""
    if module.scheme.activation.format.bits <= operand.CLIPPED_BITS:
        module.register_buffer(ACTIVATION_EXPONENT, Memory.empty(module.weight.device))


def refuses(module: Any) -> str:
    """ "" or the setting of a layer that has no integer-only form."""
    scheme: LayerScheme = module.scheme
    if scheme.weight is None or scheme.activation is None or scheme.gradient is None:
        return f"its scheme leaves a role in floats ({scheme})"
    if scheme.gradient_samples > 1:
        return "it takes more than one sample of the gradient"
    for role in ("weight", "activation", "gradient"):
        quantizer = getattr(scheme, role)
        try:
            form = Form.of(quantizer)
        except ValueError as reason:
            return f"{role} is quantized by {quantizer}: {reason}"
        if role != "gradient" and (form.channels > 1 or form.halvings):
            has = "groups of channels, which only a gradient has here"
            if form.halvings:
                has = "a clip of its own; integer-only finds where to clip itself"
            return f"{role} is quantized by {quantizer}: it has {has}"
    if getattr(module, "padding_mode", "zeros") != "zeros" or isinstance(getattr(module, "padding", 0), str):
        return "its padding is not a number of zeros"
    return ""


class _Matmul:
    """The three products of a matrix: x (N, I), w (O, I), g (N, O)."""

    def output(self, x: Operand, w: Operand) -> tuple[Tensor, int]:
        return ops.int_matmul(*x.flat(), *_transposed(w)), x.codes.shape[1]

    def grad_input(self, g: Operand, w: Operand, size: torch.Size) -> tuple[Tensor, int]:
        return ops.int_matmul(*g.flat(), *w.flat()), w.codes.shape[0]

    def grad_weight(self, g: Operand, x: Operand, size: torch.Size) -> Tensor:
        return ops.int_matmul(*_transposed(g), *x.flat())


def _transposed(q: Operand) -> tuple:
    codes, *rest = q.flat()
    return (codes.mT, *rest)


class _Convolution:
    """The three products of a two-dimensional convolution; window: stride, padding, dilation, groups."""

    def __init__(self, window: tuple) -> None:
        self.window = window

    def output(self, x: Operand, w: Operand) -> tuple[Tensor, int]:
        return ops.int_conv2d(*x.flat(), *w.flat(), *self.window), w.codes[0].numel()

    def grad_input(self, g: Operand, w: Operand, size: torch.Size) -> tuple[Tensor, int]:
        length = w.codes.shape[0] // self.window[-1] * w.codes[0, 0].numel()
        return ops.int_conv2d_grad_input(*g.flat(), *w.flat(), list(size), *self.window), length

    def grad_weight(self, g: Operand, x: Operand, size: torch.Size) -> Tensor:
        return ops.int_conv2d_grad_weight(*g.flat(), *x.flat(), list(size), *self.window)


def _layer(call: Call, x: IntTensor, products: _Matmul | _Convolution):
    """y = x w + b with its backward; both kinds of product have their channels on axis 1."""
    m, scheme = call.module, call.module.scheme
    w = carrier.from_float(m.weight)
    exponent = getattr(m, ACTIVATION_EXPONENT, None)
    memory = None if exponent is None else Memory(exponent, m.training)
    qx = operand.quantize(x, Form.of(scheme.activation), memory=memory)
    qw = operand.quantize(w, Form.of(scheme.weight))
    _observe(m, activation=(x, qx), weight=(w, qw))
    sums, length = products.output(qx, qw)
    ops.note("output", _INTEGER)
    y = carrier.carry(sums, qx.exponent + qw.exponent, _bound(qx.format, qw.format, length))
    if m.bias is not None:
        b = carrier.from_float(m.bias)
        y = carrier.add(y, b.with_codes(b.codes.view(1, -1, *[1] * (len(y.shape) - 2))))
    # What the closure below holds is shapes and scales; codes are torch's to keep.
    shape, w_scale, x_scale = x.shape, replace(qw, codes=_NO_CODES), replace(qx, codes=_NO_CODES)
    w_codes = [call.save(t) for t in qw.pack()] if call.keep and call.wanted[0] else None
    x_codes = [call.save(t) for t in qx.pack()] if call.keep and m.weight.requires_grad else None

    def backward(g: IntTensor):
        if m.bias is not None and m.bias.requires_grad:
            others = [i for i in range(len(g.shape)) if i != 1]
            call.gradient("bias", g.codes.to(torch.int64).sum(others), g.exponent)
        qg = operand.quantize(g, Form.of(scheme.gradient), call.stream())
        _observe(m, gradient=(g, qg))
        unit = qg.exponent - qg.max_shift  # of a sum whose operands went left by E - e(o)
        if x_codes is not None:
            # There the channel is outside the sum: its shift is applied afterwards.
            plain = Operand(qg.codes, qg.exponent, qg.format)
            qx = x_scale.unpack(tuple(get() for get in x_codes), shape)
            dw = products.grad_weight(plain, qx, m.weight.shape).to(torch.int64)
            ops.note("grad_weight", _INTEGER)
            if qg.shift is not None:
                left = qg.max_shift - qg.shift.to(torch.int64)
                dw = dw << left.view(-1, *[1] * (dw.ndim - 1))
            call.gradient("weight", dw, unit + x_scale.exponent)
        if w_codes is None:
            return (None,)
        qw = w_scale.unpack(tuple(get() for get in w_codes), m.weight.shape)
        sums, length = products.grad_input(qg, qw, shape)
        ops.note("grad_input", _INTEGER)
        bound = _bound(qg.format, qw.format, length, qg.max_shift)
        return (carrier.carry(sums, unit + qw.exponent, bound),)

    return y, backward


def _observe(module: Any, **operands: tuple[IntTensor, Operand]) -> None:
    """Statistics of operands for report(), in floats; only of a layer that is asked for them."""
    if module.record.armed:
        for role, (t, q) in operands.items():
            module.record.measure(role, carrier.to_float(t), q.as_qtensor(), getattr(module.scheme, role))


def _bound(a: IntFormat, b: IntFormat, length: int, shift: int = 0) -> int:
    return max(1, product_bound(a.qmax, b.qmax, length, shift))
