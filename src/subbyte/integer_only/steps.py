"""The steps that an integer-only network is made of: one function for each kind, forward with its backward inside.

A step takes IntTensors and returns (IntTensor, backward); backward takes the gradient of the output and returns one
for each tensor that went in, None where it is not wanted. What backward reads goes through call.save: packed codes and
masks; it closes over shapes and single numbers alone, never over an IntTensor of the forward pass. Sums that belong to
a Parameter go to call.gradient as integers. Here are the steps without parameters; products.py and norms.py have the
rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import numerics, ops
from ..nn.conv import each
from . import carrier
from .carrier import IntTensor


@dataclass
class Call:
    """What a step is told beside its operands.

    module     the layer, None for a function
    wanted     is a gradient wanted of each tensor that goes in?
    stream     () -> int64 (), the random stream of this step; the same one however often it is asked for
    gradient   (parameter's name in the module, int64 sums, exponent): where the gradient of a Parameter goes
    keep       will backward be called?
    save       a tensor that backward reads -> how it gets it: torch frees it with the graph, and sees it in its hooks
    """

    module: Any
    wanted: tuple[bool, ...]
    stream: Callable[[], Tensor]
    gradient: Callable[[str, Tensor, Tensor], None]
    keep: bool
    save: Callable[[Tensor], Callable[[], Tensor]]


def never() -> Tensor:
    """In place of what was not saved, because no backward was to come."""
    raise RuntimeError("backward of a step that saved nothing")


def identity(call: Call, x: IntTensor):
    return x, lambda g: (g,)


def relu(call: Call, x: IntTensor):
    """max(x, 0); the gradient passes where x > 0."""
    y, mask = ops.int_relu(x.codes)
    passes = call.save(mask) if call.keep else never
    return x.with_codes(y), lambda g: (g.with_codes(ops.int_relu_grad(g.codes, passes())),)


def add(call: Call, a: IntTensor, b: IntTensor):
    """a + b. ValueError where they broadcast: a gradient would have to be summed."""
    if a.shape != b.shape:
        raise ValueError(
            f"an integer-only network adds tensors of one shape, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return carrier.add(a, b), lambda g: (g, g)


def reshape(call: Call, x: IntTensor, *shape: Any):
    """view, reshape, and flatten by its result."""
    size = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    before = x.shape
    return x.with_codes(x.codes.reshape(*size)), lambda g: (g.with_codes(g.codes.reshape(before)),)


def flatten(call: Call, x: IntTensor, start_dim: int = 0, end_dim: int = -1):
    return reshape(call, x, x.codes.flatten(start_dim, end_dim).shape)


def flatten_module(call: Call, x: IntTensor):
    return flatten(call, x, call.module.start_dim, call.module.end_dim)


def index(call: Call, x: IntTensor, key: Any):
    """x[key] for slices and numbers, as in a strided shortcut."""

    before = x.shape

    def backward(g: IntTensor):
        whole = g.codes.new_zeros(before)
        whole[key] = g.codes
        return (g.with_codes(whole),)

    return x.with_codes(x.codes[key]), backward


def pad(call: Call, x: IntTensor, pad: tuple[int, ...], mode: str = "constant", value: float | None = None):
    """F.pad with zeros."""
    if mode != "constant" or value:
        raise ValueError(f"an integer-only network pads with zeros, not {mode} {value}")
    inverse = [-p for p in pad]
    return x.with_codes(F.pad(x.codes, list(pad))), lambda g: (g.with_codes(F.pad(g.codes, inverse)),)


def mean(call: Call, x: IntTensor, dim: Any, keepdim: bool = False):
    """The mean over some axes: an exact sum times a reciprocal of 15 bits."""
    axes = [dim] if isinstance(dim, int) else list(dim)
    axes = [a % x.codes.ndim for a in axes]
    n = math.prod(x.shape[a] for a in axes)
    total = carrier.carry(x.codes.to(torch.int64).sum(axes, keepdim=keepdim), x.exponent, x.bound * max(n, 1))
    factor, before = carrier.reciprocal(max(n, 1)), x.shape

    def backward(g: IntTensor):
        share = carrier.scale(g, *factor)
        codes = share.codes if keepdim else _with_axes(share.codes, axes)
        return (share.with_codes(codes.expand(before)),)

    return carrier.scale(total, *factor), backward


def _with_axes(t: Tensor, axes: list[int]) -> Tensor:
    for a in sorted(axes):
        t = t.unsqueeze(a)
    return t


def adaptive_avg_pool(call: Call, x: IntTensor, output_size: Any):
    """adaptive_avg_pool2d to a size that divides the image."""
    size = [x.shape[2 + i] if s is None else s for i, s in enumerate(each_of(output_size))]
    if any(n % s for n, s in zip(x.shape[2:], size)):
        raise ValueError(
            f"adaptive pooling to {tuple(size)} in integers takes sizes that it divides, not {tuple(x.shape)}"
        )
    window = tuple(n // s for n, s in zip(x.shape[2:], size))
    return avg_pool(call, x, window)


def adaptive_avg_pool_module(call: Call, x: IntTensor):
    return adaptive_avg_pool(call, x, call.module.output_size)


def avg_pool(call: Call, x: IntTensor, kernel_size: Any, stride: Any = None, padding: Any = 0):
    """avg_pool2d with windows that neither overlap nor leave the image: sums of blocks times a reciprocal."""
    (kh, kw), strides = each_of(kernel_size), each_of(stride or kernel_size)
    if strides != (kh, kw) or each_of(padding) != (0, 0):
        raise ValueError("average pooling in integers takes windows side by side: stride = kernel_size, no padding")
    n, c, h, w = x.shape
    p, q = h // kh, w // kw
    blocks = x.codes[:, :, : p * kh, : q * kw].reshape(n, c, p, kh, q, kw).to(torch.int64)
    factor = carrier.reciprocal(kh * kw)
    total = carrier.carry(blocks.sum((3, 5)), x.exponent, x.bound * kh * kw)

    def backward(g: IntTensor):
        share = carrier.scale(g, *factor)
        spread = share.codes.view(n, c, p, 1, q, 1).expand(n, c, p, kh, q, kw).reshape(n, c, p * kh, q * kw)
        return (share.with_codes(F.pad(spread, (0, w - q * kw, 0, h - p * kh))),)

    return carrier.scale(total, *factor), backward


def avg_pool_module(call: Call, x: IntTensor):
    m = call.module
    if m.ceil_mode or m.divisor_override:
        raise ValueError("average pooling in integers has no ceil_mode and no divisor_override")
    return avg_pool(call, x, m.kernel_size, m.stride, m.padding)


def max_pool(call: Call, x: IntTensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False):  # fmt: skip
    """max_pool2d: comparisons alone; the gradient goes to the largest of each window."""
    y, where = F.max_pool2d(x.codes, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    (n, c, h, w), winners = x.shape, call.save(where) if call.keep else never

    def backward(g: IntTensor):
        # windows may overlap, and up to all of them meet in one place
        meet = math.prod(-(-k // s) for k, s in zip(each_of(kernel_size), each_of(stride or kernel_size)))
        total = torch.zeros(n, c, h * w, dtype=torch.int64, device=g.codes.device)
        total.scatter_add_(2, winners().view(n, c, -1), g.codes.view(n, c, -1).to(torch.int64))
        return (carrier.carry(total.view(n, c, h, w), g.exponent, g.bound * meet),)

    return x.with_codes(y), backward


def max_pool_module(call: Call, x: IntTensor):
    m = call.module
    return max_pool(call, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


def dropout(call: Call, x: IntTensor, p: float = 0.5, training: bool = True):
    """Zeros with probability p to 2^-16, the rest times 1 / (1 - p) to 15 bits; nothing in eval mode."""
    if not training or p == 0:
        return identity(call, x)
    threshold = round(p * (1 << numerics.FRACTION_BITS))
    kept = max((1 << numerics.FRACTION_BITS) - threshold, 1)
    bits = 15 - ((1 << numerics.FRACTION_BITS) // kept).bit_length()
    factor = (1 << (bits + numerics.FRACTION_BITS)) // kept
    drawn = numerics.random_bits16(call.stream(), x.codes.numel()).view(x.shape)
    stays = drawn >= threshold
    saved = call.save(stays) if call.keep else never

    def masked(t: IntTensor, stays: Tensor) -> IntTensor:
        return carrier.scale(t.with_codes(t.codes * stays), factor, bits)

    return masked(x, stays), lambda g: (masked(g, saved()),)


def dropout_module(call: Call, x: IntTensor):
    return dropout(call, x, call.module.p, call.module.training)


def each_of(v: Any) -> tuple[int, ...]:
    """Two numbers, from one for both or from two."""
    return each(v, 2) if not isinstance(v, (tuple, list)) else tuple(v)


MODULES: dict[type[nn.Module], Callable] = {
    nn.Identity: identity,
    nn.ReLU: relu,
    nn.Flatten: flatten_module,
    nn.MaxPool2d: max_pool_module,
    nn.AvgPool2d: avg_pool_module,
    nn.AdaptiveAvgPool2d: adaptive_avg_pool_module,
    nn.Dropout: dropout_module,
}
