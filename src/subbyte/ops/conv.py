"""conv2d and its two gradients on codes.    x (N, C, H, W), w (O, C/groups, R, S), g (N, O, P, Q)

The names are of the common case: one and three spatial dimensions work as well. The ops take two or three of them; one
is a height of 1, so that it gets the kernels of two.

Each is one product of integers with a scale outside: conv2d reduces over C R S, grad_input over O R S, grad_weight
over N P Q. The contract on scales is matmul's. With groups = C (depthwise) a channel is its own reduction, so a
scale for each channel is an outer factor in all three products; with 1 < groups < C it must be constant within a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..numerics import IntFormat, product_bound
from ..qtensor import QTensor
from . import exact
from .chain import masked
from .dispatch import op, registered
from .matmul import ContractError, check_bias

CHANNEL = 1
"""The axis of channels in x, g and y."""

Sizes = tuple[int, ...]
"""A number for each spatial dimension: (height, width) of images."""


@dataclass(frozen=True)
class ConvParams:
    """Stride, padding, dilation (of each spatial dimension) and groups, as torch.nn.Conv2d defines them."""

    stride: Sizes = (1, 1)
    padding: Sizes = (0, 0)
    dilation: Sizes = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        if not len(self.stride) == len(self.padding) == len(self.dilation):
            raise ValueError(f"stride, padding and dilation have a number for each spatial dimension, not {self}")

    @property
    def spatial(self) -> int:
        """How many spatial dimensions: 1, 2 or 3."""
        return len(self.stride)

    def output_size(self, x_shape: Sequence[int], w_shape: Sequence[int]) -> Sizes:
        """(N, O, P, Q), P = floor((H + 2 padding - dilation (R - 1) - 1) / stride) + 1. ValueError if it is empty."""
        spatial = []
        for i in range(self.spatial):
            reach = self.dilation[i] * (w_shape[2 + i] - 1) + 1
            free = x_shape[2 + i] + 2 * self.padding[i] - reach
            if free < 0:
                raise ValueError(
                    f"kernel of reach {reach} exceeds the padded input {tuple(x_shape)}, padding {self.padding}"
                )
            spatial.append(free // self.stride[i] + 1)
        return (x_shape[0], w_shape[0], *spatial)

    def with_height(self) -> ConvParams:
        """Those of a convolution over one dimension, for operands with a height of 1."""
        return ConvParams((1, *self.stride), (0, *self.padding), (1, *self.dilation), self.groups)

    def flat(self) -> tuple[list[int], list[int], list[int], int]:
        """(stride, padding, dilation, groups), as the ops' schemas take them."""
        return list(self.stride), list(self.padding), list(self.dilation), self.groups


_PAIR = (
    "Tensor a, Tensor? a_shift, int a_bits, bool a_signed, int a_max_shift, "
    "Tensor b, Tensor? b_shift, int b_bits, bool b_signed, int b_max_shift, "
    "Tensor scale, {extra}int[] stride, int[] padding, int[] dilation, int groups"
)
_OUTPUT, _GRADIENT = (_PAIR.format(extra=extra) + ", bool half=False)" for extra in ("Tensor? bias, ", "int[] size, "))
_GRAD_WEIGHT = _PAIR.format(extra="int[] size, ") + ", bool channels_last=False)"


def _scaled_conv2d_fake(a, *args):
    b, (stride, padding, dilation, groups), half = args[4], args[11:15], args[15:] == (True,)
    params = ConvParams(tuple(stride), tuple(padding), tuple(dilation), groups)
    return _like(a, params.output_size(a.shape, b.shape), half)


@op(f"({_OUTPUT} -> Tensor", _scaled_conv2d_fake)
def scaled_conv2d(
    a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, scale, bias, stride, padding, dilation, groups, half=False
):
    """y = float32(acc) * scale + bias, acc = conv(x, w) << E_a + E_b. a = x, b = w; scale broadcasts to y; bias (O).

    half  y is bfloat16
    """
    acc = output_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, stride, padding, dilation, groups)
    bias = None if bias is None else bias.view(1, -1, *[1] * len(stride))
    return exact.epilogue(acc, scale, bias, half).contiguous(memory_format=memory_format(a))


def output_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, stride, padding, dilation, groups) -> Tensor:
    """acc of scaled_conv2d, exact in a float dtype or int64."""
    unit = _unit(a_b, a_s, a_e, b_b, b_s, b_e) * math.prod(b.shape[2:])
    width = b.shape[1]
    dtype, limit = _dtype(unit, a.device)
    x, w = exact.shifted(a, a_sh, a_e, dtype), exact.shifted(b, b_sh, b_e, dtype)

    def part(cs: slice) -> Tensor:
        xs = _of_each_group(x, 1, groups, cs)
        ws = _of_each_group(w, 1, 1, cs)
        return torch.convolution(xs, ws, None, stride, padding, dilation, False, [0] * len(stride), groups)

    return exact.chunked_sum(width, unit, limit, part)


