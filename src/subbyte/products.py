"""The three products of each kind of layer, on codes and on floats: what autograd.py runs forward and backward.

    output      = x w          reduces over the input channels
    grad_input  = g w          reduces over the output channels
    grad_weight = g x          reduces over samples (and pixels)

A kind of layer is a class here; the float methods are for roles without a quantizer and for emulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from . import ops
from .numerics import IntFormat
from .ops import ConvParams
from .qtensor import PackedQTensor, QTensor

Operand = QTensor | Tensor


class Products(Protocol):
    """The three products of one kind of layer, on codes and (for emulation) on floats.

    part: "" or, in a layer with more than one product, what stands before the names of this one's in the record
    packed: do grad_input take w, and grad_weight x, packed as they were saved?
    """

    part: ClassVar[str] = ""
    packed: ClassVar[bool] = False

    def of_weight(self, w: Tensor) -> Products:
        """The same, with a grad_weight that lies in memory as this weight does where a layer has a choice."""
        return self

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None, half: bool = False) -> Tensor:
        """y = x w + bias on codes, scaled to float32. ContractError where a scale varies inside the sum.

        half: may the result be rounded to bfloat16, where that saves a pass over memory?
        """
        ...

    def grad_input(self, g: QTensor, w: QTensor, x_shape: Sequence[int], half: bool = False) -> Tensor:
        """g w on codes -> float32 of x's shape. ContractError and half as for output."""
        ...

    def grad_weight(self, g: QTensor, x: QTensor, w_shape: Sequence[int]) -> Tensor:
        """g x on codes -> float32 of w's shape. ContractError as for output."""
        ...

    def float_output(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """output on floats, in the dtype of x."""
        ...

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: Sequence[int]) -> Tensor:
        """grad_input on floats."""
        ...

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: Sequence[int]) -> Tensor:
        """grad_weight on floats."""
        ...

    def output_and_range(
        self, x: QTensor, w: QTensor, bias: Tensor | None, half: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(y, r): the output, and r = amax(y, 1), which a kernel may find while it stores y."""
        y = self.output(x, w, bias, half)
        return y, ops.amax(y, ops.CHANNEL)

    def grad_input_plus(self, g: QTensor, w: QTensor, x_shape: Sequence[int], more: Tensor, mask: Tensor) -> Tensor:
        """grad_input, plus `more` where the mask (packed as in ops.chain; empty: everywhere) passes; of its type."""
        half = more.dtype is torch.bfloat16
        return self.grad_input(g, w, x_shape, half).to(more.dtype) + ops.chain.masked(more, mask)

    def float_grad_input_plus(self, g: Tensor, w: Tensor, x_shape: Sequence[int], more: Tensor, mask: Tensor) -> Tensor:
        """grad_input_plus on floats."""
        return self.float_grad_input(g, w, x_shape) + ops.chain.masked(more, mask)

    def float_output_and_range(self, x: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """output_and_range on floats."""
        y = self.float_output(x, w, bias)
        return y, ops.amax(y, ops.CHANNEL)


@dataclass(frozen=True)
class MatmulProducts(Products):
    """x (B, I), w (O, I), g (B, O)."""

    packed: ClassVar[bool] = True

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None, half: bool = False) -> Tensor:
        return ops.matmul(x, w.T, bias, half)

    def grad_input(self, g: QTensor, w: QTensor | PackedQTensor, x_shape: Sequence[int], half: bool = False) -> Tensor:
        return ops.matmul(g, w, None, half)

    def grad_weight(self, g: QTensor, x: QTensor | PackedQTensor, w_shape: Sequence[int]) -> Tensor:
        return ops.matmul(g.T, x)

    def float_output(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, w, bias)

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: Sequence[int]) -> Tensor:
        return g @ w

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: Sequence[int]) -> Tensor:
        return g.T @ x


@dataclass(frozen=True)
class PairProducts(Products):
    """A product for each sample of two tensors that both depend on it: x (B, K, O), w (B, K), g and y (B, O)."""

    part: ClassVar[str] = "pair_"

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None, half: bool = False) -> Tensor:
        return ops.matmul(_unsqueezed(w, 1), x, bias, half).squeeze(1)

    def grad_input(self, g: QTensor, w: QTensor, x_shape: Sequence[int], half: bool = False) -> Tensor:
        return ops.matmul(_unsqueezed(w, 2), _unsqueezed(g, 1), None, half)

    def grad_weight(self, g: QTensor, x: QTensor, w_shape: Sequence[int]) -> Tensor:
        return ops.matmul(x, _unsqueezed(g, 2)).squeeze(2)

    def float_output(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        y = (w.unsqueeze(1) @ x).squeeze(1)
        return y if bias is None else y + bias

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: Sequence[int]) -> Tensor:
        return w.unsqueeze(2) @ g.unsqueeze(1)

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: Sequence[int]) -> Tensor:
        return (x @ g.unsqueeze(2)).squeeze(2)


def _unsqueezed(q: QTensor, axis: int) -> QTensor:
    shift = None if q.shift is None else q.shift.unsqueeze(axis)
    return replace(q, codes=q.codes.unsqueeze(axis), scale=q.scale.unsqueeze(axis), shift=shift, inside=None)


@dataclass(frozen=True)
class ConvProducts(Products):
    """x (N, C, H, W), w (O, C/groups, R, S), g (N, O, P, Q); one, two or three spatial dimensions."""

    params: ConvParams
    weight_last: bool = False  # does the weight lie channels_last, as its gradient is to?

    def of_weight(self, w: Tensor) -> ConvProducts:
        last = ops.memory_format(w) is not torch.contiguous_format
        return self if last == self.weight_last else replace(self, weight_last=last)

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None, half: bool = False) -> Tensor:
        return ops.conv2d(x, w, bias, self.params, half)

    def output_and_range(
        self, x: QTensor, w: QTensor, bias: Tensor | None, half: bool = False
    ) -> tuple[Tensor, Tensor]:
        return ops.conv2d_amax(x, w, bias, self.params, half)

    def grad_input(self, g: QTensor, w: QTensor, x_shape: Sequence[int], half: bool = False) -> Tensor:
        return ops.conv2d_grad_input(g, w, x_shape, self.params, half)

    def grad_input_plus(self, g: QTensor, w: QTensor, x_shape: Sequence[int], more: Tensor, mask: Tensor) -> Tensor:
        return ops.conv2d_grad_input_plus(g, w, x_shape, self.params, more, mask)

    def grad_weight(self, g: QTensor, x: QTensor, w_shape: Sequence[int]) -> Tensor:
        return ops.conv2d_grad_weight(g, x, w_shape, self.params, self.weight_last)

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
class TransposedConvProducts(Products):
    """A transposed convolution: the products of a convolution in other roles, since its x is that one's g.

    x (N, I, H, W), w (O, I/groups, R, S), g and y (N, O, P, Q): output channels first, as in every other layer, so that
    an axis of a quantizer means the same; torch keeps this weight as (I, O/groups, R, S).

    params  of the convolution that this one transposes
    size    (P, Q): stride, padding and dilation leave a choice (torch's output_padding)
    """

    params: ConvParams
    size: tuple[int, ...]

    def output(self, x: QTensor, w: QTensor, bias: Tensor | None, half: bool = False) -> Tensor:
        return self._output(partial(self._conv.grad_input, half=half and bias is None), x, w, bias)

    def grad_input(self, g: QTensor, w: QTensor, x_shape: Sequence[int], half: bool = False) -> Tensor:
        return self._grad_input(partial(self._conv.output, half=half), g, w, x_shape)

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
            if any(n != 1 for n in x.scale.shape[2:]):
                raise ops.ContractError(f"the scale {tuple(x.scale.shape)} of the input varies from pixel to pixel")
            return replace(x, codes=torch.nn.functional.pad(x.codes, pads))
        return torch.nn.functional.pad(x, pads)

    def _swapped(self, w: Operand) -> Operand:
        """w as that convolution has it: (I, O/groups, R, S)."""
        groups = self.params.groups
        if isinstance(w, Tensor):
            return swap_channels(w, groups)
        if groups > 1 and w.varies_along(0)[1]:
            w = _folded(w)  # a shift for each output channel would run along two axes
        scale, inner = w.scale, w.shape[1]
        if groups > 1 and scale.shape[0] > 1:
            scale = scale.expand(-1, inner, *scale.shape[2:])
        shift = None if w.shift is None else _swap_small(w.shift, groups)
        codes, scale = swap_channels(w.codes, groups), _swap_small(scale, groups)
        return replace(w, codes=codes, scale=scale, shift=shift, inside=None)


def _folded(w: QTensor) -> QTensor:
    """w with its shift in the codes, c << (E - e): b + E bits. In its scales where those are more than 8."""
    assert w.shift is not None
    wide = w.format.bits + w.max_shift
    if wide > 8:
        return w.fold_shift(1)
    codes = torch.bitwise_left_shift(w.codes, (w.max_shift - w.shift).to(w.codes.dtype))
    return QTensor(codes, w.scale * 2.0**-w.max_shift, IntFormat(wide, w.format.signed))


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
