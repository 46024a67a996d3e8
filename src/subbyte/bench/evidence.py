"""Proof that an integer implementation is one, taken before it is timed: which kernels ran, what was multiplied how.

Kernels come from the record inside the ops, the share of integer multiply-accumulates from the dispatcher, so that a
layer that silently stayed float is found; and a result without error was not quantized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subbyte import ops
from subbyte.bench.timing import Refused
from subbyte.convert import quantized_layers
from subbyte.report import MacCounter

ATTENTION = frozenset(
    f"aten.{name}"
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    )
)
"""Products of two activations, which stay float in an attention layer."""

PRODUCTS = ("output", "grad_input", "grad_weight")
_NOT_NATIVE = "reference"


def watch(run: Callable[[], Tensor]) -> tuple[Tensor, dict[str, str], MacCounter]:
    """(its result, op -> kernel of every op that ran, the multiply-accumulates)."""
    before = dict(ops.last_kernel)
    ops.last_kernel.clear()
    try:
        with MacCounter() as counter:
            result = run()
        ran = dict(ops.last_kernel)
    finally:
        ops.last_kernel.clear()
        ops.last_kernel.update(before)
    return result, ran, counter


def require_native(ran: Mapping[str, str]) -> None:
    """Refused unless something ran, and all of it on compiled kernels."""
    if not ran:
        raise Refused("nothing was quantized: no op of subbyte ran")
    slow = sorted(op for op, kernel in ran.items() if kernel == _NOT_NATIVE)
    if slow:
        raise Refused(f"no native kernel ran {', '.join(slow)}: the reference did")


def require_integer(counter: MacCounter, allowed: Collection[str] = (), emulated: bool = False) -> None:
    """Refused if nothing, or not all, was multiplied in integers.

    allowed    ops that may stay float
    emulated   whether a product may be one of dequantized values (PSQ's grad_weight)
    """
    if counter.integer == 0:
        raise Refused("nothing was quantized: no product ran on integers")
    strange = {op: n for op, n in counter.floats.items() if op not in allowed}
    if strange and not emulated:
        raise Refused("products in floats: " + ", ".join(f"{op} {n:,}" for op, n in strange.items()))


def require_error(result: Tensor, exact: Tensor) -> float:
    """|result - exact| / |exact|; Refused where it is 0 (nothing was quantized), beyond 1, or no number."""
    wanted = exact.detach().double()
    error = ((result.detach().double() - wanted).norm() / wanted.norm()).item()
    if error == 0:
        raise Refused("nothing was quantized: the result equals that of floats")
    if not error < 1:
        raise Refused(f"the result has nothing to do with that of floats: a relative error of {error:.2g}")
    return error


def require_products(model: nn.Module, emulated: Collection[str]) -> None:
    """Refused unless each layer's products ran on integers, save those that are emulated."""
    for name, layer in quantized_layers(model).items():
        for product in PRODUCTS:
            wanted = "emulated" if product in emulated else "integer"
            ran = layer.record.kernels.get(product, wanted)  # the first layer has no grad_input
            if ran != wanted:
                raise Refused(f"{product} of {name or 'the layer'} ran as {ran}, not as {wanted}")


def of_training(
    model: nn.Module,
    step: Callable[[], Tensor],
    exact: Callable[[], Tensor],
    *,
    emulated: Collection[str] = (),
    allowed: Collection[str] = (),
    multiplies: bool = True,
) -> dict[str, Any]:
    """What one forward and backward did, as fields of a Row, or Refused. step and exact return the model's output.

    multiplies: whether the layer has products at all (a norm has none).
    """
    result, ran, counter = watch(step)
    require_native(ran)
    if multiplies:
        require_integer(counter, allowed, bool(emulated))
        require_products(model, emulated)
    error = require_error(result, exact())
    share = counter.integer_share
    return {
        "kernels": sorted(set(ran.values())),
        "integer_share": None if math.isnan(share) else share,
        "error": error,
    }


def of_torchao(step: Callable[[], Tensor], exact: Callable[[], Tensor]) -> dict[str, Any]:
    """The same for torchao's int8 layers: their products are torch._int_mm."""
    result, _, counter = watch(step)
    require_integer(counter)
    return {"integer_share": counter.integer_share, "error": require_error(result, exact())}


def equal_codes(result: Tensor, a: Tensor, b: Tensor, left: Tensor | None, rows: int = 64) -> None:
    """Refused unless the first rows of an integer product are exactly sum_k a[m,k] b[k,n] 2^left[k]."""
    wide = a[:rows].to(torch.float64)
    if left is not None:
        wide = wide * torch.exp2(left.to(torch.float64))
    if not torch.equal(result[:rows].to(torch.float64), wide @ b.to(torch.float64)):
        raise Refused("the product is not the exact one of its codes")
