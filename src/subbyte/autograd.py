"""The three products of a layer with a weight, forward and backward, written once for every such layer.

    output      = x w          reduces over the input channels
    grad_input  = g w          reduces over the output channels: where ShiftQuant's shift is needed
    grad_weight = g x          reduces over samples (and pixels): there the channels of g are outer

One quantized g serves both gradients; x and w are quantized once, and saved as packed codes. A role whose quantizer is
None stays a float tensor; a product in which a float takes part, or whose contract on scales does not hold (PSQ's
grad_weight, GroupOracle's grad_input), is emulated: the float product of the dequantized operands, recorded as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from . import ops
from .numerics import draw_stream
from .observe import LayerRecord
from .ops import ContractError, ConvParams
from .qtensor import PackedQTensor, QTensor
from .quantizers import Quantizer
from .scheme import LayerScheme

Operand = QTensor | Tensor

STREAMS = 3
"""64-bit streams that a layer draws for a forward and its backward: for the gradient, the activation, the weight."""


class Products(Protocol):
    """The three products of one kind of layer, on codes and (for emulation) on floats."""

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None) -> Tensor: ...
    def grad_input(self, g: QTensor, w: QTensor, x_shape: Sequence[int]) -> Tensor: ...
    def grad_weight(self, g: QTensor, x: QTensor, w_shape: Sequence[int]) -> Tensor: ...
    def float_output(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor: ...
    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: Sequence[int]) -> Tensor: ...
    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True)
class MatmulProducts:
    """x (B, I), w (O, I), g (B, O)."""

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None) -> Tensor:
        return ops.matmul(x, w.T, bias)

    def grad_input(self, g: QTensor, w: QTensor, x_shape: Sequence[int]) -> Tensor:
        return ops.matmul(g, w)

    def grad_weight(self, g: QTensor, x: QTensor, w_shape: Sequence[int]) -> Tensor:
        return ops.matmul(g.T, x)

    def float_output(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, w, bias)

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: Sequence[int]) -> Tensor:
        return g @ w

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: Sequence[int]) -> Tensor:
        return g.T @ x


@dataclass(frozen=True)
class ConvProducts:
    """x (N, C, H, W), w (O, C/groups, R, S), g (N, O, P, Q); one, two or three spatial dimensions."""

    params: ConvParams

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None) -> Tensor:
        return ops.conv2d(x, w, bias, self.params)

    def grad_input(self, g: QTensor, w: QTensor, x_shape: Sequence[int]) -> Tensor:
        return ops.conv2d_grad_input(g, w, x_shape, self.params)

    def grad_weight(self, g: QTensor, x: QTensor, w_shape: Sequence[int]) -> Tensor:
        return ops.conv2d_grad_weight(g, x, w_shape, self.params)

    def float_output(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        p = self.params
        return torch.convolution(x, w, bias, p.stride, p.padding, p.dilation, False, [0] * p.spatial, p.groups)

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: Sequence[int]) -> Tensor:
        return self._float_backward(g, g.new_zeros(()).expand(x_shape), w, 0)

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: Sequence[int]) -> Tensor:
        return self._float_backward(g, x, g.new_zeros(()).expand(w_shape), 1)

    def _float_backward(self, g: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        """The gradient of x (which = 0) or of w (1); the other one's values alone take part."""
        if g.numel() == 0:
            return torch.zeros_like((x, w)[which], memory_format=torch.contiguous_format)
        p, mask = self.params, [which == 0, which == 1, False]
        args = (p.stride, p.padding, p.dilation, False, [0] * p.spatial, p.groups, mask)
        return torch.ops.aten.convolution_backward(g, x, w, None, *args)[which]