def _grad_input_fake(a, *args):
    return _like(a, args[10], args[15:] == (True,))


@op(f"({_GRADIENT} -> Tensor", _grad_input_fake)
def scaled_conv2d_grad_input(
    a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, scale, size, stride, padding, dilation, groups, half=False
):
    """dx = float32(acc) * scale, acc = conv_transpose(g, w) << E_a + E_b. a = g, b = w, size = x's shape.

    half  dx is bfloat16
    """
    acc = grad_input_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups)
    return exact.epilogue(acc, scale, None, half).contiguous(memory_format=memory_format(a))


def grad_input_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups) -> Tensor:
    """acc of scaled_conv2d_grad_input, exact in a float dtype or int64."""
    unit = _unit(a_b, a_s, a_e, b_b, b_s, b_e) * math.prod(b.shape[2:])
    width = b.shape[0] // groups
    dtype, limit = _dtype(unit, a.device)
    g, w = exact.shifted(a, a_sh, a_e, dtype), exact.shifted(b, b_sh, b_e, dtype)

    def part(os: slice) -> Tensor:
        gs, ws = _of_each_group(g, 1, groups, os), _of_each_group(w, 0, groups, os)
        return _backward(gs, gs.new_zeros(()).expand(size), ws, stride, padding, dilation, groups, 0)

    return exact.chunked_sum(width, unit, limit, part)


def _grad_weight_fake(a, *args):
    size, channels_last = args[10], args[15:] == (True,)
    return a.new_empty(size, dtype=torch.float32).contiguous(memory_format=_format(len(size), channels_last))


@op(f"({_GRAD_WEIGHT} -> Tensor", _grad_weight_fake)
def scaled_conv2d_grad_weight(
    a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, scale, size, stride, padding, dilation, groups, channels_last=False
):
    """dw = float32(acc) * scale, acc = sum_n conv(x_n, g_n) << E_a + E_b. a = g, b = x, size = w's shape.

    channels_last  how dw lies in memory, whatever the operands do
    """
    acc = grad_weight_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups)
    return exact.epilogue(acc, scale, None).contiguous(memory_format=_format(acc.ndim, channels_last))


def grad_weight_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups) -> Tensor:
    """acc of scaled_conv2d_grad_weight, exact in a float dtype or int64."""
    unit = _unit(a_b, a_s, a_e, b_b, b_s, b_e) * math.prod(a.shape[2:])
    dtype, limit = _dtype(unit, a.device)
    g, x = exact.shifted(a, a_sh, a_e, dtype), exact.shifted(b, b_sh, b_e, dtype)

    def part(ns: slice) -> Tensor:
        return _backward(g[ns], x[ns], g.new_zeros(()).expand(size), stride, padding, dilation, groups, 1)

    return exact.chunked_sum(a.shape[0], unit, limit, part)


