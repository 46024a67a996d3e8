"""BatchNorm1d, 2d and 3d on integer codes, L1 or L2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..norm import batch_norm
from .conv import SIZES
from .norm import NormLayer, as_channels, empty


class BatchNorm(NormLayer):
    """What the three have in common. Buffers stay in torch's units, whichever statistic is used.

    running_var <- D^2 - eps (L1) or the unbiased variance (L2), so that sqrt(running_var + eps) is what eval divides by
    and float checkpoints load and save unchanged: in eval mode it is the BatchNorm of its buffers, with x, xhat and
    gamma in codes as in training.
    """

    num_features: int
    momentum: float | None
    track_running_stats: bool
    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if x.shape[1] != self.num_features:
            shape = ", ".join(("N", str(self.num_features), SIZES[x.ndim - 2])).rstrip(", ")
            raise ValueError(f"{type(self).__name__} expects inputs ({shape}), not {tuple(x.shape)}")
        gamma, beta = as_channels(self.weight, x.ndim), as_channels(self.bias, x.ndim)
        if x.numel() == 0:
            return empty(x, gamma, beta)
        geo = batch_norm(x.ndim)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            mean = as_channels(self.running_mean, x.ndim)
            d = torch.sqrt(as_channels(self.running_var, x.ndim).double() + self.eps)
            return self.normalize_frozen(x, gamma, beta, mean, d, geo)
        n = x.numel() // x.shape[1]
        if n == 1:
            raise ValueError(f"batch statistics need more than 1 value per channel, input {tuple(x.shape)}")
        y, mu, d = self.normalize(x, gamma, beta, geo)
        if self.training and self.track_running_stats:
            self._track(mu.flatten(), d.flatten(), n)
        return y

    @torch.no_grad()
    def _track(self, mu: Tensor, d: Tensor, n: int) -> None:
        count, mean, variance = self.num_batches_tracked, self.running_mean, self.running_var
        if count is None or mean is None or variance is None:  # torch makes all three or none
            return
        count.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(count)
        blend(mean, mu, momentum)
        blend(variance, running_variance(d, self.eps, n, self.scheme.kind == "l2"), momentum)

    def _check_input_dim(self, x: Tensor) -> None:
        super()._check_input_dim(x)  # type: ignore[misc]  # torch's class, the second base

    def measures_input_in_eval(self) -> bool:
        return self.running_mean is None


class BatchNorm1d(BatchNorm, nn.BatchNorm1d, replaces=nn.BatchNorm1d):
    """torch.nn.BatchNorm1d on codes. x (N, C) or (N, C, L)."""


class BatchNorm2d(BatchNorm, nn.BatchNorm2d, replaces=nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on codes. x (N, C, H, W)."""


class BatchNorm3d(BatchNorm, nn.BatchNorm3d, replaces=nn.BatchNorm3d):
    """torch.nn.BatchNorm3d on codes. x (N, C, D, H, W)."""


def running_variance(d: Tensor, eps: float, n: int, l2: bool) -> Tensor:
    """What running_var takes from D: D^2 - eps, for L2 with torch's n / (n - 1)."""
    var = d.square() - eps
    return var * (n / (n - 1)) if l2 else var


def blend(buffer: Tensor, value: Tensor, momentum: float) -> None:
    """buffer <- (1 - momentum) buffer + momentum value, in float64."""
    buffer.copy_(torch.lerp(buffer.double(), value, momentum))
