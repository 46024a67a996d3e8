"""Gradients of a real training step, and how far quantizers are from the best that groups of channels can do.

Notation: g (N, C, ...) the gradient of a layer's output, r_k = max |g| in channel k, R = max_k r_k, s_k the range of
the group that k is in. The bound on the variance of stochastic rounding is M / (4 Q^2) sum_k s_k^2, M elements a
channel: its ratios between groupings depend on the r_k alone, and not on bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subbyte import ops
from subbyte.convert import quantized_layers
from subbyte.nn import ProductLayer
from subbyte.numerics import MAX_EXPONENT, draw_stream
from subbyte.quantizers import GroupOracle, Quantizer, ShiftQuant

FOLDED = 8
"""The largest exponent that costs a product of two 4-bit operands nothing: 8 - 4 bits of room on either side."""

TOKEN_GROUPS = (1, 2, 3, 4, 5)
"""Numbers of groups of tokens whose shift folds into the one operand of int8 that holds 4 bits."""

Visit = Callable[[str, Tensor], None]


@contextmanager
def visiting(model: nn.Module, visit: Visit) -> Iterator[None]:
    """Calls visit(layer name, gradient of its output) in every backward pass inside the block, for product layers."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, y: Tensor) -> None:
            y.register_hook(lambda g: visit(name, g))

        return hook

    layers = {name: layer for name, layer in quantized_layers(model).items() if isinstance(layer, ProductLayer)}
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    if not handles:
        raise ValueError("the model has no quantized layer whose gradient could be captured")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def channel_ranges(g: Tensor, axis: int) -> Tensor:
    """max |g| at each index of an axis, float32 (K)."""
    return g.detach().abs().amax([i for i in range(g.ndim) if i != axis]).float()


def bounds(r: Tensor, groups: Iterable[int]) -> dict[str, float]:
    """sum s_k^2 / sum r_k^2 (1 is one scale for each channel, the least) by grouping; {} where r is 0 or not finite.

    Keys: tensor (one scale), and for each number n of groups consecutive_n (ShiftQuant with exponents 0..n-1),
    chosen_n (exponents chosen up to FOLDED), pow2_n (chosen among all octaves: the power-of-two oracle), free_n (any n
    scales: the upper bound of group quantization).
    """
    r = r.view(1, -1)
    alive = r > 0
    if not bool(alive.any()) or not bool(r.isfinite().all()):
        return {}
    least = r.double().square().sum()

    def ratio(quantizer: Quantizer) -> float:
        ranges, shift, _ = quantizer.ranges(r)
        ranges = ranges.double() if shift is None else ranges.double() * torch.exp2(-shift.double())
        return float(torch.where(alive, ranges.expand_as(r), 0.0).square().sum() / least)

    found = {"tensor": ratio(ShiftQuant(4, groups=1))}
    for n in groups:
        found[f"consecutive_{n}"] = ratio(ShiftQuant(4, groups=n))
        found[f"chosen_{n}"] = ratio(ShiftQuant(4, groups=n, exponents="chosen", max_exponent=max(FOLDED, n - 1)))
        found[f"pow2_{n}"] = ratio(ShiftQuant(4, groups=n, exponents="chosen", max_exponent=MAX_EXPONENT))
        found[f"free_{n}"] = ratio(GroupOracle(4, groups=n))
    return found


def token_bounds(g: Tensor) -> dict[str, float]:
    """tokens_n: mean s_t^2 of n groups of tokens (TokenShiftQuant) over mean r_k^2, for n in TOKEN_GROUPS."""
    g = g.detach().float()
    r, of_channels = ops.amax(g, ops.WHOLE), channel_ranges(g, 1).double()
    found = {}
    for n in TOKEN_GROUPS:
        ranges = r.double() * torch.exp2(-ops.token_exponents(g, r, n - 1).double())
        found[f"tokens_{n}"] = float(ranges.square().mean() / of_channels.square().mean())
    return found


def octaves(r: Tensor) -> float:
    """log2 of the largest over the smallest range that is not 0."""
    alive = r[r > 0]
    return float((alive.max() / alive.min()).log2())


def measured_variance(g: Tensor, quantizer: Quantizer, samples: int) -> float:
    """E |q(g) - g|^2 / |g|^2, the mean over independent roundings; NaN for a tensor of zeros."""
    signal = float(g.double().square().sum())
    error = sum(
        float((quantizer(g, draw_stream(1, g.device)[0]).dequantize() - g).double().square().sum())
        for _ in range(samples)
    )
    return error / samples / signal if signal > 0 else math.nan


def weight_gradient_variance(model: nn.Module, x: Tensor, y: Tensor, samples: int) -> float:
    """E |G - E G|^2 / |E G|^2 over roundings, G the gradient of all parameters on one batch; the model is not changed.

    Both expectations are estimated from the same samples; the bias of |mean|^2 is taken off.
    """
    probe = copy.deepcopy(model).train()
    parameters = [p for p in probe.parameters() if p.requires_grad]
    draws = []
    for _ in range(samples):
        grads = torch.autograd.grad(F.cross_entropy(probe(x), y), parameters)
        draws.append(torch.cat([g.flatten() for g in grads]).double())
    stacked = torch.stack(draws)
    mean = stacked.mean(0)
    variance = float((stacked - mean).square().sum()) / (samples - 1)
    return variance / max(float(mean.square().sum()) - variance / samples, 1e-30)


def describe_gradients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    groups: Iterable[int],
    quantizers: Mapping[str, Quantizer],
    samples: int,
) -> list[dict]:
    """One training step of a copy of the model: for each layer's gradient its bounds and measured variances.

    sample_bounds are those of groups of samples (axis 0) against one scale for each sample, whose own bound is
    sample_over_channel times that of one scale for each channel; token_bounds are against one scale for each channel.
    """
    probe = copy.deepcopy(model).train()
    found: list[dict] = []

    def visit(name: str, g: Tensor) -> None:
        of_channels, of_samples = channel_ranges(g, 1), channel_ranges(g, 0)
        limits = bounds(of_channels, groups)
        if limits:
            means = [r.double().square().mean() for r in (of_samples, of_channels)]
            found.append(
                {
                    "layer": name,
                    "shape": list(g.shape),
                    "octaves": octaves(of_channels),
                    "sample_octaves": octaves(of_samples),
                    "bounds": limits,
                    "sample_bounds": bounds(of_samples, groups),
                    "sample_over_channel": float(means[0] / means[1]),
                    "token_bounds": token_bounds(g),
                    "variance": {label: measured_variance(g, q, samples) for label, q in quantizers.items()},
                }
            )

    with visiting(probe, visit):
        F.cross_entropy(probe(x), y).backward()
    return found[::-1]
