"""The sums of the three products of a convolution, without a scale: what the integer-only mode computes with.

Operands, shapes and sums are those of conv.py: int32, or int64 where the widths of the operands allow more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .conv import ConvParams, grad_input_sums, grad_weight_sums, memory_format, output_sums
from .dispatch import op
from .matmul import sum_dtype

_PAIR = (
    "Tensor a, Tensor? a_shift, int a_bits, bool a_signed, int a_max_shift, "
    "Tensor b, Tensor? b_shift, int b_bits, bool b_signed, int b_max_shift, "
)
_WINDOW = "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"


def _output_dtype(a_b, a_s, a_e, b, b_b, b_s, b_e) -> torch.dtype:
    return sum_dtype(a_b, a_s, a_e, b_b, b_s, b_e, math.prod(b.shape[1:]))


def _output_fake(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, stride, padding, dilation, groups):
    size = ConvParams(tuple(stride), tuple(padding), tuple(dilation), groups).output_size(a.shape, b.shape)
    return _like(a, size, _output_dtype(a_b, a_s, a_e, b, b_b, b_s, b_e))


@op(f"({_PAIR}{_WINDOW}", _output_fake)
def int_conv2d(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, stride, padding, dilation, groups) -> Tensor:
    """acc of scaled_conv2d: conv(x, w) << E_a + E_b. a = x, b = w."""
    acc = output_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, stride, padding, dilation, groups)
    return _as(acc, a, _output_dtype(a_b, a_s, a_e, b, b_b, b_s, b_e))


def _grad_input_dtype(a_b, a_s, a_e, b, b_b, b_s, b_e, groups) -> torch.dtype:
    return sum_dtype(a_b, a_s, a_e, b_b, b_s, b_e, b.shape[0] // groups * math.prod(b.shape[2:]))


def _grad_input_fake(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups):
    return _like(a, size, _grad_input_dtype(a_b, a_s, a_e, b, b_b, b_s, b_e, groups))


@op(f"({_PAIR}int[] size, {_WINDOW}", _grad_input_fake)
def int_conv2d_grad_input(
    a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups
) -> Tensor:
    """acc of scaled_conv2d_grad_input: conv_transpose(g, w) << E_a + E_b. a = g, b = w, size = x's shape."""
    acc = grad_input_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups)
    return _as(acc, a, _grad_input_dtype(a_b, a_s, a_e, b, b_b, b_s, b_e, groups))


def _grad_weight_dtype(a, a_b, a_s, a_e, b_b, b_s, b_e) -> torch.dtype:
    return sum_dtype(a_b, a_s, a_e, b_b, b_s, b_e, a.shape[0] * math.prod(a.shape[2:]))


def _grad_weight_fake(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups):
    return a.new_empty(size, dtype=_grad_weight_dtype(a, a_b, a_s, a_e, b_b, b_s, b_e))


@op(f"({_PAIR}int[] size, {_WINDOW}", _grad_weight_fake)
def int_conv2d_grad_weight(
    a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups
) -> Tensor:
    """acc of scaled_conv2d_grad_weight: sum_n conv(x_n, g_n) << E_a + E_b. a = g, b = x, size = w's shape."""
    acc = grad_weight_sums(a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, size, stride, padding, dilation, groups)
    return acc.to(_grad_weight_dtype(a, a_b, a_s, a_e, b_b, b_s, b_e)).contiguous()


def _as(acc: Tensor, a: Tensor, dtype: torch.dtype) -> Tensor:
    return acc.to(dtype).contiguous(memory_format=memory_format(a))


def _like(a: Tensor, size, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device=a.device).contiguous(memory_format=memory_format(a))
