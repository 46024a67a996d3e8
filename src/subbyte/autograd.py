"""The three products of a layer with a weight, forward and backward, written once for every such layer.

    output      = x w          reduces over the input channels
    grad_input  = g w          reduces over the output channels: where ShiftQuant's shift is needed
    grad_weight = g x          reduces over samples (and pixels): there the channels of g are outer

One quantized g serves both gradients; x and w are quantized once, and saved as packed codes. A role whose quantizer is
None stays a float tensor; a product in which a float takes part, or whose contract on scales does not hold (PSQ's
grad_weight, GroupOracle's grad_input), is emulated: the float product of the dequantized operands, recorded as such.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import at_once, ops
from .numerics import draw_stream
from .observe import LayerRecord
from .ops import ContractError
from .products import Products
from .qtensor import Emulated, PackedQTensor, QTensor
from .quantizers import Quantizer
from .scheme import LayerScheme

Operand = QTensor | Emulated | Tensor
"""What a quantizer makes of a tensor; the tensor itself where a role has no quantizer."""

STREAMS = 3
"""64-bit streams that a layer draws for a forward and its backward: for the gradient, the activation, the weight.

More samples of the gradient (LayerScheme.gradient_samples) take those after them.
"""


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
            packed = isinstance(w, PackedQTensor)
            half = dtype is torch.bfloat16
            found = None if record.armed else at_once.forward(x, w, bias, products, scheme, half)
            if found is None:
                qx = quantized(f"{part}activation", x, scheme.activation, streams, 1, record)
                qw = ops.unpack(w) if packed else quantized(f"{part}weight", w, scheme.weight, streams, 2, record)
                output = partial(products.output, half=half)
                y = product(f"{part}output", output, products.float_output, qx, qw, bias)
            else:
                y, qx, qw = found
            need_x, need_w = ctx.needs_input_grad[:2]
            saver = Saver()
            ctx.source_x = saver.keep_source(x, qx, scheme.activation)
            ctx.source_w = saver.keep_source(w, qw, scheme.weight) if need_w else None
            need_x = need_x or ctx.source_x is not None
            ctx.x, ctx.w = saver.keep(qx if need_w else None), saver.keep((w if packed else qw) if need_x else None)
            ctx.streams = saver.keep(streams)
            ctx.save_for_backward(*saver.tensors)
        ctx.products, ctx.scheme, ctx.record = products if packed else products.of_weight(w), scheme, record
        ctx.x_like, ctx.w_like = (x.shape, x.dtype), (w.shape, None if packed else w.dtype)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor):
        restore = Restorer(ctx.saved_tensors)
        operand = restore.packed if ctx.products.packed else restore
        x, w, streams = operand(ctx.x), operand(ctx.w), restore(ctx.streams)
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        need_x = need_x or ctx.source_x is not None
        (x_shape, x_dtype), (w_shape, w_dtype) = ctx.x_like, ctx.w_like
        grad_x: Any = None
        grad_w: Any = None
        grad_bias: Any = None
        half = x_dtype is torch.bfloat16
        with ops.recording(ctx.record.kernels):
            p, part = ctx.products, ctx.products.part
            found = None
            if not ctx.record.armed:
                stream = partial(stream_of, ctx.scheme.gradient, streams, 0, g.device)
                operands = (x if need_w else None, w if need_x else None)
                found = at_once.backward(g, *operands, need_bias, p, ctx.scheme, stream, half)
            if found is None:
                samples = gradient_samples(f"{part}gradient", g, ctx.scheme, streams, ctx.record)
                if need_x:
                    grad_input = partial(p.grad_input, half=half)
                    grad_x = product(f"{part}grad_input", grad_input, p.float_grad_input, samples[0], w, x_shape)
                if need_w:
                    name = f"{part}grad_weight"
                    grad_w = mean([product(name, p.grad_weight, p.float_grad_weight, q, x, w_shape) for q in samples])
                if need_bias:
                    grad_bias = mean([channel_sum(q) for q in samples])
            else:
                grad_x, grad_w, grad_bias = found
            if need_x:
                grad_x = learned(ctx.scheme.activation, restore, ctx.source_x, grad_x).to(x_dtype)
            if need_w:
                grad_w = learned(ctx.scheme.weight, restore, ctx.source_w, grad_w).to(w_dtype)
            if need_bias:
                grad_bias = grad_bias.to(ctx.bias_dtype)
        wanted = (need_x, need_w, need_bias)
        grads = (g if need else None for g, need in zip((grad_x, grad_w, grad_bias), wanted, strict=True))
        return *grads, None, None, None, None, None


def quantized(role: str, x: Tensor, quantizer: Quantizer | None, streams, which: int, record: LayerRecord) -> Operand:
    """x through its quantizer, measured if the layer is observed; x itself where there is none."""
    if quantizer is None:
        return x
    q = quantizer(x, stream_of(quantizer, streams, which, x.device))
    record.measure(role, x, q, quantizer)
    return q


def stream_of(quantizer: Quantizer | None, streams, which: int, device: torch.device) -> Tensor | None:
    """The stream that a quantizer rounds by, None for one to nearest."""
    if quantizer is None or not quantizer.stochastic:
        return None
    if streams is None:  # a layer in eval mode: its forward has drawn nothing
        streams = draw_stream(max(STREAMS, which + 1), device)
    return streams[which]


def gradient_samples(role: str, g: Tensor, scheme: LayerScheme, streams, record: LayerRecord) -> list[Operand]:
    """g quantized scheme.gradient_samples times, by independent streams; the first serves every product.

    Products with the weight's gradient are averaged over all (`mean`): rounding then adds 1 / n of the variance. Each
    is an integer product where that of one sample is. Source: SMP of LUQ, Chmiel et al., arXiv 2112.10769.
    """
    which = [0, *range(STREAMS, STREAMS + scheme.gradient_samples - 1)]
    return [quantized(role, g, scheme.gradient, streams, i, record) for i in which]


def mean(samples: list[Tensor]) -> Tensor:
    """Their sum, in order, over their number."""
    return samples[0] if len(samples) == 1 else sum(samples[1:], samples[0]) / len(samples)


def learned(quantizer: Quantizer | None, restore: Restorer, source: tuple | None, grad: Tensor) -> Tensor:
    """The gradient as a quantizer that learns passes it on; any other is straight-through."""
    if source is None or quantizer is None:
        return grad
    x, scale = (restore(s) for s in source)
    return quantizer.backward(x, scale, grad)


def kind(q: Operand) -> str:
    """How what is made of q alone is recorded: "integer", "emulated" or "float"."""
    return "integer" if isinstance(q, QTensor) else "emulated" if isinstance(q, Emulated) else "float"


def product(name: str, integer, emulated, a: Operand, b: Operand | PackedQTensor, extra) -> Tensor:
    """The integer product where one exists; otherwise the float product of dequantized operands, and a record of it."""
    if isinstance(a, QTensor) and isinstance(b, (QTensor, PackedQTensor)):
        try:
            y = integer(a, b, extra)
            ops.note(name, "integer")
            return y
        except ContractError:
            ops.note(name, "emulated")
    else:
        ops.note(name, "float" if isinstance(a, Tensor) and isinstance(b, Tensor) else "emulated")
    b = ops.unpack(b) if isinstance(b, PackedQTensor) else b
    wide = torch.promote_types(_float_dtype(a), _float_dtype(b))
    a, b = _as_float(a, wide), _as_float(b, wide)
    with torch.autocast(a.device.type, enabled=False):
        return emulated(a, b, extra.to(wide) if isinstance(extra, Tensor) else extra)


def channel_sum(g: Operand) -> Tensor:
    """The gradient of a bias: sum of g over all axes but 1. An integer sum of codes, scaled once for each channel."""
    rest = [i for i in range(len(g.shape)) if i != 1]
    if not isinstance(g, QTensor):
        return (g.values if isinstance(g, Emulated) else g).sum(rest)
    if any(g.varies_along(axis)[0] for axis in rest):  # a scale for each sample: a sum of floats, in a fixed order
        return g.dequantize(torch.float64).sum(rest).float()
    if g.shift is not None and any(g.varies_along(axis)[1] for axis in rest):
        power = torch.bitwise_left_shift(1, g.max_shift - g.shift.to(torch.int64))
        return (g.codes * power).sum(rest).float() * (g.scale.flatten() * 2.0**-g.max_shift)
    g = g.fold_shift(0)
    return ops.channel_sums(g.codes, g.format.bits, g.format.signed).float() * g.scale.flatten()


def _float_dtype(t: Operand) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32) if isinstance(t, Tensor) else torch.float32


def _as_float(t: Operand, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if isinstance(t, Tensor) else t.dequantize(dtype)


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
                self._add(p.places),
                p.shape,
                p.stride,
                p.format,
                p.max_shift,
                p.inside,
            )
        if isinstance(value, Emulated):
            return "emulated", self._add(value.values), value.format
        return "tensor", self._add(value)

    def keep_source(self, x: Any, q: Operand, quantizer: Quantizer | None) -> tuple | None:
        """x and its scale, for a quantizer that learns from the gradient of x; None for any other."""
        if quantizer is None or not quantizer.learns or not isinstance(q, QTensor) or not isinstance(x, Tensor):
            return None
        return self.keep(x), self.keep(q.scale)

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
        value = self.packed(recipe)
        return ops.unpack(value) if isinstance(value, PackedQTensor) else value

    def packed(self, recipe: tuple | None) -> Any:
        """The operand, its codes still packed."""
        if recipe is None:
            return None
        kind, *rest = recipe
        if kind == "tensor":
            return self.tensors[rest[0]]
        if kind == "emulated":
            return Emulated(self.tensors[rest[0]], rest[1])
        packed, scale, shift, places, shape, stride, fmt, max_shift, inside = rest
        e, s = (None if i is None else self.tensors[i] for i in (shift, places))
        return PackedQTensor(self.tensors[packed], shape, stride, self.tensors[scale], fmt, e, max_shift, inside, s)
