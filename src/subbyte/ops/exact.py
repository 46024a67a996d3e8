"""Exact integer products through floating-point units: what every reference of a product is made of.

A float product of integers is exact while every partial sum stays below 2^24 (float32) or 2^53 (float64), in any order
of summation. That holds for torch.matmul on every device, TF32 and bf16 inputs included (codes have 8 significant bits
at most, and a shift adds none). A convolution in float32 is trusted only where no Winograd or FFT can be chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLOAT32_LIMIT = 1 << 24
FLOAT64_LIMIT = 1 << 53
INT64_LIMIT = (1 << 63) - 1


def chunked_sum(length: int, unit: int, limit: int, part: Callable[[slice], Tensor]) -> Tensor:
    """sum of part(chunk) over chunks of range(length) with chunk * unit <= limit each; the chunks add as int64.

    unit is the bound of one element of the reduction.
    """
    if length * unit > INT64_LIMIT or unit > limit:
        raise OverflowError(
            f"a reduction of {length} terms up to {unit} does not fit (a term {limit}, the sum {INT64_LIMIT})"
        )
    if length * unit <= limit:
        return part(slice(0, length))
    size = limit // unit
    total = part(slice(0, size)).to(torch.int64)
    for start in range(size, length, size):
        total += part(slice(start, min(start + size, length))).to(torch.int64)
    return total


def dtype_for(bound: int) -> torch.dtype:
    """The cheapest float in which sums up to bound are exact."""
    return torch.float32 if bound <= FLOAT32_LIMIT else torch.float64


def convolution_in_float32(device: torch.device) -> bool:
    """Is a float32 convolution a plain sum of products there? On CPUs oneDNN's is; NNPACK's and cuDNN's may not be."""
    onednn = torch.backends.mkldnn
    return device.type == "cpu" and onednn.is_available() and bool(onednn.enabled)


def shifted(codes: Tensor, shift: Tensor | None, max_shift: int, dtype: torch.dtype) -> Tensor:
    """codes << (max_shift - shift), in a float: the FOLDED form, in which a group's shift moves onto its operand."""
    if shift is None:
        return codes.to(dtype)
    left = torch.ones((), dtype=dtype, device=codes.device) * (1 << max_shift)
    return codes.to(dtype) * (left / (1 << shift.to(torch.int64)).to(dtype))


def epilogue(acc: Tensor, scale: Tensor, bias: Tensor | None, half: bool = False) -> Tensor:
    """float32(acc) * scale, then + bias, in that order. acc: exact integers, in a float or an integer dtype.

    half: rounded to bfloat16 at the end
    """
    out = (acc.to(torch.float32) + 0.0) * scale  # a float sum may be -0, which no integer is; -0 + 0 is 0
    return kept(out if bias is None else out + bias.to(torch.float32), half)


def kept(x: Tensor, half: bool) -> Tensor:
    """A float32 result as it is kept: bfloat16 if half."""
    return x.to(float_dtype(half))


def float_dtype(half: bool) -> torch.dtype:
    """Of a tensor of floats that an op gives."""
    return torch.bfloat16 if half else torch.float32


def is_half(x: Tensor | torch.dtype) -> bool:
    """Is what becomes of x bfloat16, as x is? Of any other x it is float32."""
    return (x.dtype if isinstance(x, Tensor) else x) is torch.bfloat16
