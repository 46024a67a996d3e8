"""Who is compared: the names of implementations, the schemes behind ours, and what peers need to run.

Ours: subbyte/<recipe>, with -psq for a free scale for each sample instead of shifts in the same kernels, -fused after
fuse_; int4-integer-only for whole networks alone. Peers: torch in fp32, bf16 and fp16, torch._int_mm, torchao's int8
training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import subbyte
from subbyte.bench.timing import Skip, quickest
from subbyte.quantizers import PerChannel
from subbyte.scheme import LayerScheme, Scheme

FLOATS = {"torch-fp32": torch.float32, "torch-bf16": torch.bfloat16, "torch-fp16": torch.float16}
RECIPES = ("int4", "int6", "int8")
PSQ, FUSED = "-psq", "-fused"
OURS = tuple(f"subbyte/{r}" for r in (*RECIPES, "int4" + PSQ))
INTEGER_ONLY = "subbyte/int4-integer-only"
INT_MM, TORCHAO, TORCHAO_COMPILED = "int_mm", "torchao", "torchao-compiled"

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

BETWEEN_LAYERS = {"": torch.float32, "bfloat16": torch.bfloat16}
"""What ours takes and gives between layers: float32, or bfloat16 under autocast."""

_FP16_SHARE = 0.1  # of the bf16 rate: below this, whole steps in fp16 are not waited for
_PROBE = 256


def scheme(impl: str) -> Scheme:
    """The scheme behind one of ours: subbyte/int4, subbyte/int4-psq, subbyte/int4-fused..."""
    name = impl.removeprefix("subbyte/")
    recipe = Scheme.from_name(name.removesuffix(PSQ).removesuffix(FUSED))
    return _with_psq(recipe) if name.endswith(PSQ) else recipe


def layer_scheme(impl: str) -> LayerScheme:
    """What a layer in the middle of a network gets."""
    return scheme(impl).layer


def emulated(impl: str) -> tuple[str, ...]:
    """The products that run on dequantized values: PSQ's scales vary inside the sum of grad_weight."""
    return ("grad_weight",) if impl.endswith(PSQ) else ()


def _with_psq(recipe: Scheme) -> Scheme:
    first, last = (None if part is None else _psq_layer(part) for part in (recipe.first, recipe.last))
    return dataclasses.replace(recipe, layer=_psq_layer(recipe.layer), first=first, last=last)


def _psq_layer(part: LayerScheme) -> LayerScheme:
    assert part.gradient is not None
    return dataclasses.replace(part, gradient=PerChannel(part.gradient.bits, rounding=part.gradient.rounding, axis=0))


def fuse(model: nn.Module, example: Tensor) -> nn.Module:
    """The model after subbyte.fuse_; Skip where this version has none, or finds nothing to fuse."""
    fuse_: Callable[..., nn.Module] | None = getattr(subbyte, "fuse_", None)
    if fuse_ is None:
        raise Skip("this version of subbyte has no fuse_")
    try:
        return fuse_(model, example)
    except ValueError as error:
        raise Skip(f"fuse_: {str(error).splitlines()[0].rstrip(':')}") from error


def autocast(dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """torch.autocast to that dtype on the CPU; nothing for float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype=dtype)


def ways(layouts: dict[str, torch.memory_format]) -> Iterator[tuple[str, torch.memory_format, torch.dtype]]:
    """(name, memory format, type between layers): the ways in which one of ours may run; the fastest counts."""
    for layout, memory_format in layouts.items():
        for between, dtype in BETWEEN_LAYERS.items():
            yield ", ".join(part for part in (layout, between) if part), memory_format, dtype


@functools.cache
def fp16_rate() -> tuple[float, float]:
    """(operations a second of a small fp16 product, of the same in bf16)."""
    rates = []
    for dtype in (torch.float16, torch.bfloat16):
        a = torch.randn(_PROBE, _PROBE).to(dtype)
        rates.append(2 * _PROBE**3 / quickest(partial(torch.matmul, a, a)))
    return rates[0], rates[1]


def require_fp16(ops: int, seconds: float) -> None:
    """Skip where so much work in fp16 would take longer than that, by the rate of a small product."""
    half, brain = fp16_rate()
    if half < _FP16_SHARE * brain and ops / half > seconds:
        raise Skip(
            f"about {ops / half:.0f} s a call: fp16 products reach {half / 1e9:.2g} GOP/s here, bf16 {brain / 1e9:.3g}"
        )


def torchao_linears(model: nn.Module) -> nn.Module:
    """The model with torchao's int8 training in its Linears, in place. Skip where torchao is not installed.

    module_swap=True: its default form leaves every product in floats.
    """
    try:
        for name in ("torchao", "torch.utils._pytree"):  # warnings of GPU libraries and of torchao's own habits
            logging.getLogger(name).setLevel(logging.ERROR)
        from torchao.prototype.quantized_training import int8_mixed_precision_training
        from torchao.quantization import quantize_
    except ImportError as error:
        raise Skip(f"torchao is not installed (pip install 'subbyte[bench]'): {error}") from error
    quantize_(model, int8_mixed_precision_training(module_swap=True))
    return model


def compiled(model: nn.Module, call: Callable[[nn.Module], Any]) -> nn.Module:
    """torch.compile of the model, compiled by a first call. Skip where the compiler does not work."""
    fast: Any = torch.compile(model, dynamic=False)
    try:
        call(fast)
    except Exception as error:  # whatever inductor or the C++ compiler raises
        raise Skip(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
    return fast
