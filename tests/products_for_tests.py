"""Operands, formats and the comparison for the tests of the C++ products."""

from __future__ import annotations

import torch
from torch import Tensor

from kernel_table import kernel_for
from subbyte import ops
from subbyte.numerics import IntFormat

FILLS = ("random", "top", "bottom", "alternating")
CONV_OPS = ("scaled_conv2d", "scaled_conv2d_grad_input", "scaled_conv2d_grad_weight")
S8, U8, S4, U4, S6, U7 = (
    IntFormat(8),
    IntFormat(8, False),
    IntFormat(4),
    IntFormat(4, False),
    IntFormat(6),
    IntFormat(7, False),
)


def codes(shape, fmt: IntFormat, fill: str = "random") -> Tensor:
    if fill == "random":
        return torch.randint(fmt.qmin, fmt.qmax + 1, shape).to(fmt.dtype)
    if fill == "alternating":
        n = torch.Size(shape).numel()
        return torch.where(torch.arange(n) % 2 == 0, fmt.qmax, fmt.qmin).view(shape).to(fmt.dtype)
    return torch.full(shape, fmt.qmax if fill == "top" else fmt.qmin, dtype=fmt.dtype)


def operand(q: Tensor, fmt: IntFormat, shift: Tensor | None = None, max_shift: int = 0) -> tuple:
    return q, shift, fmt.bits, fmt.signed, max_shift if shift is not None else 0


def exponents(n: int, most: int, shape) -> Tensor:
    """All of 0..most, in no order."""
    return (torch.randperm(n) % (most + 1)).to(torch.uint8).view(shape)


def bits(t: Tensor) -> Tensor:
    """Floats as integers: NaN equals itself, and -0 differs from 0."""
    return t.view(torch.int32) if t.dtype == torch.float32 else t


def same(isa: str, kernel: str, name: str, *args):
    """The op on the forced backend, having run this ISA's kernel of the table's `kernel`, equals its reference."""
    op = getattr(torch.ops.subbyte, name).default
    with ops.use_backend("cpu"):
        got = op(*args)
    assert ops.last_kernel[name] == kernel_for(kernel, isa)
    with ops.use_backend("reference"):
        expected = op(*args)
    pair = (got, expected) if isinstance(got, tuple) else ((got,), (expected,))
    for out, wanted in zip(*pair, strict=True):
        assert out.dtype == wanted.dtype
        assert out.shape == wanted.shape
        wrong = bits(out) != bits(wanted)
        assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()}: {out[wrong][:4]} for {wanted[wrong][:4]}"
    return got


def same_with_range(isa: str, kernel: str, name: str, *args) -> Tensor:
    """same() for a convolution's op and for the one that gives the range of its channels as well."""
    got, _ = same(isa, kernel, name + "_amax", *args)
    out = same(isa, kernel, name, *args)
    assert torch.equal(bits(got), bits(out))
    assert got.stride() == out.stride()
    return out
