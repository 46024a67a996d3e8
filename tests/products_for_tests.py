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
    """Floats as integers: NaN equals itself, and -0 differs from 0. torch rounds to more than one NaN of bfloat16."""
    if t.dtype == torch.bfloat16:
        return torch.where(t.isnan(), torch.nan, t).view(torch.int16)
    return t.view(torch.int32) if t.dtype == torch.float32 else t


def of_few_bits(name: str, args: tuple) -> bool:
    """Do sums of pairs of these products leave at least 2 steps in 16 bits, with the left operand made unsigned?

    The shift goes onto the left operand first; the right one's bytes are signed. Where sums are scaled, the exponents
    that are there count, not those that there may be.
    """
    at = 9 if name.endswith("packed") else 7
    exponents = ((args[1], args[4]), (args[at - 1], args[at + 2]))
    scaled = name.startswith("scaled")
    shift = sum(int(e.max()) if scaled and e is not None and e.numel() else most for e, most in exponents)
    left, right = args[2:4], args[at : at + 2]
    if name.endswith("grad_weight"):  # x is on the left
        left, right = right, left
    (a_bits, a_signed), (b_bits, b_signed) = left, right
    on_a = min(shift, 8 - a_bits)
    on_b = shift - on_a
    most_a = (IntFormat(a_bits, a_signed).qmax + (1 << (a_bits - 1) if a_signed else 0)) << on_a
    most_b = IntFormat(b_bits, b_signed).qmax << on_b
    return on_b <= 8 - b_bits and most_b <= 127 and 2 * 2 * most_a * most_b < 1 << 15


FEW_BITS = {
    "gemm": "gemm_few_bits",
    "conv2d": "conv2d_few_bits",
    "conv2d_grad_input": "conv2d_few_bits_grad_input",
    "conv2d_grad_weight": "conv2d_few_bits_grad_weight",
}
"""A product of the table -> the same of few bits, which AVX2 has: an ISA above it multiplies bytes of any codes."""


def same(isa: str, kernel: str, name: str, *args):
    """The op on the forced backend, having run this ISA's kernel of the table's `kernel`, equals its reference."""
    if isa == "avx2" and kernel in FEW_BITS and of_few_bits(name.removesuffix("_amax"), args):
        kernel = FEW_BITS[kernel]
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


def same_in_each_form(isa: str, kernel: str, name: str, *args) -> Tensor:
    """same() for a convolution's op, in bfloat16 as well, and where there is one for that with its channels' range."""
    out = same(isa, kernel, name, *args)
    ranged = hasattr(torch.ops.subbyte, name + "_amax")
    for half in (False, True):
        if ranged:
            got, _ = same(isa, kernel, name + "_amax", *args, half)
        elif half:
            got = same(isa, kernel, name, *args, half)
        else:
            continue
        wanted = out.to(torch.bfloat16) if half else out
        assert torch.equal(got.nan_to_num(3.0), wanted.nan_to_num(3.0))
        assert got.stride() == out.stride()
    return out
