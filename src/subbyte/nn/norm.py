"""BatchNorm2d and LayerNorm on integer codes, L1 or L2, and L1 norms in floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..norm import BATCH_NORM_2D, LAYER_NORM, FrozenNorm, QuantizedNorm
from ..scheme import NormScheme
from .quantized import QuantizedLayer, unless_no_grad

FLOAT_L1 = NormScheme("l1", input=None, normalized=None, saved=None, weight=None, gradient=None)
"""An L1 norm without quantization: what dequantize_ leaves where torch has no layer that computes the same."""


class BatchNorm2d(QuantizedLayer, nn.BatchNorm2d, replaces=nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on codes. Buffers stay in torch's units, whichever statistic is used.

    running_var <- D^2 - eps (L1) or the unbiased variance (L2), so that sqrt(running_var + eps) is what eval divides by
    and float checkpoints load and save unchanged: in eval mode it is the float BatchNorm of its buffers, on codes.
    """

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if x.shape[1] != self.num_features:
            raise ValueError(f"BatchNorm2d expects inputs (N, {self.num_features}, H, W), not {tuple(x.shape)}")
        use_batch = self.training or self.running_mean is None
        gamma, beta = _as_channels(self.weight), _as_channels(self.bias)
        if x.numel() == 0:
            return _empty(x, gamma, beta)
        streams = self.draw_streams(not self.scheme.is_float, x)
        stream = None if streams is None else streams[0]
        x, gamma, beta = unless_no_grad(x, gamma, beta)
        if not use_batch:
            mean, d = _as_channels(self.running_mean), torch.sqrt(_as_channels(self.running_var).double() + self.eps)
            return FrozenNorm.apply(x, gamma, beta, mean, d, BATCH_NORM_2D, self.scheme, stream, self.record)
        n = x.numel() // x.shape[1]
        if n == 1:
            raise ValueError(f"batch statistics need more than 1 value per channel, input {tuple(x.shape)}")
        y, mu, d = QuantizedNorm.apply(x, gamma, beta, BATCH_NORM_2D, self.scheme, self.eps, stream, self.record)
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
        var = d.square() - self.eps
        if self.scheme.kind == "l2":
            var = var * (n / (n - 1))
        for buffer, value in ((mean, mu), (variance, var)):
            buffer.copy_(torch.lerp(buffer.double(), value, momentum))


class LayerNorm(QuantizedLayer, nn.LayerNorm, replaces=nn.LayerNorm):
    """torch.nn.LayerNorm on codes: a scale for each row of x, one for xhat and one for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.normalized_shape
        if tuple(x.shape[x.ndim - len(size) :]) != tuple(size):
            raise ValueError(f"LayerNorm expects inputs (..., {', '.join(map(str, size))}), not {tuple(x.shape)}")
        gamma, beta = (None if p is None else p.reshape(1, -1) for p in (self.weight, self.bias))
        if x.numel() == 0:
            return _empty(x, self.weight, self.bias)
        streams = self.draw_streams(not self.scheme.is_float, x)
        stream = None if streams is None else streams[0]
        x, gamma, beta = unless_no_grad(x, gamma, beta)
        rows = x.reshape(-1, x.numel() // x.shape[: x.ndim - len(size)].numel())
        y, _, _ = QuantizedNorm.apply(rows, gamma, beta, LAYER_NORM, self.scheme, self.eps, stream, self.record)
        return y.reshape(x.shape)

    def release(self) -> type[nn.Module] | None:
        """torch has no LayerNorm with L1 statistics: trained with them it stays this class, in floats."""
        if self.scheme.kind == "l2":
            return super().release()
        self.scheme = FLOAT_L1
        return None


def _as_channels(t: Tensor | None) -> Any:
    return None if t is None else t.view(1, -1, 1, 1)


def _empty(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """No elements, no statistics: the graph alone, so that the gradients of gamma and beta are zeros."""
    y = x if gamma is None else x * gamma
    return (y if beta is None else y + beta).to(x.dtype)
