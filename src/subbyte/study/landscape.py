"""Sharpness of the loss around a trained net: the Hessian's top eigenvalue and the loss along random directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RELATIVE_STEP = 1e-3
"""Of the central difference of gradients, against the norm of the parameters: float32 leaves it 4 digits."""


def sharpness(
    model: nn.Module, x: Tensor, y: Tensor, *, directions: int, radius: float, points: int, iterations: int
) -> dict[str, Any]:
    """hessian, landscape (directions, points), distances, and rise: the mean loss at +-radius minus that at 0.

    model in eval mode: a function of its parameters alone. It is left as it was.
    """
    distances = [radius * (2 * i / (points - 1) - 1) for i in range(points)]
    curves = [landscape(model, x, y, filter_normalized(model), distances) for _ in range(directions)]
    middle = loss(model, x, y)
    ends = [curve[i] for curve in curves for i in (0, -1)]
    return {
        "hessian": top_eigenvalue(model, x, y, iterations),
        "rise": sum(ends) / len(ends) - middle,
        "distances": distances,
        "landscape": curves,
    }


def loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean cross entropy in nats."""
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


def filter_normalized(model: nn.Module) -> list[Tensor]:
    """A random direction: Gaussian, each filter (first index) with the norm of the net's; zero where ndim < 2.

    Source: Li et al., "Visualizing the loss landscape of neural nets", arXiv 1712.09913, section 4.
    """
    direction = []
    for p in model.parameters():
        d = torch.randn_like(p)
        if p.ndim < 2:
            direction.append(torch.zeros_like(p))
            continue
        rest = tuple(range(1, p.ndim))
        norms = [t.detach().square().sum(rest, keepdim=True).sqrt() for t in (p, d)]
        direction.append(d * norms[0] / norms[1].clamp(min=1e-12))
    return direction


def landscape(
    model: nn.Module, x: Tensor, y: Tensor, direction: Sequence[Tensor], distances: Sequence[float]
) -> list[float]:
    """The loss at parameters + distance * direction, for each distance."""
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    curve = []
    try:
        for distance in distances:
            _move(parameters, start, direction, distance)
            curve.append(loss(model, x, y))
    finally:
        _move(parameters, start, direction, 0.0)
    return curve


def top_eigenvalue(model: nn.Module, x: Tensor, y: Tensor, iterations: int) -> float:
    """The Hessian's eigenvalue of largest magnitude: v^T H v after power iteration from a random v.

    H v = (grad(w + h v) - grad(w - h v)) / 2h, with |v| = 1 and h = RELATIVE_STEP |w|: central differences ask nothing
    of a layer but its gradient (a custom autograd function need not be differentiable twice).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    h = RELATIVE_STEP * math.sqrt(sum(float(p.double().square().sum()) for p in start))
    v = _unit([torch.randn_like(p) for p in parameters])
    value = 0.0
    try:
        for _ in range(iterations):
            sides = []
            for sign in (1, -1):
                _move(parameters, start, v, sign * h)
                sides.append(torch.autograd.grad(F.cross_entropy(model(x), y), parameters))
            product = [(a - b) / (2 * h) for a, b in zip(*sides, strict=True)]
            value = sum(float((a.double() * b.double()).sum()) for a, b in zip(product, v, strict=True))
            v = _unit(product)
    finally:
        _move(parameters, start, v, 0.0)
    return value


def _unit(v: Sequence[Tensor]) -> list[Tensor]:
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in v))
    return [t / max(norm, 1e-30) for t in v]


@torch.no_grad()
def _move(parameters: Sequence[Tensor], start: Sequence[Tensor], direction: Sequence[Tensor], distance: float) -> None:
    for p, at, d in zip(parameters, start, direction, strict=True):
        p.copy_(at + distance * d if distance else at)
