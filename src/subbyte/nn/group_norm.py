"""GroupNorm and InstanceNorm1d, 2d, 3d on integer codes, L1 or L2: a statistic for each sample and group."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..norm import batch_norm, group_norm
from .batch_norm import blend, running_variance
from .norm import NormLayer, as_channels, empty


class _GroupStatistics(NormLayer):
    """x (N, C, ...) is normalized as (N, groups, C / groups, ...): its scale may differ by sample and group."""

    weight: Any
    bias: Any

    def normalize_groups(self, x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """(y in x's shape and memory format, mu, D), the statistics (N, groups)."""
        split = (groups, x.shape[1] // groups)
        grouped = x.unflatten(1, split)
        gamma, beta = (None if p is None else p.view(1, *split, *[1] * (x.ndim - 2)) for p in (self.weight, self.bias))
        y, mu, d = self.normalize(grouped, gamma, beta, group_norm(grouped.ndim))
        shape = (x.shape[0], groups)
        return like(y.flatten(1, 2), x), mu.view(shape), d.view(shape)


class GroupNorm(_GroupStatistics, nn.GroupNorm, replaces=nn.GroupNorm):
    """torch.nn.GroupNorm on codes. x (N, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"GroupNorm expects inputs (N, {self.num_channels}, ...), not {tuple(x.shape)}")
        if x.numel() == 0:
            return empty(x, as_channels(self.weight, x.ndim), as_channels(self.bias, x.ndim))
        if x.numel() == self.num_groups:
            raise ValueError(f"group statistics need more than 1 value in all, input {tuple(x.shape)}")
        return self.normalize_groups(x, self.num_groups)[0]


class InstanceNorm(_GroupStatistics):
    """What the three have in common: GroupNorm with a channel a group; torch's forward checks shapes and calls this.

    With running statistics they get the mean over samples of mu and of what BatchNorm would take from D, and eval mode
    is the InstanceNorm of its buffers, in codes as in training.
    """

    eps: float
    momentum: float | None
    track_running_stats: bool
    running_mean: Any
    running_var: Any

    def _apply_instance_norm(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return empty(x, as_channels(self.weight, x.ndim), as_channels(self.bias, x.ndim))
        if not self.training and self.running_mean is not None and self.running_var is not None:
            gamma, beta, mean = (as_channels(t, x.ndim) for t in (self.weight, self.bias, self.running_mean))
            d = torch.sqrt(as_channels(self.running_var, x.ndim).double() + self.eps)
            return self.normalize_frozen(x, gamma, beta, mean, d, batch_norm(x.ndim))
        n = math.prod(x.shape[2:])
        if n == 1:
            raise ValueError(
                f"instance statistics need more than 1 value per channel and sample, input {tuple(x.shape)}"
            )
        y, mu, d = self.normalize_groups(x, x.shape[1])
        if self.training and self.running_mean is not None and self.running_var is not None:
            self._track(self.running_mean, self.running_var, mu, d, n)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, mu: Tensor, d: Tensor, n: int) -> None:
        momentum = self.momentum if self.momentum is not None else 0.0  # as torch has it
        blend(mean, mu.mean(0), momentum)
        blend(variance, running_variance(d, self.eps, n, self.scheme.kind == "l2").mean(0), momentum)

    def measures_input_in_eval(self) -> bool:
        return self.running_mean is None


class InstanceNorm1d(InstanceNorm, nn.InstanceNorm1d, replaces=nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d on codes. x (N, C, L) or (C, L)."""


class InstanceNorm2d(InstanceNorm, nn.InstanceNorm2d, replaces=nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d on codes. x (N, C, H, W) or (C, H, W)."""


class InstanceNorm3d(InstanceNorm, nn.InstanceNorm3d, replaces=nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d on codes. x (N, C, D, H, W) or (C, D, H, W)."""


def like(y: Tensor, x: Tensor) -> Tensor:
    """y in the memory format of x."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is None or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return y
    return y.contiguous(memory_format=last)
