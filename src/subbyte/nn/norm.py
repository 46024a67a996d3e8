"""What every norm layer has in common: a NormScheme, a call into norm.py, and what dequantize_ leaves of an L1 norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..norm import FrozenNorm, Geometry, QuantizedNorm
from ..scheme import NormScheme
from .quantized import QuantizedLayer, unless_no_grad

FLOAT_L1 = NormScheme("l1", input=None, normalized=None, saved=None, weight=None, gradient=None)
"""An L1 norm without quantization: what dequantize_ leaves where torch has no layer that computes the same."""


class NormLayer(QuantizedLayer):
    """A normalization layer: its scheme is a NormScheme."""

    scheme: NormScheme
    eps: Any

    def normalize(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, geo: Geometry) -> tuple[Tensor, ...]:
        """(y, mu, D) by the statistics of x itself; gamma and beta broadcast to x."""
        stream = self._stream(x)
        x, gamma, beta = unless_no_grad(x, gamma, beta)
        return QuantizedNorm.apply(x, gamma, beta, geo, self.scheme, self._eps(x), stream, self.record)

    def normalize_frozen(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, d: Tensor, geo: Geometry
    ) -> Tensor:
        """y by a mean and a D that are constants; they broadcast to x, as gamma and beta do."""
        stream = self._stream(x)
        x, gamma, beta = unless_no_grad(x, gamma, beta)
        return FrozenNorm.apply(x, gamma, beta, mean, d, geo, self.scheme, stream, self.record)

    def _stream(self, x: Tensor) -> Tensor | None:
        streams = self.draw_streams(not self.scheme.is_float, x)
        return None if streams is None else streams[0]

    def _eps(self, x: Tensor) -> float:
        return self.eps

    def measures_input_in_eval(self) -> bool:
        """Does eval mode, too, normalize by the statistics of its input? Then L1 and torch's L2 are two functions."""
        return True

    def release(self) -> type[nn.Module] | None:
        """torch has no norm with L1 statistics: where eval mode measures them, this class stays, in floats."""
        if self.scheme.kind == "l2" or not self.measures_input_in_eval():
            return super().release()
        self.scheme = FLOAT_L1
        return None


def as_channels(t: Tensor | None, ndim: int) -> Any:
    """One number for each channel -> broadcastable to (N, C, ...) with ndim axes."""
    return None if t is None else t.view(1, -1, *[1] * (ndim - 2))


def empty(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """No elements, no statistics: the graph alone, so that the gradients of gamma and beta are zeros."""
    y = x if gamma is None else x * gamma
    return (y if beta is None else y + beta).to(x.dtype)
