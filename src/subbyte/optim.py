"""IntegerSGD: momentum SGD without a float operation, on Parameters that hold 16-bit integers times a power of two.

    d  = g + 2^-j w                        weight decay, j on the grid of powers of two
    v <- (m / 256) v + d                   16 bits, stochastic; momentum 0.9 is m = 230
    u  = v, or (m / 256) v + d             nesterov
    w <- w - 2^-k u                        16 bits, stochastic; lr snapped to 2^-k

Each of w, v and g has one power of two for the tensor, chosen anew in each step as the finest that holds its largest
element. Widths in bits, signs included: g and w come with 25; every sum is kept in SUM_BITS = 50, its largest operand
at the top, so that an operand 2^25 times smaller still enters whole; m v has 24.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import ops
from .numerics import draw_stream
from .ops.integer_sgd import EMPTY, FACTOR_BITS


def power_of_two_exponent(value: float) -> int | None:
    """k of the nearest 2^-k on a logarithmic scale, None for 0: the grid of learning rates and weight decays.

    >>> [power_of_two_exponent(v) for v in (0.1, 0.05, 1.0, 3e-4, 0.0)]
    [3, 4, 0, 12, None]
    """
    return None if value == 0 else round(-math.log2(value))


class IntegerSGD(Optimizer):
    """SGD with momentum in integers alone; a torch.optim.Optimizer like any other.

    params        float32 Parameters, or groups of them. From the first step on each of them holds integers of 16 bits
                  times a power of two, exactly: a state_dict of the model is an ordinary float checkpoint.
    lr            any scheduler may set it; in use is the nearest power of two (0 leaves weights alone)
    momentum      in 1/256
    weight_decay  the nearest power of two, added to the gradient
    nesterov      as in torch.optim.SGD

    The state of a Parameter: momentum (int16), momentum_exponent (int32), stream (int64, drawn once from torch's
    generator) and step: rounding in step t depends on the stream and t alone, so a run that is resumed from a
    state_dict ends in the same bits.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -0.5]))
    >>> optimizer = IntegerSGD([w], lr=0.1, momentum=0)    # 2^-3
    >>> w.grad = torch.tensor([1.0, 0.0])
    >>> optimizer.step()
    >>> w.tolist()
    [0.875, -0.5]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2.0**-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"lr is {lr}; it must be a finite number of at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"weight_decay is {weight_decay}; it must be a finite number of at least 0")
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dtype != torch.float32:
                raise TypeError(f"IntegerSGD takes float32 Parameters, whose bits it knows, not {p.dtype}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every Parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            factor = round(group["momentum"] * (1 << FACTOR_BITS))
            rate, decay = (power_of_two_exponent(float(group[k])) for k in ("lr", "weight_decay"))
            for p in group["params"]:
                if p.grad is None or p.numel() == 0:
                    continue
                if p.grad.is_sparse:
                    raise TypeError("IntegerSGD takes dense gradients")
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p, dtype=torch.int16)
                    state["momentum_exponent"] = torch.full((), EMPTY, dtype=torch.int32, device=p.device)
                    state["stream"] = draw_stream(1, p.device)
                    state["step"] = 0
                stream = state["stream"].view(()) + state["step"]
                v = state["momentum"], state["momentum_exponent"]
                w, *v = ops.int_sgd(p, p.grad, *v, stream, rate, factor, decay, group["nesterov"])
                p.copy_(w)
                state["momentum"], state["momentum_exponent"] = v
                state["step"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, which would turn the integers of a state into floats of the Parameter's dtype."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, (p for group in self.param_groups for p in group["params"])):
            for key, value in state_dict["state"].get(i, {}).items():
                self.state[p][key] = deepcopy(value).to(p.device) if isinstance(value, Tensor) else value