def _with_range_fake(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, y.new_empty([n if i == CHANNEL else 1 for i, n in enumerate(y.shape)], dtype=torch.float32)


@op(f"({_OUTPUT} -> (Tensor, Tensor)", lambda *args: _with_range_fake(_scaled_conv2d_fake(*args)))
def scaled_conv2d_amax(*args) -> tuple[Tensor, Tensor]:
    """(y, r): y = scaled_conv2d(args), r = amax(y, 1), which a kernel finds while it stores y."""
    return _with_range(registered["scaled_conv2d"](*args))


@op(
    f"({_PAIR.format(extra='int[] size, ')}, Tensor g, Tensor mask) -> Tensor",
    lambda a, *args: _like(a, args[10], exact.is_half(args[-2])),
)
def scaled_conv2d_grad_input_plus(*args) -> Tensor:
    """dx + h: dx = scaled_conv2d_grad_input(args but for two), h = g where the mask passes and 0 elsewhere.

    g     float32 or bfloat16, which dx is then too, of dx's shape: a gradient that the input of the convolution gets
          besides, behind a ReLU
    mask  a bit an element, as ops.chain packs it in g's memory order; empty: all pass
    """
    *product, g, mask = args
    return registered["scaled_conv2d_grad_input"](*product, exact.is_half(g)) + masked(g, mask)


def _with_range(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, registered["amax"](y, CHANNEL)


def _backward(g, x, w, stride, padding, dilation, groups, which: int) -> Tensor:
    if g.numel() == 0:
        return torch.zeros((x if which == 0 else w).shape, dtype=g.dtype, device=g.device)
    mask, none = [which == 0, which == 1, False], [0] * len(stride)
    # x or w stands in for its shape alone where its own gradient is wanted.
    return torch.ops.aten.convolution_backward(g, x, w, None, stride, padding, dilation, False, none, groups, mask)[
        which
    ]


def _of_each_group(t: Tensor, axis: int, groups: int, inner: slice) -> Tensor:
    """The slice `inner` of the channels of each group along `axis`, dense.

    A view of one channel of a channels_last weight makes oneDNN's float32 convolution wrong (torch 2.13).
    """
    if inner == slice(0, t.shape[axis] // groups):
        return t
    at = [slice(None)] * (axis + 1) + [inner]
    return t.unflatten(axis, (groups, -1))[tuple(at)].flatten(axis, axis + 1).contiguous()


def _unit(a_bits, a_signed, a_shift, b_bits, b_signed, b_shift) -> int:
    return product_bound(IntFormat(a_bits, a_signed).qmax, IntFormat(b_bits, b_signed).qmax, 1, a_shift + b_shift)


def _dtype(unit: int, device: torch.device) -> tuple[torch.dtype, int]:
    """(dtype, limit of a chunk): float32 where its convolution is exact and a term of the reduction fits."""
    if unit <= exact.FLOAT32_LIMIT and exact.convolution_in_float32(device):
        return torch.float32, exact.FLOAT32_LIMIT
    return torch.float64, exact.FLOAT64_LIMIT


def memory_format(t: Tensor) -> torch.memory_format:
    """channels_last for a tensor that has it and no other, contiguous for the rest: what becomes of t keeps it."""
    last = _format(t.ndim, True)
    return last if t.is_contiguous(memory_format=last) and not t.is_contiguous() else torch.contiguous_format


def _format(ndim: int, last: bool) -> torch.memory_format:
    if not last:
        return torch.contiguous_format
    return torch.channels_last_3d if ndim == 5 else torch.channels_last


def _like(a: Tensor, size, half: bool) -> Tensor:
    return torch.empty(size, dtype=exact.float_dtype(half), device=a.device).contiguous(memory_format=memory_format(a))


# ------------------------------------------------------------------------------------------ on QTensors: the contract


def conv2d(x: QTensor, w: QTensor, bias: Tensor | None, params: ConvParams, half: bool = False) -> Tensor:
    """y = conv(x, w) + bias in integers (N, O, P, Q), float32 or, if half, rounded to bfloat16.

    ContractError where a scale varies inside the sum.
    """
    return _conv2d(scaled_conv2d, x, w, bias, params, half)


def conv2d_amax(
    x: QTensor, w: QTensor, bias: Tensor | None, params: ConvParams, half: bool = False
) -> tuple[Tensor, Tensor]:
    """(y, r): y of conv2d, and r = amax(y, 1) without another pass over y: the range of each of its channels."""
    return _conv2d(scaled_conv2d_amax, x, w, bias, params, half)


def _conv2d(op: Callable, x: QTensor, w: QTensor, bias: Tensor | None, params: ConvParams, half: bool):
    _check_shapes(x.shape, w.shape, params)
    check_bias(bias, w.shape[0])
    params.output_size(x.shape, w.shape)  # ValueError for a kernel that exceeds the input
    if params.spatial == 1:
        return _without_height(_conv2d(op, _with_height(x), _with_height(w), bias, params.with_height(), half))
    x, w = x.fold_shift(1), w.fold_shift(1)
    inner = w.shape[1]
    _require_constant(x, 1, inner, "input")
    _require_constant(w, 1, inner, "weight")
    scale = _widen(x.scale, w.shape[0]) * w.scale.transpose(0, 1)
    return op(*_pair(x, w), _times(scale, x, w), bias, *params.flat(), half)


def conv2d_grad_input(g: QTensor, w: QTensor, size: Sequence[int], params: ConvParams, half: bool = False) -> Tensor:
    """dx (N, C, H, W) of conv2d, float32 or, if half, rounded to bfloat16.

    It reduces over O/groups, R, S: there g and w may both carry a shift.
    """
    return _conv2d_grad_input(scaled_conv2d_grad_input, g, w, size, params, half)


def conv2d_grad_input_plus(
    g: QTensor, w: QTensor, size: Sequence[int], params: ConvParams, more: Tensor, mask: Tensor
) -> Tensor:
    """dx of conv2d_grad_input, plus `more` where the mask (packed as in ops.chain; empty: everywhere) passes.

    dx is bfloat16 where `more` is.
    """
    if params.spatial == 1:
        return conv2d_grad_input(g, w, size, params, exact.is_half(more)) + masked(more, mask)
    return _conv2d_grad_input(scaled_conv2d_grad_input_plus, g, w, size, params, more, mask)


def _conv2d_grad_input(op: Callable, g: QTensor, w: QTensor, size: Sequence[int], params: ConvParams, *more: Any):
    _check_gradient(g.shape, size, w.shape, params)
    if params.spatial == 1:
        size = (*size[:2], 1, size[2])
        tall = params.with_height()
        return _without_height(_conv2d_grad_input(op, _with_height(g), _with_height(w), size, tall, *more))
    g, w = g.fold_shift(1), w.fold_shift(0)
    inner = w.shape[0] // params.groups
    _require_constant(g, 1, inner, "gradient")
    _require_constant(w, 0, inner, "weight")
    outer = w.scale  # channel group C/groups + j of x is weight element (group's only or any o, j)
    if outer.numel() != 1:
        ones = [1] * params.spatial
        outer = outer.expand(params.groups, w.shape[1], *ones).reshape(1, size[1], *ones)
    scale = _widen(g.scale, size[1]) * outer
    return op(*_pair(g, w), _times(scale, g, w), list(size), *params.flat(), *more)


def conv2d_grad_weight(
    g: QTensor, x: QTensor, size: Sequence[int], params: ConvParams, channels_last: bool = False
) -> Tensor:
    """dw (O, C/groups, R, S) of conv2d, float32. It reduces over N, P, Q: channels are outer, their shifts as well.

    A shift along the samples (ShiftQuant with axis 0) stays inside the sum. channels_last: dw lies so in memory.
    """
    _check_gradient(g.shape, x.shape, size, params)
    if params.spatial == 1:
        size = (*size[:2], 1, size[2])
        return conv2d_grad_weight(_with_height(g), _with_height(x), size, params.with_height()).squeeze(2)
    g, x = g.fold_shift(0), x.fold_shift(0)
    _require_constant(g, 0, g.shape[0], "gradient")
    _require_constant(x, 0, x.shape[0], "input")
    by_group = x.scale
    if x.scale.shape[1] != 1:  # channel group(o) C/groups + j of x is weight element (o, j)
        by_group = x.scale.view(params.groups, size[1], *x.scale.shape[2:])
        by_group = by_group.repeat_interleave(size[0] // params.groups, 0)
    scale = g.scale.transpose(0, 1) * by_group
    return scaled_conv2d_grad_weight(*_pair(g, x), _times(scale, g, x), list(size), *params.flat(), channels_last)


def _pair(a: QTensor, b: QTensor) -> tuple:
    return (
        *(a.codes, a.shift, a.format.bits, a.format.signed, a.max_shift),
        *(b.codes, b.shift, b.format.bits, b.format.signed, b.max_shift),
    )


def _times(scale: Tensor, a: QTensor, b: QTensor) -> Tensor:
    """The accumulator counts units of 2^-(E_a + E_b): a power of two, so this product is exact."""
    return scale * 2.0 ** -(a.max_shift + b.max_shift)


def _widen(scale: Tensor, channels: int) -> Tensor:
    """A scale for each group (or one for all) along axis 1 -> one for each of `channels` in group order."""
    return scale if scale.shape[1] in (1, channels) else scale.repeat_interleave(channels // scale.shape[1], 1)


def _require_constant(q: QTensor, axis: int, inner: int, who: str) -> None:
    """Raise unless q's scale is constant over the `inner` consecutive indices of `axis` that one sum reduces."""
    if math.prod(q.scale.shape[2:]) != 1 or (q.scale.shape[axis] != 1 and inner != 1):
        raise ContractError(
            f"the scale {tuple(q.scale.shape)} of the {who} {tuple(q.shape)} varies inside the sum over axis {axis}; "
            "an integer convolution needs one scale there, or powers of two (ShiftQuant)"
        )


def _with_height(q: QTensor) -> QTensor:
    """(N, C, L) -> (N, C, 1, L), as views."""
    shift = None if q.shift is None else q.shift.unsqueeze(2)
    return replace(q, codes=q.codes.unsqueeze(2), scale=q.scale.unsqueeze(2), shift=shift)


def _without_height(y: Tensor | tuple[Tensor, ...]):
    return y.squeeze(2) if isinstance(y, Tensor) else tuple(part.squeeze(2) for part in y)


def _check_shapes(x: Sequence[int], w: Sequence[int], params: ConvParams) -> None:
    rank = 2 + params.spatial
    if len(x) != rank or len(w) != rank or x[1] != w[1] * params.groups or w[0] % params.groups:
        raise ValueError(
            f"conv2d takes x (N, C, H, W) and w (O, C/groups, R, S) with {params.spatial} spatial dimensions and "
            f"groups {params.groups}, not {tuple(x)} and {tuple(w)}"
        )


def _check_gradient(g: Sequence[int], x: Sequence[int], w: Sequence[int], params: ConvParams) -> None:
    _check_shapes(x, w, params)
    if tuple(g) != params.output_size(x, w):
        raise ValueError(f"the gradient of this conv2d has shape {params.output_size(x, w)}, not {tuple(g)}")
