"""Convolution weights as functions of their parameters: weight standardization, and fixed gains of channels.

As torch parametrizations: layers keep their class, and quantize_ quantizes what the function gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

GAIN_OCTAVES = 12
"""Between the largest and the smallest gain of a layer's channels."""

_GOLDEN = (5**0.5 - 1) / 2  # fractions of its multiples fill [0, 1) evenly, in no order that a layer could follow


class WeightStandardization(nn.Module):
    """w = (v - mean v) / sqrt(fan_in var v + eps), for each output channel.

    Source: Qiao et al., "Micro-batch training with batch-channel normalization and weight standardization", arXiv
    1903.10520.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, v: Tensor) -> Tensor:
        rest = tuple(range(1, v.ndim))
        var, mean = torch.var_mean(v, rest, correction=0, keepdim=True)
        return (v - mean) / torch.sqrt(v[0].numel() * var + self.eps)


class ChannelGains(nn.Module):
    """w = gain v with a constant gain for each output channel, from 1 to 2^octaves, evenly spread over octaves.

    Behind the convolution a norm takes the gain out again: the net, its gradient in v and its training are those
    without gains. Only the gradient of the convolution's output knows them: channel k of it is divided by gain k.
    """

    gain: Tensor

    def __init__(self, channels: int, octaves: float = GAIN_OCTAVES) -> None:
        super().__init__()
        place = torch.arange(channels, dtype=torch.float64) * _GOLDEN % 1
        self.register_buffer("gain", torch.exp2(octaves * place).float())

    def forward(self, v: Tensor) -> Tensor:
        return v * self.gain.view(-1, *[1] * (v.ndim - 1))


KINDS: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "ws": lambda conv: WeightStandardization(),
    "gains": lambda conv: ChannelGains(conv.out_channels),
}


def reparametrize_(model: nn.Module, kind: str) -> nn.Module:
    """Puts the function called `kind` on every convolution's weight, in place. The parameters keep their values."""
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            parametrize.register_parametrization(module, "weight", KINDS[kind](module))
    return model
