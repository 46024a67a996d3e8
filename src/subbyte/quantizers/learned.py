"""LearnedStep: a step that follows the gradient of the loss (LSQ), by a rule of its own: nothing for an optimizer.

A layer that has it for its weight or its activation keeps a buffer for each; without such a buffer (called alone, in
Embedding, as the gradient's quantizer) it is the step that learning would start with.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import RANGE_FLOOR
from .base import Quantizer

DECAY = 0.9
"""Of the running mean square that an update divides by."""


@dataclass(frozen=True)
class LearnedStep(Quantizer):
    """One learned step s: codes = round(clamp(x / s, qmin, qmax)), an integer product as any AbsMax.

    It starts at s = 2 E|x| / sqrt(Q), and learns from the gradient of the loss in s, g_i that of the dequantized x_i:
        dL/ds = sum_i g_i d_i,   d_i = round(x_i / s) - x_i / s inside the range, qmin below it, qmax above it
    Each backward pass of training moves the logarithm of s, by RMSprop (this project's rule; the paper hands s to the
    optimizer of the weights with dL/ds / sqrt(n Q), which the division by a running root mean square v replaces):
        v <- 0.9 v + 0.1 (s dL/ds)^2,   s <- s exp(-rate s dL/ds / sqrt(v))
    The gradient of x is that of its dequantized value inside the range and 0 outside. x is kept for backward, in
    floats: this is a quantizer for comparison, not for memory.

    Source: Esser et al., "Learned step size quantization", arXiv 1902.08153, equations 1 to 5 and section 2.1.
    """

    rate: float = 0.01

    # Not fields: a quantizer is a setting, and layers that share one have a state each.
    _state: ClassVar[Tensor | None] = None
    _training: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rate < 1:
            raise ValueError(f"the rate of a learned step is 0 or more and below 1, not {self.rate}")

    def initial_state(self) -> Tensor:
        """(s, v): both 0 until there is data."""
        return torch.zeros(2, dtype=torch.float32)

    @property
    def learns(self) -> bool:
        return self._state is not None and self._training

    def bind(self, state: Tensor, training: bool) -> LearnedStep:
        bound = copy.copy(self)
        object.__setattr__(bound, "_state", state)
        object.__setattr__(bound, "_training", training)
        return bound

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        s, finite = self.starting_step(x), x.float().isfinite().all()
        if self._state is not None:
            s = torch.where(self._state[0] > 0, self._state[0].float(), s)
            if self._training:
                self._state[0].copy_(torch.where(finite, s, self._state[0].float()))
        r = (s * self.format.qmax).clamp(max=torch.finfo(torch.float32).max)
        r = torch.where(finite, r, torch.full_like(r, torch.nan))
        return torch.where(r < RANGE_FLOOR, torch.zeros_like(r), r).view([1] * x.ndim), None, 0

    def starting_step(self, x: Tensor) -> Tensor:
        """2 E|x| / sqrt(Q), a float32 scalar; 0 for an empty tensor."""
        mean = x.double().abs().sum() / max(x.numel(), 1)
        largest = torch.finfo(torch.float32).max / self.format.qmax  # so that s Q is finite, too
        return (2 * mean / self.format.qmax**0.5).clamp(max=largest).float()

    def backward(self, x: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
        s = scale.double()
        t = torch.where(s > 0, x.double() / s, torch.zeros_like(s))
        fmt = self.format
        inside = (t >= fmt.qmin) & (t <= fmt.qmax)
        d = torch.where(inside, t.round() - t, t.clamp(fmt.qmin, fmt.qmax))
        if self._state is not None:
            slope = ((grad.double() * d).sum() * s.flatten()[0]).float()
            step, v = self._state.float()
            v_new = torch.where(v > 0, DECAY * v + (1 - DECAY) * slope * slope, slope * slope)
            moved = step * torch.exp(-self.rate * slope / v_new.sqrt())
            good = slope.isfinite() & (v_new > 0) & v_new.isfinite() & moved.isfinite() & (moved > 0)
            self._state.copy_(torch.where(good, torch.stack((moved, v_new)), torch.stack((step, v))))
        return torch.where(inside | (s == 0), grad, torch.zeros_like(grad))

    def details(self) -> str:
        return f"rate {self.rate:g}"
