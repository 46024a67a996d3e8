"""LayerNorm and RMSNorm on integer codes, L1 or L2: a statistic for each row, over the last axes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..norm import LAYER_NORM, RMS_NORM, Geometry
from .norm import NormLayer, empty


class RowNorm(NormLayer):
    """What the two have in common: a scale for each row of x, one for xhat and one for the gradient."""

    geometry: ClassVar[Geometry]
    normalized_shape: tuple[int, ...]
    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        size = self.normalized_shape
        if tuple(x.shape[x.ndim - len(size) :]) != tuple(size):
            name = type(self).__name__
            raise ValueError(f"{name} expects inputs (..., {', '.join(map(str, size))}), not {tuple(x.shape)}")
        weight, bias = self.weight, getattr(self, "bias", None)
        if x.numel() == 0:
            return empty(x, weight, bias)
        rows = x.reshape(-1, x.numel() // x.shape[: x.ndim - len(size)].numel())
        gamma, beta = (None if p is None else p.reshape(1, -1) for p in (weight, bias))
        return self.normalize(rows, gamma, beta, self.geometry)[0].reshape(x.shape)


class LayerNorm(RowNorm, nn.LayerNorm, replaces=nn.LayerNorm):
    """torch.nn.LayerNorm on codes. x (..., *normalized_shape)."""

    geometry = LAYER_NORM


class RMSNorm(RowNorm, nn.RMSNorm, replaces=nn.RMSNorm):
    """torch.nn.RMSNorm on codes: y = gamma x / D. x (..., *normalized_shape).

    D = c mean|x| + sqrt(eps), c = sqrt(pi / 2) (l2: sqrt(mean x^2 + eps)); eps None: the machine epsilon of float32
    (float64 for float64 inputs), as in torch.
    """

    geometry = RMS_NORM

    def _eps(self, x: Tensor) -> float:
        if self.eps is not None:
            return self.eps
        return torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
