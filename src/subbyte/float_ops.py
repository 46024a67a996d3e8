"""FloatOpCounter: every float operation that reaches torch's dispatcher, counted; the proof of "integer-only".

It denies by default: an op with a float result counts, unless it is known to move, copy or convert numbers only. Of
subbyte's own ops count those that compute with floats, and the integer products where their exact reference ran, which
multiplies float64 numbers: only the C++ kernels (or another integer backend) are integer units at work.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .ops import dispatch

aten = torch.ops.aten

_MOVES = {
    *(aten._to_copy, aten.copy_, aten.clone, aten.detach, aten.alias, aten.lift_fresh, aten._conj, aten.contiguous),
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.zeros),
    *(aten.zeros_like, aten.new_zeros, aten.ones, aten.ones_like, aten.full, aten.full_like, aten.zero_, aten.fill_),
    *(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.expand, aten.as_strided, aten.t),
    *(aten.transpose, aten.permute, aten.unsqueeze, aten.squeeze, aten.slice, aten.select, aten.unbind, aten.split),
    *(aten.cat, aten.stack, aten.index, aten.index_select, aten.gather, aten.where, aten.masked_fill),
}
"""aten ops that multiply and add nothing, whatever their dtype. A conversion (_to_copy) may round; it does not add."""

_INTEGER = {
    *("int_amax", "int_quantize", "int_lookup", "int_norm_grad", "norm_stats", "norm_stats_uncentred"),
    *("norm_grad_stats", "pack_codes", "unpack_codes", "narrow_codes", "scatter_sum"),
    *("int_token_shifts", "int_quantize_tokens", "pack_tokens", "unpack_tokens"),
    *("int_add", "int_squared_errors", "int_sgd", "int_relu", "int_relu_grad", "int_shift_to_fit", "int_from_float"),
    *("int_to_float", "int_batch_table", "int_affine_table", "int_norm_coefficients", "int_running_statistics"),
}
"""subbyte ops that are integer arithmetic on every backend, the reference included."""

_PRODUCTS = {"int_matmul", "int_conv2d", "int_conv2d_grad_input", "int_conv2d_grad_weight"}


class FloatOpCounter(TorchDispatchMode):
    """counts: op -> how often a float operation of that name ran inside the block.

    >>> with FloatOpCounter() as counter:
    ...     _ = torch.arange(3) * 2                      # integers
    ...     _ = torch.ones(3).view(torch.int32) + 1      # the bits of floats
    ...     _ = torch.ones(3) * 2 + 1
    >>> dict(counter.counts)
    {'aten.mul': 1, 'aten.add': 1}
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self.counts.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if func.namespace == "subbyte":
            name = packet.__name__
            on_reference = name in _PRODUCTS and dispatch.last_kernel[name] == dispatch.REFERENCE
            if on_reference or name not in _INTEGER | _PRODUCTS:
                self.counts[f"subbyte.{name}" + (" (reference)" if on_reference else "")] += 1
        elif packet not in _MOVES and any(isinstance(t, Tensor) and _is_float(t) for t in tree_leaves(out)):
            self.counts[f"{func.namespace}.{packet.__name__}"] += 1
        return out


def _is_float(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()
