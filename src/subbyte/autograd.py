"""The three products of a layer with a weight, forward and backward, written once for every such layer.

    output      = x w          reduces over the input channels
    grad_input  = g w          reduces over the output channels: where ShiftQuant's shift is needed
    grad_weight = g x          reduces over samples (and pixels): there the channels of g are outer

One quantized g serves both gradients; x and w are quantized once, and saved as packed codes. A role whose quantizer is
None stays a float tensor; a product in which a float takes part, or whose contract on scales does not hold (PSQ's
grad_weight, GroupOracle's grad_input), is emulated: the float product of the dequantized operands, recorded as such.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .numerics import draw_stream
from .observe import LayerRecord
from .ops import ContractError
from .products import Operand, Products
from .qtensor import PackedQTensor, QTensor
from .quantizers import Quantizer
from .scheme import LayerScheme

STREAMS = 3
"""64-bit streams that a layer draws for a forward and its backward: for the gradient, the activation, the weight."""


class QuantizedProduct(torch.autograd.Function):
    """output(x, w) + bias with integer products in both directions.

    x, w as in products (w may be a PackedQTensor: it is frozen); bias (O) or None; streams int64 (STREAMS,) or None
    when nothing rounds stochastically; record: the layer's LayerRecord; dtype: of the output. Each gradient has the
    dtype of what it belongs to.
    """

    @staticmethod
    def forward(
        ctx: Any, x, w, bias, products: Products, scheme: LayerScheme, streams, record: LayerRecord, dtype
    ) -> Tensor:
        with ops.recording(record.kernels):
            part = products.part
            qx = quantized(f"{part}activation", x, scheme.activation, streams, 1, record)
            packed = isinstance(w, PackedQTensor)
            qw = ops.unpack(w) if packed else quantized(f"{part}weight", w, scheme.weight, streams, 2, record)
            y = product(f"{part}output", products.output, products.float_output, qx, qw, bias)
            need_x, need_w = ctx.needs_input_grad[:2]
            saver = Saver()
            ctx.x, ctx.w = saver.keep(qx if need_w else None), saver.keep((w if packed else qw) if need_x else None)
            ctx.streams = saver.keep(streams)
            ctx.save_for_backward(*saver.tensors)
        ctx.products, ctx.scheme, ctx.record = products, scheme, record
        ctx.x_like, ctx.w_like = (x.shape, x.dtype), (w.shape, None if packed else w.dtype)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor):
        restore = Restorer(ctx.saved_tensors)
        x, w, streams = restore(ctx.x), restore(ctx.w), restore(ctx.streams)
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        (x_shape, x_dtype), (w_shape, w_dtype) = ctx.x_like, ctx.w_like
        grad_x = grad_w = grad_bias = None
        with ops.recording(ctx.record.kernels):
            p, part = ctx.products, ctx.products.part
            q = quantized(f"{part}gradient", g, ctx.scheme.gradient, streams, 0, ctx.record)
            if need_x:
                grad_x = product(f"{part}grad_input", p.grad_input, p.float_grad_input, q, w, x_shape).to(x_dtype)
            if need_w:
                grad_w = product(f"{part}grad_weight", p.grad_weight, p.float_grad_weight, q, x, w_shape).to(w_dtype)
            if need_bias:
                grad_bias = channel_sum(q).to(ctx.bias_dtype)
        return grad_x, grad_w, grad_bias, None, None, None, None, None


def quantized(role: str, x: Tensor, quantizer: Quantizer | None, streams, which: int, record: LayerRecord) -> Operand:
    """x through its quantizer, measured if the layer is observed; x itself where there is none."""
    if quantizer is None:
        return x
    if quantizer.stochastic and streams is None:  # a layer in eval mode: its forward has drawn nothing
        streams = draw_stream(STREAMS, x.device)
    q = quantizer(x, streams[which] if quantizer.stochastic else None)
    record.measure(role, x, q, quantizer)
    return q


def product(name: str, integer, emulated, a: Operand, b: Operand, extra) -> Tensor:
    """The integer product where one exists; otherwise the float product of dequantized operands, and a record of it."""
    if isinstance(a, QTensor) and isinstance(b, QTensor):
        try:
            y = integer(a, b, extra)
            ops.note(name, "integer")
            return y
        except ContractError:
            ops.note(name, "emulated")
    else:
        ops.note(name, "float" if not isinstance(a, QTensor) and not isinstance(b, QTensor) else "emulated")
    wide = torch.promote_types(_float_dtype(a), _float_dtype(b))
    a, b = _as_float(a, wide), _as_float(b, wide)
    with torch.autocast(a.device.type, enabled=False):
        return emulated(a, b, extra.to(wide) if isinstance(extra, Tensor) else extra)


def channel_sum(g: Operand) -> Tensor:
    """The gradient of a bias: sum of g over all axes but 1. An integer sum of codes, scaled once for each channel."""
    rest = [i for i in range(g.codes.ndim if isinstance(g, QTensor) else g.ndim) if i != 1]
    if not isinstance(g, QTensor):
        return g.sum(rest)
    if any(any(g.varies_along(axis)) for axis in rest):  # a scale for each sample: a sum of floats, in a fixed order
        return g.dequantize(torch.float64).sum(rest).float()
    g = g.fold_shift(0)
    scale = g.scale.flatten()
    return g.codes.sum(rest, dtype=torch.int64).float() * scale


def _float_dtype(t: Operand) -> torch.dtype:
    return torch.float32 if isinstance(t, QTensor) else torch.promote_types(t.dtype, torch.float32)


def _as_float(t: Operand, dtype: torch.dtype) -> Tensor:
    return t.dequantize(dtype) if isinstance(t, QTensor) else t.to(dtype)


# ---------------------------------------------------------------------------------------------- saving for backward


class Saver:
    """Flattens operands into the one list of tensors that autograd wants, so that every checkpointing scheme works.

    keep() returns a recipe; a Restorer over the saved tensors turns it back into the operand. Codes are packed.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def keep(self, value: Operand | PackedQTensor | None) -> tuple | None:
        if value is None:
            return None
        if isinstance(value, (QTensor, PackedQTensor)):
            p = ops.pack(value) if isinstance(value, QTensor) else value
            return (
                "packed",
                self._add(p.packed),
                self._add(p.scale),
                self._add(p.shift),
                p.shape,
                p.stride,
                p.format,
                p.max_shift,
            )
        return "tensor", self._add(value)

    def _add(self, t: Tensor | None) -> int | None:
        if t is None:
            return None
        self.tensors.append(t)
        return len(self.tensors) - 1


class Restorer:
    """The other half of Saver."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __call__(self, recipe: tuple | None) -> Any:
        if recipe is None:
            return None
        kind, *rest = recipe
        if kind == "tensor":
            return self.tensors[rest[0]]
        packed, scale, shift, shape, stride, fmt, max_shift = rest
        e = None if shift is None else self.tensors[shift]
        return ops.unpack(PackedQTensor(self.tensors[packed], shape, stride, self.tensors[scale], fmt, e, max_shift))
