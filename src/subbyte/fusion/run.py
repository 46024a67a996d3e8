"""What a fused model calls for each of its chains: start where the first layer stood, finish where the last step did.

Between the two other layers may run (a shortcut's), and random numbers keep the order of the unfused model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..chain import Chain, Stage, covers, first_codes
from ..nn.quantized import unless_no_grad
from ..norm import batch_norm
from ..tracing import hooked


@dataclass(frozen=True)
class Plan:
    """One chain of the graph, by the names of its modules.

    layers  name of each product and each norm, in turn
    add     is something added behind the last norm?
    relu    is there a ReLU at the end?
    """

    layers: tuple[str, ...]
    add: bool
    relu: bool

    def __str__(self) -> str:
        return " - ".join(self.layers) + " - add" * self.add + " - ReLU" * self.relu


@dataclass
class _Started:
    """A chain between start and finish: the stages of a fused one, or what the layers one by one gave."""

    x: Tensor
    stages: tuple[Stage, ...] = ()
    codes: Any = None


def start(x: Tensor, x_range: Tensor | None, twin: _Started | None, *layers: Any) -> _Started:
    """Draw the chain's random numbers, quantize x; or, where this call does not suit a chain, run it layer by layer.

    x_range  max |x| where it is known
    twin     another chain that began with the same x: one with the same quantizer has the same codes
    """
    if _suits(x, layers):
        stages = []
        for product, norm in zip(layers[::2], layers[1::2], strict=True):
            scheme, products = product.scheme, product.products_of_input()
            streams = product.draw_streams(scheme.stochastic, x, scheme.gradient_samples)
            stream, geometry = norm.draw_streams(True, x)[0], batch_norm(x.ndim)
            stages.append(
                Stage(products, scheme, product.record, streams, norm.scheme, norm.eps, geometry, norm.record, stream)
            )
        first = stages[0].layer.activation
        assert first is not None
        if twin is not None and twin.stages and twin.stages[0].layer.activation == first and not first.stochastic:
            return _Started(x, tuple(stages), twin.codes)
        return _Started(x, tuple(stages), first_codes(x, x_range, stages[0]))
    for i, layer in enumerate(layers):
        x = layer(torch.relu(x) if i and i % 2 == 0 else x)
    return _Started(x)


def finish(
    started: _Started, other: Tensor | None, relu: bool, together: bool, *layers: Any
) -> tuple[Tensor, Tensor | None]:
    """(what the chain gives, its range where it is known). together: as Chain takes it."""
    if not started.stages:
        z = started.x if other is None else started.x + other
        return torch.relu(z) if relu else z, None
    params = []
    for product, norm in zip(layers[::2], layers[1::2], strict=True):
        ndim = started.x.ndim
        shape = (1, -1, *[1] * (ndim - 2))
        params += [product.weight, product.bias]
        params += [None if p is None else p.float().view(shape) for p in (norm.weight, norm.bias)]
    half = _dtype(started.x) is torch.bfloat16
    apart = half and other is not None and other.dtype is not torch.bfloat16  # their sum is of that type
    inside, x, *params = unless_no_grad(None if apart else other, started.x, *params)
    form = (started.codes, half, relu and not apart, together, started.stages)
    z, r, *statistics = Chain.apply(inside, x, *form, *params)
    for i, norm in enumerate(layers[1::2]):
        mu, d = statistics[2 * i : 2 * i + 2]
        if norm.track_running_stats:
            norm._track(mu.flatten(), d.flatten(), z.numel() // z.shape[1])
    if apart:
        z = z + other
        return torch.relu(z) if relu else z, None
    return z, r


_FLOATS = (torch.float32, torch.bfloat16)


def _dtype(x: Tensor) -> torch.dtype:
    """Of what the layers make of x: that of autocast, otherwise its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _suits(x: Tensor, layers: tuple) -> bool:
    """Can the chain run fused on this input, with the layers as they now are?"""
    if x.dtype not in _FLOATS or _dtype(x) not in _FLOATS or x.numel() == 0 or x.ndim < 2:
        return False
    for i, layer in enumerate(layers):
        if not layer.training or layer.record.armed or has_hooks(layer):
            return False
        if any(p is not None and p.dtype not in _FLOATS for p in (layer.weight, layer.bias)):
            return False
        if i % 2 == 0:
            norm = layers[i + 1]
            if norm.num_features != layer.weight.shape[0] or not _covers(layer.scheme, norm.scheme, i == 0):
                return False
    first = layers[0]
    channels = first.weight.shape[1] * getattr(first, "groups", 1)
    return all(p.products_of_input() for p in layers[::2]) and x.ndim == first.weight.ndim and x.shape[1] == channels


@functools.lru_cache(512)
def _covers(layer: Any, norm: Any, first: bool) -> bool:
    return not covers(layer, norm, first)


def has_hooks(m: nn.Module) -> bool:
    """Hooks of any kind around the module's own forward and backward."""
    return bool(hooked(m) or m._backward_hooks or m._backward_pre_hooks)
