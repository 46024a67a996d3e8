"""The arguments of op_calls.py with tensors of floats in bfloat16, for the ops that take or give them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from op_calls import CALLS


def half(x: Tensor) -> Tensor:
    """x in bfloat16, in the same layout."""
    return x.to(torch.bfloat16)


def _first(args: tuple) -> tuple:
    return half(args[0]), *args[1:]


def _result(args: tuple) -> tuple:
    return *args, True


def _plus(args: tuple) -> tuple:
    return *args[:-2], half(args[-2]), args[-1]


def _relu(args: tuple) -> tuple:
    other = args[9]
    return *args[:9], None if other is None else half(other), args[10], True


READS = (
    *("amax", "quantize", "absmax_codes", "shift_codes", "quantize_tokens", "quantize_blocks"),
    *("norm_forward", "norm_backward", "relu_grad", "relu_grad_quantize", "chain_norm", "chain_norm_grad"),
)
"""Ops that read floats, and give those of an element in the type that they read."""

ROUNDS = (
    *("norm_relu_codes", "norm_relu_tokens", "norm_grad_codes", "norm_grad_tokens", "norm_grad_amax"),
    *("norm_relu_range", "norm_grad_range"),
)
"""Ops of a chain whose floats are never written, and rounded as if they were."""

WRITES = (
    *("scaled_matmul", "scaled_matmul_packed", "scaled_conv2d", "scaled_conv2d_amax"),
    "scaled_conv2d_grad_input",
)
"""Ops that make floats of codes."""

CHANGES: dict[str, Callable[[tuple], tuple]] = {
    **dict.fromkeys(READS, _first),
    **dict.fromkeys((*WRITES, *ROUNDS), _result),
    **dict.fromkeys(("linear_forward", "linear_backward"), lambda args: _result(_first(args))),
    "scaled_conv2d_grad_input_plus": _plus,
    "norm_relu": _relu,
}
"""op -> what makes the arguments of a call in float32 those of one in bfloat16."""

HALF_CALLS: dict[str, Callable[[int], list[tuple]]] = {
    name: lambda big, name=name, change=change: [change(args) for args in CALLS[name](big)]
    for name, change in CHANGES.items()
}
"""op -> its argument lists, as CALLS has them."""