@dataclass(frozen=True)
class TransposedConvProducts:
    """A transposed convolution: the products of a convolution in other roles, since its x is that one's g.

    x (N, I, H, W), w (O, I/groups, R, S), g and y (N, O, P, Q): output channels first, as in every other layer, so that
    an axis of a quantizer means the same; torch keeps this weight as (I, O/groups, R, S).

    params  of the convolution that this one transposes
    size    (P, Q): stride, padding and dilation leave a choice (torch's output_padding)
    """

    params: ConvParams
    size: tuple[int, ...]

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None) -> Tensor:
        return self._output(self._conv.grad_input, x, w, bias)

    def grad_input(self, g: QTensor, w: QTensor, x_shape: Sequence[int]) -> Tensor:
        return self._grad_input(self._conv.output, g, w, x_shape)

    def grad_weight(self, g: QTensor, x: QTensor, w_shape: Sequence[int]) -> Tensor:
        return self._grad_weight(self._conv.grad_weight, g, x, w_shape)

    def float_output(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return self._output(self._conv.float_grad_input, x, w, bias)

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: Sequence[int]) -> Tensor:
        return self._grad_input(self._conv.float_output, g, w, x_shape)

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: Sequence[int]) -> Tensor:
        return self._grad_weight(self._conv.float_grad_weight, g, x, w_shape)

    @property
    def _conv(self) -> ConvProducts:
        return ConvProducts(self.params)

    def _output(self, product: Callable, x: Operand, w: Operand, bias: Tensor | None) -> Tensor:
        y = product(self._reach(x, w.shape), self._swapped(w), (x.shape[0], w.shape[0], *self.size))
        return y if bias is None else y + bias.to(y.dtype).view(1, -1, *[1] * self.params.spatial)

    def _grad_input(self, product: Callable, g: Operand, w: Operand, x_shape: Sequence[int]) -> Tensor:
        dx = product(g, self._swapped(w), None)
        return dx[tuple(slice(0, n) for n in x_shape)]

    def _grad_weight(self, product: Callable, g: Operand, x: Operand, w_shape: Sequence[int]) -> Tensor:
        swapped = (x.shape[1], w_shape[0] // self.params.groups, *w_shape[2:])
        return swap_channels(product(self._reach(x, w_shape), g, swapped), self.params.groups)

    def _reach(self, x: Operand, w_shape: Sequence[int]) -> Operand:
        """x with zeros after it where an output_padding of a stride or more (dilated kernels) leaves room for them."""
        full = self.params.output_size((0, 0, *self.size), (0, 0, *w_shape[2:]))[2:]
        missing = [n - have for n, have in zip(full, x.shape[2:], strict=True)]
        if not any(missing):
            return x
        pads = [p for m in reversed(missing) for p in (0, m)]
        if isinstance(x, QTensor):
            return replace(x, codes=torch.nn.functional.pad(x.codes, pads))
        return torch.nn.functional.pad(x, pads)

    def _swapped(self, w: Operand) -> Operand:
        """w as that convolution has it: (I, O/groups, R, S)."""
        groups = self.params.groups
        if isinstance(w, Tensor):
            return swap_channels(w, groups)
        if groups > 1 and w.varies_along(0)[1]:
            w = w.fold_shift(1)  # a shift for each output channel would run along two axes
        scale, inner = w.scale, w.shape[1]
        if groups > 1 and scale.shape[0] > 1:
            scale = scale.expand(-1, inner, *scale.shape[2:])
        parts = (None if t is None else _swap_small(t, groups) for t in (scale, w.shift))
        scale, shift = cast(tuple[Tensor, Tensor | None], tuple(parts))
        return replace(w, codes=swap_channels(w.codes, groups), scale=scale, shift=shift)


def swap_channels(w: Tensor, groups: int) -> Tensor:
    """(groups A, B, ...) -> (groups B, A, ...): a transposed convolution's weight to and from output channels first."""
    if groups == 1:
        return w.transpose(0, 1)
    return w.unflatten(0, (groups, w.shape[0] // groups)).transpose(1, 2).flatten(0, 1)


def _swap_small(t: Tensor, groups: int) -> Tensor:
    """swap_channels of a scale or shift, which may have one entry for all of an axis."""
    if t.shape[0] == 1 and t.shape[1] > 1 and groups > 1:
        t = t.expand(groups, *t.shape[1:])  # the same in every group
    return t.transpose(0, 1) if t.shape[0] == 1 else swap_channels(t, groups)


class QuantizedProduct(torch.autograd.Function):
    """output(x, w) + bias with integer products in both directions.

    x, w as in products; bias (O) or None; streams int64 (STREAMS,) or None when nothing rounds stochastically; record:
    the layer's LayerRecord; dtype: of the output. Each gradient has the dtype of what it belongs to.
    """

    @staticmethod
    def forward(
        ctx: Any, x, w, bias, products: Products, scheme: LayerScheme, streams, record: LayerRecord, dtype
    ) -> Tensor:
        with ops.recording(record.kernels):
            qx = quantized("activation", x, scheme.activation, streams, 1, record)
            qw = quantized("weight", w, scheme.weight, streams, 2, record)
            y = product("output", products.output, products.float_output, qx, qw, bias)
            need_x, need_w = ctx.needs_input_grad[:2]
            saver = Saver()
            ctx.x, ctx.w = saver.keep(qx if need_w else None), saver.keep(qw if need_x else None)
            ctx.streams = saver.keep(streams)
            ctx.save_for_backward(*saver.tensors)
        ctx.products, ctx.scheme, ctx.record = products, scheme, record
        ctx.x_like, ctx.w_like = (x.shape, x.dtype), (w.shape, w.dtype)
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
            q = quantized("gradient", g, ctx.scheme.gradient, streams, 0, ctx.record)
            p = ctx.products
            if need_x:
                grad_x = product("grad_input", p.grad_input, p.float_grad_input, q, w, x_shape).to(x_dtype)
            if need_w:
                grad_w = product("grad_weight", p.grad_weight, p.float_grad_weight, q, x, w_shape).to(w_dtype)
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

    def keep(self, value: Operand | None) -> tuple | None:
        if value is None:
            return None
        if isinstance(value, QTensor):
            p = ops.pack(value)
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
